"""Autoregressive model of pictures: a transformer that tells each patch of pixels from those before it.

Pixels have a few levels, and a patch of them is one symbol. Patches come in rows from the top, each from the
left.

References:
    Vaswani et al., *Attention Is All You Need*, 2017. https://arxiv.org/abs/1706.03762
    Parmar et al., *Image Transformer*, 2018. https://arxiv.org/abs/1802.05751
    Chen et al., *Generative Pretraining from Pixels*, 2020. https://proceedings.mlr.press/v119/chen20s.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import RowNumbers
from artifex.generative_models.core.nn.causal import CausalTransformer
from artifex.generative_models.core.sampling.choosing import CHOOSING_FIELDS, CHOOSING_UNSAID
from artifex.generative_models.core.sampling.labels import Labelled, label_fields
from artifex.generative_models.core.sampling.prompts import Completing
from artifex.generative_models.core.sampling.tokens import Prompt, TokenLoop
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import check_divides, check_integers, check_transformer, items

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SYMBOLS = 2**16
_MAX_SIDE = 2**10


class Autoregressive(nnx.Module):
    r"""Pictures whose patches have a probability each, after those before them.

    $$p(x) = \prod_i p(t_i \mid t_1, \dots, t_{i-1})$$

    Pictures are in [0, 1]. What is given is rounded to the nearest of the levels.

    Args:
        input_shape: (height, width, channels) of a picture.
        levels: How many values a pixel may have, evenly spread, from 2.
        patch_size: Side of a patch; a divisor of the height and the width. There are
            `levels ** (patch_size ** 2 * channels)` symbols, at most 65,536.
        features: Of a token within the network.
        num_layers: How many blocks.
        num_heads: Of the attention; a divisor of the features.
        num_labels: Classes of pictures; 0 where there are none.
        tied: Whether the vectors that stand for symbols also tell them.
        epsilon: Of the normalisations.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        levels: int,
        patch_size: int = 1,
        features: int = 96,
        num_layers: int = 4,
        num_heads: int = 4,
        num_labels: int = 0,
        tied: bool = False,
        epsilon: float = 1e-5,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        sides = items(arguments, "input_shape", 3)
        check_integers(sides, *sides, maximum=_MAX_SIDE)
        height, width, channels = input_shape
        check_divides(patch_size, "patch_size", {"the height": height, "the width": width})
        check_integers(arguments, "levels", minimum=2, maximum=_MAX_SYMBOLS)
        check_integers(arguments, "num_labels", minimum=0)
        check_transformer(arguments)
        pixels = patch_size**2 * channels
        if pixels * math.log2(levels) > math.log2(_MAX_SYMBOLS):
            raise ConfigError(f"levels: expected at most {_MAX_SYMBOLS} patches, got {levels} ** {pixels}")
        self._config = json.dumps(arguments | {"input_shape": list(input_shape)})
        self.input_shape = tuple(input_shape)
        self.levels, self.patch_size = levels, patch_size
        self.network = CausalTransformer(
            levels**pixels,
            height * width // patch_size**2,
            features,
            num_layers,
            num_heads,
            num_starts=max(num_labels, 1),
            tied=tied,
            epsilon=epsilon,
            rngs=rngs,
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    @property
    def row_tokens(self) -> int:
        """How many patches lie side by side."""
        return self.input_shape[1] // self.patch_size

    def tokens(self, x: Float[Array, "batch h w c"]) -> Int[Array, "batch tokens"]:
        """The symbols of pictures in [0, 1]: the digits of a number, a pixel each, the first the highest."""
        level = jnp.round(jnp.clip(x.astype(jnp.float32), 0, 1) * (self.levels - 1)).astype(jnp.int32)
        height, width, channels = self.input_shape
        side = self.patch_size
        patches = level.reshape(-1, height // side, side, width // side, side, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), -1, side * side * channels)
        return (patches * self._places[None, None]).sum(-1, dtype=jnp.int32)

    def pictures(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch h w c"]:
        """What symbols show, in [0, 1]."""
        height, width, channels = self.input_shape
        side = self.patch_size
        level = tokens[..., None] // self._places[None, None] % self.levels
        level = level.reshape(-1, height // side, width // side, side, side, channels)
        level = level.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)
        return level.astype(jnp.float32) / (self.levels - 1)

    @property
    def _places(self) -> Int[Array, " pixels"]:
        pixels = self.patch_size**2 * self.input_shape[2]
        return jnp.asarray(self.levels ** np.arange(pixels)[::-1], jnp.int32)

    def log_prob(self, x: Float[Array, "batch h w c"], label: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """The natural logarithm of the probability of pictures, float32; exact.

        Args:
            x: Pictures in [0, 1].
            label: Their classes; 0 where there are none.
        """
        tokens = self.tokens(x)
        log_probs = jax.nn.log_softmax(self.network(tokens, label))
        return jnp.take_along_axis(log_probs, tokens[..., None], axis=2)[..., 0].sum(1)

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate`, `complete` and `log_prob`."""
        num_labels = self.config["num_labels"]
        label = {"label": TensorSpec((), np.int32, doc="the class")} if num_labels else {}
        fields = {**label_fields(num_labels, knows_none=False), **CHOOSING_FIELDS}
        numbers = RowNumbers.of(fields, CHOOSING_UNSAID)
        completing = Completing(self.input_shape[0], self.patch_size, num_labels)
        loop = TokenLoop(_nothing, _prefill, _next, self.network.vocab_size, _finish)
        picture = {"x": TensorSpec(self.input_shape, np.float32, doc="pictures in [0, 1]")}
        return {
            "generate": Endpoint(loop, numbers.inputs, doc="draw pictures", says=numbers),
            "complete": Endpoint(
                TokenLoop(_upper_part, _prefill, _next, self.network.vocab_size, _finish),
                {**picture, **completing.inputs},
                doc="draw what comes below the upper part of pictures",
                says=completing,
                ahead=False,
            ),
            "log_prob": Endpoint(
                _log_prob,
                {**picture, **label},
                doc="how likely pictures are: nats a picture, and bits a dimension",
                says=Labelled(num_labels, knows_none=False) if num_labels else None,
                ahead=False,
            ),
        }


def _start(inputs: Mapping[str, Array], rows: int) -> Int[Array, " rows"]:
    return inputs["label"] if "label" in inputs else jnp.zeros(rows, jnp.int32)


def _nothing(model: Autoregressive, inputs: Mapping[str, Array]) -> Prompt:
    rows, length = len(inputs["temperature"]), model.network.num_positions
    none = jnp.zeros(rows, jnp.int32)
    return Prompt(jnp.zeros((rows, length), jnp.int32), none, none + length)


def _upper_part(model: Autoregressive, inputs: Mapping[str, Array]) -> Prompt:
    tokens = model.tokens(inputs["x"])
    length = inputs["known"] // model.patch_size * model.row_tokens
    return Prompt(tokens, length, jnp.full(len(tokens), tokens.shape[1], jnp.int32))


def _prefill(model: Autoregressive, tokens: Array, length: Array, inputs: Mapping[str, Array]) -> Any:
    if "x" not in inputs:
        return model.network.empty_cache(len(tokens), tokens.shape[1])
    return model.network.prefill(tokens[:, :-1], tokens.shape[1], _start(inputs, len(tokens)))


def _next(model: Autoregressive, token: Array, index: Array, cache: Any, inputs: Mapping[str, Array]) -> Any:
    return model.network.step(token, index, cache, _start(inputs, len(token)))


def _finish(
    model: Autoregressive, tokens: Array, length: Array, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Pictures, of the lowest level where there are no tokens yet."""
    is_there = jnp.arange(tokens.shape[1])[None] < length[:, None]
    return {"x": model.pictures(jnp.where(is_there, tokens, 0))}


def _log_prob(
    model: Autoregressive, keys: Key[Array, " batch"], inputs: dict[str, Array]
) -> dict[str, Array]:
    x = inputs["x"]
    log_prob = model.log_prob(x, _start(inputs, len(x)))
    bits = -log_prob / (math.prod(model.input_shape) * math.log(2))
    return {"log_prob": log_prob, "bits_per_dim": bits}
