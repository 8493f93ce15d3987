"""Convolutional variational autoencoder.

The encoder halves the picture once a level with strided 2×2 convolutions. The decoder doubles it with
1×1 convolutions to four times the channels followed by depth-to-space: a transposed convolution of
kernel 2 and stride 2, as one matrix product. Its last level but one looks at 2×2 neighbourhoods, so that
blocks of pixels meet without seams: there the product is large enough to fill the machine, while the
last level's few output channels would starve it. `core/nn` runs the decoder's levels as matrix products;
`benchmarks/kernels.py` measures what that is worth, and why the encoder stays with convolutions.

References:
    Kingma and Welling, *Auto-Encoding Variational Bayes*, 2014. https://arxiv.org/abs/1312.6114
    Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network*, 2016. https://arxiv.org/abs/1609.05158
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.nn import SubpixelConv, subpixel_convs
from artifex.generative_models.core.sharding import logical_axes
from artifex.generative_models.core.specs import TensorSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

_CONV_AXES, _BIAS_AXES = logical_axes(None, None, None, "features"), logical_axes("features")

_MAX_SIDE = 2**14
_MAX_FEATURES = 2**16
_MAX_LEVELS = 14


class Encoder(nnx.Module):
    """Pictures to the mean and log-variance of a diagonal Gaussian."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        latent_dim: int,
        features: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
    ):
        channels = (input_shape[2], *features)
        self.convs = nnx.List(
            nnx.Conv(
                c_in,
                c_out,
                (2, 2),
                strides=2,
                kernel_metadata=_CONV_AXES,
                bias_metadata=_BIAS_AXES,
                rngs=rngs,
            )
            for c_in, c_out in pairwise(channels)
        )
        height, width = _halvings(input_shape, len(features))[-1]
        self.head = nnx.Linear(
            height * width * features[-1],
            2 * latent_dim,
            kernel_metadata=logical_axes("features", None),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch latent"]]:
        """Pictures to `mean` and `log_var`."""
        for conv in self.convs:
            x = nnx.relu(conv(x))
        mean, log_var = jnp.split(self.head(x.reshape(x.shape[0], -1)), 2, axis=-1)
        return {"mean": mean, "log_var": log_var}


class Decoder(nnx.Module):
    """Latents to the logits of pixel intensities."""

    def __init__(
        self,
        output_shape: tuple[int, int, int],
        latent_dim: int,
        features: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
    ):
        sizes = _halvings(output_shape, len(features))[::-1]
        self.features = features
        self.sizes = tuple(sizes)
        self.stem = nnx.Linear(
            latent_dim,
            sizes[0][0] * sizes[0][1] * features[0],
            kernel_metadata=logical_axes(None, "features"),
            bias_metadata=_BIAS_AXES,
            rngs=rngs,
        )
        mixing = max(len(features) - 2, 0)
        self.ups = nnx.List(
            SubpixelConv(c_in, c_out, 2 if level == mixing else 1, rngs=rngs)
            for level, (c_in, c_out) in enumerate(pairwise((*features, output_shape[2])))
        )

    def __call__(self, z: Float[Array, "batch latent"]) -> Float[Array, "batch h w c"]:
        """Latents to logits."""
        channels = self.features[0]
        z = z.astype(self.stem.kernel.dtype)  # of the computation, whatever a prior's noise was drawn in
        kernel = self.stem.kernel.reshape(-1, *self.sizes[0], channels)
        assert self.stem.bias is not None  # as __init__ made it
        bias = self.stem.bias.reshape(*self.sizes[0], channels)

        def stem(rows: slice, columns: slice) -> Float[Array, "batch rows columns c"]:
            part = kernel[:, rows, columns]
            x = z @ part.reshape(len(part), -1) + bias[rows, columns].reshape(1, -1)
            return nnx.relu(x).reshape(len(z), *part.shape[1:])

        return subpixel_convs(stem, self.ups, self.sizes[1:], nnx.relu)


class VAE(nnx.Module):
    """Convolutional VAE with a diagonal Gaussian posterior and a Bernoulli likelihood.

    Pictures are in [0, 1]. The model stores no random number generators.

    Args:
        input_shape: (height, width, channels) of a picture; any sizes.
        latent_dim: Size of the latent vector.
        encoder_features: Channels after each halving level, from the picture inwards.
        decoder_features: Channels before each doubling level, from the latent outwards.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: A size is not a positive integer, or larger than any picture model needs.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int,
        encoder_features: Sequence[int] = (32, 64, 128),
        decoder_features: Sequence[int] = (128, 64, 32),
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = _sizes("input_shape", input_shape, _MAX_SIDE, length=3)
        self.input_shape = (height, width, channels)
        (self.latent_dim,) = _sizes("latent_dim", [latent_dim], _MAX_FEATURES, length=1)
        self.encoder_features = _sizes("encoder_features", encoder_features, _MAX_FEATURES)
        self.decoder_features = _sizes("decoder_features", decoder_features, _MAX_FEATURES)
        self.encoder = Encoder(self.input_shape, self.latent_dim, self.encoder_features, rngs=rngs)
        self.decoder = Decoder(self.input_shape, self.latent_dim, self.decoder_features, rngs=rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {
            "input_shape": list(self.input_shape),
            "latent_dim": self.latent_dim,
            "encoder_features": list(self.encoder_features),
            "decoder_features": list(self.decoder_features),
        }

    def encode(self, x: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch latent"]]:
        """Parameters of the posterior q(z|x).

        Args:
            x: Pictures in [0, 1].

        Returns:
            `mean` and `log_var` of a diagonal Gaussian.
        """
        return self.encoder(x)

    def decode(self, z: Float[Array, "batch latent"]) -> Float[Array, "batch h w c"]:
        """Mean pictures of p(x|z), in [0, 1]."""
        return nnx.sigmoid(self.decoder(z))

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`encode`, `decode`, `reconstruct` and `generate`."""
        picture = TensorSpec(self.input_shape, jnp.float32, doc="pictures in [0, 1]")
        latent = TensorSpec((self.latent_dim,), jnp.float32, doc="latent vectors")
        temperature = TensorSpec(
            (), jnp.float32, default=1.0, doc="standard deviation of the prior's noise, from 0"
        )
        return {
            "encode": Endpoint(_encode, {"x": picture}, doc="mean and log-variance of q(z|x)"),
            "decode": Endpoint(_decode, {"z": latent}, doc="mean picture of p(x|z)"),
            "reconstruct": Endpoint(_reconstruct, {"x": picture}, doc="decode the posterior's mean"),
            "generate": Endpoint(_generate, {"temperature": temperature}, doc="decode a draw from the prior"),
        }


def _encode(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return model.encode(inputs["x"])


def _decode(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(inputs["z"])}


def _reconstruct(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(model.encode(inputs["x"])["mean"])}


def _generate(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    temperature = inputs["temperature"]
    noise = jax.vmap(lambda key: jax.random.normal(key, (model.latent_dim,), jnp.float32))(keys)
    return {"x": model.decode(temperature[:, None] * noise)}


def elbo(
    x: Float[Array, "batch h w c"],
    logits: Float[Array, "batch h w c"],
    mean: Float[Array, "batch latent"],
    log_var: Float[Array, "batch latent"],
) -> Float[Array, " batch"]:
    r"""Single-sample evidence lower bound of each picture, in nats.

    $$\log p(x|z) - \mathrm{KL}\bigl(q(z|x) \,\|\, \mathcal N(0, I)\bigr)$$
    with the Bernoulli likelihood
    $\log p(x|z) = \sum_d x_d \log \sigma(l_d) + (1 - x_d) \log(1 - \sigma(l_d))$ and the closed form
    $\mathrm{KL} = \tfrac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2)$.

    Args:
        x: Pictures in [0, 1]; grey levels count as probabilities.
        logits: What the decoder gives for one draw z of q(z|x), before the sigmoid.
        mean: Mean of q(z|x).
        log_var: Log-variance of q(z|x).

    References:
        Kingma and Welling 2014, equations 3 and 10 and appendix B. https://arxiv.org/abs/1312.6114
    """
    log_likelihood = jnp.sum(x * logits - nnx.softplus(logits), axis=(1, 2, 3))
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - 1 - log_var, axis=-1)
    return log_likelihood - kl


def _halvings(shape: tuple[int, int, int], levels: int) -> list[tuple[int, int]]:
    """(height, width) of the picture and after each halving, rounded up."""
    sizes = [shape[:2]]
    for _ in range(levels):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def _sizes(name: str, values: Any, maximum: int, length: int | None = None) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"{name}: expected a list of positive integers, got {values!r}")
    if length not in (None, len(values)) or not 1 <= len(values) <= _MAX_LEVELS:
        wanted = length or f"1 to {_MAX_LEVELS}"
        raise ConfigError(f"{name}: expected {wanted} integers, got {len(values)}")
    for value in values:
        if type(value) is not int or not 1 <= value <= maximum:
            raise ConfigError(f"{name}: expected integers from 1 to {maximum}, got {value!r}")
    return tuple(values)
