"""Convolutional variational autoencoder.

The encoder halves the picture once a level with strided 2×2 convolutions. The decoder doubles it with
1×1 convolutions to four times the channels followed by depth-to-space: a transposed convolution of
kernel 2 and stride 2, as one matrix product. Its last level but one looks at 2×2 neighbourhoods, so that
blocks of pixels meet without seams: there the product is large enough to fill the machine, while the
last level's few output channels would starve it. `core/nn` runs the decoder's levels as matrix products;
`benchmarks/kernels.py` measures what that is worth, and why the encoder stays with convolutions.

References:
    Kingma and Welling, *Auto-Encoding Variational Bayes*, 2014. https://arxiv.org/abs/1312.6114
    Sohn, Lee and Yan, *Learning Structured Output Representation using Deep Conditional Generative Models*,
    2015. https://papers.nips.cc/paper/5775
    Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network*, 2016. https://arxiv.org/abs/1609.05158
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import RowNumbers
from artifex.generative_models.core.nn import SubpixelConv, subpixel_convs
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.sharding import logical_axes
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import check_integers

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_CONV_AXES, _BIAS_AXES = logical_axes(None, None, None, "features"), logical_axes("features")

_MAX_SIDE = 2**14
_MAX_FEATURES = 2**16
_MAX_LEVELS = 14


class Encoder(nnx.Module):
    """Pictures to the mean and log-variance of a diagonal Gaussian.

    The class adds to what the first convolution gives, as if it came with the picture in channels of its own.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        latent_dim: int,
        features: tuple[int, ...],
        num_labels: int = 0,
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
        axes = logical_axes(None, "features")
        self.told = (
            nnx.Linear(num_labels, features[0], use_bias=False, kernel_metadata=axes, rngs=rngs)
            if num_labels
            else None
        )

    def __call__(
        self, x: Float[Array, "batch h w c"], told: Float[Array, "batch labels"] | None = None
    ) -> dict[str, Float[Array, "batch latent"]]:
        """Pictures, and their classes as one-hot vectors where there are some, to `mean` and `log_var`."""
        for level, conv in enumerate(self.convs):
            x = conv(x)
            if level == 0 and self.told is not None:
                assert told is not None
                x = x + self.told(told.astype(x.dtype))[:, None, None]
            x = nnx.relu(x)
        mean, log_var = jnp.split(self.head(x.reshape(x.shape[0], -1)), 2, axis=-1)
        return {"mean": mean, "log_var": log_var}


class Decoder(nnx.Module):
    """Latents, followed by one-hot vectors of the class where there are some, to logits of intensities."""

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

    Pictures are in [0, 1]. With labels it is a conditional VAE: the encoder and the decoder are told the
    class, or none of them. The model stores no random number generators.

    Args:
        input_shape: (height, width, channels) of a picture; any sizes.
        latent_dim: Size of the latent vector.
        encoder_features: Channels after each halving level, from the picture inwards.
        decoder_features: Channels before each doubling level, from the latent outwards.
        num_labels: Classes that it is told; 0 where it is told none.
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
        num_labels: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = _sizes("input_shape", input_shape, _MAX_SIDE, length=3)
        self.input_shape = (height, width, channels)
        (self.latent_dim,) = _sizes("latent_dim", [latent_dim], _MAX_FEATURES, length=1)
        self.encoder_features = _sizes("encoder_features", encoder_features, _MAX_FEATURES)
        self.decoder_features = _sizes("decoder_features", decoder_features, _MAX_FEATURES)
        check_integers({"num_labels": num_labels}, "num_labels", minimum=0)
        self.num_labels = num_labels
        self.encoder = Encoder(
            self.input_shape, self.latent_dim, self.encoder_features, num_labels, rngs=rngs
        )
        told_dim = self.latent_dim + num_labels
        self.decoder = Decoder(self.input_shape, told_dim, self.decoder_features, rngs=rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        config: dict[str, Any] = {
            "input_shape": list(self.input_shape),
            "latent_dim": self.latent_dim,
            "encoder_features": list(self.encoder_features),
            "decoder_features": list(self.decoder_features),
        }
        return {**config, "num_labels": self.num_labels} if self.num_labels else config

    def encode(
        self, x: Float[Array, "batch h w c"], label: Int[Array, " batch"] | None = None
    ) -> dict[str, Float[Array, "batch latent"]]:
        """Parameters of the posterior q(z|x), or q(z|x, label).

        Args:
            x: Pictures in [0, 1].
            label: Their classes, of a model with labels; `num_labels` stands for none of them, as does None.

        Returns:
            `mean` and `log_var` of a diagonal Gaussian.
        """
        return self.encoder(x, self._told(label, len(x)))

    def logits(
        self, z: Float[Array, "batch latent"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch h w c"]:
        """Mean pictures of p(x|z), or p(x|z, label), before the sigmoid."""
        told = self._told(label, len(z))
        return self.decoder(z if told is None else jnp.concatenate([z, told.astype(z.dtype)], axis=1))

    def decode(
        self, z: Float[Array, "batch latent"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch h w c"]:
        """Mean pictures of p(x|z), or p(x|z, label), in [0, 1]."""
        return nnx.sigmoid(self.logits(z, label))

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`encode`, `decode`, `reconstruct`, `generate` and `elbo`."""
        latent = TensorSpec((self.latent_dim,), jnp.float32, doc="latent vectors")
        x = {"x": TensorSpec(self.input_shape, jnp.float32, doc="pictures in [0, 1]")}
        temperature = TensorSpec(
            (), jnp.float32, default=1.0, doc="standard deviation of the prior's noise, from 0", minimum=0
        )
        says, label = None, {}
        if self.num_labels:
            says = RowNumbers.of(label_fields(self.num_labels, True), unsaid={"label": self.num_labels})
            label = says.inputs
        return {
            "encode": Endpoint(_encode, x | label, doc="mean and log-variance of q(z|x)", says=says),
            "decode": Endpoint(_decode, {"z": latent} | label, doc="mean picture of p(x|z)", says=says),
            "reconstruct": Endpoint(_reconstruct, x | label, doc="decode the posterior's mean", says=says),
            "generate": Endpoint(
                _generate, {"temperature": temperature} | label, doc="decode a draw from the prior", says=says
            ),
            "elbo": Endpoint(
                _elbo,
                x | label,
                doc="lower bound of the log-probability, each pixel being 1 by the chance of its grey level",
                says=says,
                ahead=False,
            ),
        }

    def _told(self, label: Int[Array, " batch"] | None, rows: int) -> Float[Array, "batch labels"] | None:
        """One-hot vectors of classes, all 0 of none of them."""
        if not self.num_labels:
            return None
        label = jnp.full(rows, self.num_labels, jnp.int32) if label is None else label
        return jax.nn.one_hot(label, self.num_labels, dtype=jnp.float32)


def _encode(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return model.encode(inputs["x"], inputs.get("label"))


def _decode(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(inputs["z"], inputs.get("label"))}


def _reconstruct(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    label = inputs.get("label")
    return {"x": model.decode(model.encode(inputs["x"], label)["mean"], label)}


def _generate(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    temperature = inputs["temperature"]
    return {"x": model.decode(temperature[:, None] * _noise(model, keys), inputs.get("label"))}


def _elbo(model: VAE, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    """Of one draw of z for each picture."""
    x, label = inputs["x"].astype(jnp.float32), inputs.get("label")
    posterior = model.encode(inputs["x"], label)
    mean, log_var = (posterior[name].astype(jnp.float32) for name in ("mean", "log_var"))
    z = mean + jnp.exp(0.5 * log_var) * _noise(model, keys)
    bound = elbo(x, model.logits(z, label).astype(jnp.float32), mean, log_var)
    return {"elbo": bound, "bits_per_dim": -bound / (math.prod(model.input_shape) * math.log(2))}


def _noise(model: VAE, keys: Key[Array, " batch"]) -> Float[Array, "batch latent"]:
    return jax.vmap(lambda key: jax.random.normal(key, (model.latent_dim,), jnp.float32))(keys)


def elbo(
    x: Float[Array, "batch h w c"],
    logits: Float[Array, "batch h w c"],
    mean: Float[Array, "batch latent"],
    log_var: Float[Array, "batch latent"],
    beta: float = 1.0,
) -> Float[Array, " batch"]:
    r"""Single-sample evidence lower bound of each picture, in nats.

    $$\log p(x|z) - \beta \, \mathrm{KL}\bigl(q(z|x) \,\|\, \mathcal N(0, I)\bigr)$$
    with the Bernoulli likelihood
    $\log p(x|z) = \sum_d x_d \log \sigma(l_d) + (1 - x_d) \log(1 - \sigma(l_d))$ and the closed form
    $\mathrm{KL} = \tfrac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2)$.

    Args:
        x: Pictures in [0, 1]; grey levels count as probabilities.
        logits: What the decoder gives for one draw z of q(z|x), before the sigmoid.
        mean: Mean of q(z|x).
        log_var: Log-variance of q(z|x).
        beta: What the divergence counts. More than 1 gives latents whose numbers say different things, and
            is the objective of a β-VAE; only with 1 is it a bound of log p(x).

    References:
        Kingma and Welling 2014, equations 3 and 10 and appendix B. https://arxiv.org/abs/1312.6114
        Higgins et al., *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*,
        2017, equation 4. https://openreview.net/forum?id=Sy2fzU9gl
    """
    log_likelihood = jnp.sum(x * logits - nnx.softplus(logits), axis=(1, 2, 3))
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_var) - 1 - log_var, axis=-1)
    return log_likelihood - beta * kl


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
