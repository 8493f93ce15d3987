"""Vector-quantised variational autoencoder: pictures as grids of codes, and a prior that draws such grids.

The encoder halves the picture once a level and gives a vector for each place of a small grid; what is kept
of it is the number of the nearest vector of a codebook. The decoder makes a picture of those vectors. The
prior is a transformer that tells each code from those before it, in rows from the top, each from the left.

References:
    van den Oord et al., *Neural Discrete Representation Learning*, 2017. https://arxiv.org/abs/1711.00937
    Razavi et al., *Generating Diverse High-Fidelity Images with VQ-VAE-2*, 2019.
    https://arxiv.org/abs/1906.00446
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import RowNumbers
from artifex.generative_models.core.nn import Conv3x3, SubpixelConv, subpixel_convs
from artifex.generative_models.core.nn.causal import CausalTransformer
from artifex.generative_models.core.sampling.choosing import CHOOSING_FIELDS, CHOOSING_UNSAID
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.sampling.tokens import Prompt, TokenLoop
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import MAX_LAYERS, check_divides, check_integers, items

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SIDE = 2**14
_MAX_LEVELS = 14


class Residual(nnx.Module):
    """A 3×3 and a 1×1 convolution, each after a ReLU, added to the input.

    References:
        van den Oord et al. 2017, section 4.1. https://arxiv.org/abs/1711.00937
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.conv = Conv3x3(features, features, rngs=rngs)
        self.mix = nnx.Conv(features, features, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """The picture and what is added to it."""
        return x + self.mix(nnx.relu(self.conv(nnx.relu(x))))


class Encoder(nnx.Module):
    """Pictures to a vector for each place of a grid."""

    def __init__(
        self,
        channels: int,
        level_features: tuple[int, ...],
        num_blocks: int,
        code_features: int,
        *,
        rngs: nnx.Rngs,
    ):
        features = level_features[-1]
        self.convs = nnx.List(
            nnx.Conv(c_in, c_out, (4, 4), strides=2, rngs=rngs)
            for c_in, c_out in pairwise((channels, *level_features))
        )
        self.blocks = nnx.List(Residual(features, rngs=rngs) for _ in range(num_blocks))
        self.head = nnx.Conv(features, code_features, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch rows columns code"]:
        """Pictures to vectors."""
        for conv in self.convs:
            x = nnx.relu(conv(x))
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(x))


class Decoder(nnx.Module):
    """A vector for each place of a grid to the logits of pixel intensities."""

    def __init__(
        self,
        sizes: tuple[tuple[int, int], ...],
        channels: int,
        level_features: tuple[int, ...],
        num_blocks: int,
        code_features: int,
        *,
        rngs: nnx.Rngs,
    ):
        features = level_features[::-1]
        self.sizes = sizes
        self.stem = Conv3x3(code_features, features[0], rngs=rngs)
        self.blocks = nnx.List(Residual(features[0], rngs=rngs) for _ in range(num_blocks))
        self.ups = nnx.List(
            SubpixelConv(c_in, c_out, 2, rngs=rngs) for c_in, c_out in pairwise((*features, channels))
        )

    def __call__(self, z: Float[Array, "batch rows columns code"]) -> Float[Array, "batch h w c"]:
        """Vectors to logits."""
        x = self.stem(z)
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(x)
        return subpixel_convs(lambda rows, columns: x[:, rows, columns], self.ups, self.sizes, nnx.relu)


class VQVAE(nnx.Module):
    r"""Vector-quantised autoencoder of pictures in [0, 1], and the prior of its codes.

    $$p(c) = \prod_i p(c_i \mid c_1, \dots, c_{i-1})$$

    The model computes in the dtype of its weights, and compares with the codebook in float32: of two codes
    that rounding alone tells apart, another batch size may pick the other. It stores no random number
    generators.

    Args:
        input_shape: (height, width, channels) of a picture; any sizes.
        num_codes: Vectors of the codebook, from 2.
        code_features: Size of each.
        level_features: Channels after each halving level, from the picture inwards.
        num_blocks: Residual blocks of the encoder, and of the decoder, from 0.
        prior_features: Of a code within the prior.
        prior_layers: How many blocks the prior has.
        prior_heads: Of the prior's attention; a divisor of its features.
        num_labels: Classes of pictures that the prior is told; 0 where there are none.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_codes: int,
        code_features: int,
        level_features: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        prior_features: int = 96,
        prior_layers: int = 4,
        prior_heads: int = 4,
        num_labels: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        sides = items(arguments, "input_shape", 3)
        check_integers(sides, *sides, maximum=_MAX_SIDE)
        features = items(arguments, "level_features")
        check_integers(features, *features)
        if len(features) > _MAX_LEVELS:
            raise ConfigError(f"level_features: expected 1 to {_MAX_LEVELS} integers, got {len(features)}")
        check_integers(arguments, "num_codes", minimum=2)
        check_integers(arguments, "code_features", "prior_features")
        check_integers(arguments, "num_blocks", minimum=0, maximum=MAX_LAYERS)
        check_integers(arguments, "prior_layers", maximum=MAX_LAYERS)
        check_divides(prior_heads, "prior_heads", {"prior_features": prior_features})
        check_integers(arguments, "num_labels", minimum=0)

        lists = {"input_shape": list(input_shape), "level_features": list(level_features)}
        self._config = json.dumps({**arguments, **lists})
        height, width, channels = input_shape
        self.input_shape = (height, width, channels)
        self.num_labels = num_labels
        sizes = [(height, width)]
        for _ in level_features:
            height, width = -(-height // 2), -(-width // 2)
            sizes.append((height, width))
        self.grid = (height, width)
        others = (channels, tuple(level_features), num_blocks, code_features)
        self.encoder = Encoder(*others, rngs=rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (num_codes, code_features), jnp.float32))
        self.decoder = Decoder(tuple(sizes[-2::-1]), *others, rngs=rngs)
        self.prior = CausalTransformer(
            num_codes,
            height * width,
            prior_features,
            prior_layers,
            prior_heads,
            num_starts=max(num_labels, 1),
            tied=False,
            rngs=rngs,
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    def encode(self, x: Float[Array, "batch h w c"]) -> Int[Array, "batch rows columns"]:
        """Codes of pictures in [0, 1], int32 from 0 to num_codes - 1."""
        return nearest_codes(self.encoder(x.astype(self.codebook.dtype)), self.codebook[...])

    def decode(self, codes: Int[Array, "batch rows columns"]) -> Float[Array, "batch h w c"]:
        """Pictures of codes, in [0, 1]; NaN where one is not in the codebook."""
        return nnx.sigmoid(self.decoder(self.vectors(codes)))

    def vectors(self, codes: Int[Array, "*shape"]) -> Float[Array, "*shape code"]:
        """The vectors of codes; NaN where one is not in the codebook."""
        codebook = self.codebook[...].at[codes]
        return codebook.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`encode`, `decode`, `reconstruct` and `generate`."""
        picture = TensorSpec(self.input_shape, jnp.float32, doc="pictures in [0, 1]")
        last = len(self.codebook) - 1
        codes = TensorSpec(
            self.grid, jnp.int32, doc=f"codes, integers from 0 to {last}", minimum=0, maximum=last
        )
        fields = {**label_fields(self.num_labels, knows_none=False), **CHOOSING_FIELDS}
        numbers = RowNumbers.of(fields, CHOOSING_UNSAID)
        loop = TokenLoop(_nothing, _prefill, _next, last + 1, _finish)
        return {
            "encode": Endpoint(_encode, {"x": picture}, doc="codes of pictures"),
            "decode": Endpoint(_decode, {"codes": codes}, doc="pictures of codes"),
            "reconstruct": Endpoint(_reconstruct, {"x": picture}, doc="pictures as codes tell them"),
            "generate": Endpoint(loop, numbers.inputs, doc="decode codes that the prior draws", says=numbers),
        }


def nearest_codes(
    z: Float[Array, "*shape code"], codebook: Float[Array, "codes code"]
) -> Int[Array, "*shape"]:
    r"""The number of the vector of a codebook that is nearest to each vector, int32; the first of several.

    $$q(z) = \arg\min_k \lVert z - e_k \rVert^2 = \arg\min_k \lVert e_k \rVert^2 - 2 z \cdot e_k$$

    in float32, with products as exact as the device has them.

    References:
        van den Oord et al. 2017, equation 1. https://arxiv.org/abs/1711.00937
    """
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.einsum("...d,kd->...k", z, codebook, precision="highest")
    squares = jnp.sum(codebook**2, -1).reshape(*[1] * (z.ndim - 1), -1)
    return jnp.argmin(squares - 2 * products, -1).astype(jnp.int32)


def _encode(model: VQVAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"codes": model.encode(inputs["x"])}


def _decode(model: VQVAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(inputs["codes"])}


def _reconstruct(model: VQVAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(model.encode(inputs["x"]))}


def _start(inputs: Mapping[str, Array]) -> Int[Array, " rows"]:
    return inputs["label"] if "label" in inputs else jnp.zeros(len(inputs["temperature"]), jnp.int32)


def _nothing(model: VQVAE, inputs: Mapping[str, Array]) -> Prompt:
    rows, length = len(inputs["temperature"]), model.prior.num_positions
    none = jnp.zeros(rows, jnp.int32)
    return Prompt(jnp.zeros((rows, length), jnp.int32), none, none + length)


def _prefill(model: VQVAE, tokens: Array, length: Array, inputs: Mapping[str, Array]) -> Any:
    return model.prior.empty_cache(len(tokens), tokens.shape[1])


def _next(model: VQVAE, token: Array, index: Array, cache: Any, inputs: Mapping[str, Array]) -> Any:
    return model.prior.step(token, index, cache, _start(inputs))


def _finish(model: VQVAE, tokens: Array, length: Array, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Pictures of the codes, with zeros for the vectors of those that are not there yet."""
    is_there = jnp.arange(tokens.shape[1])[None] < length[:, None]
    z = jnp.where(is_there[..., None], model.vectors(tokens), jnp.zeros((), model.codebook.dtype))
    return {"x": nnx.sigmoid(model.decoder(z.reshape(len(z), *model.grid, -1)))}
