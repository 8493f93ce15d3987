"""Invertible layers with a log-determinant that is cheap, of which flows are made.

Each has `forward` and `inverse`, which give what they are named after and the log-determinant of that map's
Jacobian, [batch]. Both compute in float32 from the same weights, whatever these are stored in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax.scipy.linalg import solve_triangular

from artifex.generative_models.core.nn import Conv3x3, LabelEmbedding

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    Pixels = Float[Array, "batch h w c"]
    Changed = tuple[Pixels, Float[Array, " batch"]]

_SPREAD = 0.2  # of what mixes channels before training


class ActNorm(nnx.Module):
    r"""A scale and a shift of each channel, $y = (x + b) \odot e^s$.

    Args:
        channels: How many.

    References:
        Kingma and Dhariwal 2018, section 3.1. https://arxiv.org/abs/1807.03039
    """

    def __init__(self, channels: int):
        self.bias = nnx.Param(jnp.zeros(channels))
        self.log_scale = nnx.Param(jnp.zeros(channels))

    def forward(self, x: Pixels) -> Changed:
        """Scaled pixels."""
        bias, log_scale = (_as_pixel(values) for values in (self.bias, self.log_scale))
        return (x + bias) * jnp.exp(log_scale), _of_each_pixel(x, jnp.sum(log_scale))

    def inverse(self, y: Pixels) -> Changed:
        """Pixels of which `forward` gives these."""
        bias, log_scale = (_as_pixel(values) for values in (self.bias, self.log_scale))
        return y * jnp.exp(-log_scale) - bias, _of_each_pixel(y, -jnp.sum(log_scale))


class InvertibleConv(nnx.Module):
    r"""A 1×1 convolution with the matrix $W = R L (U + \operatorname{diag} e^s)$.

    R turns the order of the channels round, L is lower triangular with ones on its diagonal, and U is upper
    triangular with zeros there. So $\log |\det W|$ is the sum of s, and the inverse takes two triangular
    systems of a few channels.

    Args:
        channels: How many.
        rngs: Random number generators for the weights.

    References:
        Kingma and Dhariwal 2018, section 3.2. https://arxiv.org/abs/1807.03039
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        draw = nnx.initializers.normal(_SPREAD)
        self.lower = nnx.Param(draw(rngs.params(), (channels, channels), jnp.float32))
        self.upper = nnx.Param(draw(rngs.params(), (channels, channels), jnp.float32))
        self.log_scale = nnx.Param(jnp.zeros(channels))

    def forward(self, x: Pixels) -> Changed:
        """Mixed channels."""
        lower, upper, log_scale = self._parts
        return x[..., ::-1] @ (lower @ upper), _of_each_pixel(x, jnp.sum(log_scale))

    def inverse(self, y: Pixels) -> Changed:
        """Channels of which `forward` gives these."""
        lower, upper, log_scale = self._parts
        right = solve_triangular(
            lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True, unit_diagonal=True
        )
        matrix = solve_triangular(upper, right)
        return (y @ matrix)[..., ::-1], _of_each_pixel(y, -jnp.sum(log_scale))

    @property
    def _parts(self) -> tuple[Array, Array, Array]:
        lower, upper, log_scale = (
            values[...].astype(jnp.float32) for values in (self.lower, self.upper, self.log_scale)
        )
        ones = jnp.eye(len(lower), dtype=lower.dtype)
        return jnp.tril(lower, -1) + ones, jnp.triu(upper, 1) + jnp.diag(jnp.exp(log_scale)), log_scale


class AffineCoupling(nnx.Module):
    r"""A scale and a shift of half of the channels, which a network reads off the others and the class.

    $y_b = x_b \odot e^{s(x_a)} + t(x_a)$, and $y_a = x_a$. The log-scale is bounded, $s = m \tanh(r / m)$.

    Args:
        channels: How many, from 2.
        features: Channels of the network.
        num_labels: Classes; that number itself, as a label, means none of them.
        max_log_scale: The bound m.
        rngs: Random number generators for the weights.

    References:
        Dinh et al. 2017, section 3.2. https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self, channels: int, features: int, num_labels: int, max_log_scale: float, *, rngs: nnx.Rngs
    ):
        self.num_kept = channels // 2
        self.max_log_scale = max_log_scale
        self.first = Conv3x3(self.num_kept, features, rngs=rngs)
        self.labels = LabelEmbedding(num_labels, features, rngs=rngs)
        draw = nnx.initializers.he_normal()
        self.kernel = nnx.Param(draw(rngs.params(), (features, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features))
        self.last = _zero_conv(features, 2 * (channels - self.num_kept), rngs=rngs)

    def forward(self, x: Pixels, label: Int[Array, " batch"]) -> Changed:
        """Pixels of which half of the channels are changed."""
        kept, changed = self._halves(x)
        log_scale, shift = self._read(kept, label)
        y = jnp.concatenate([kept, changed * jnp.exp(log_scale) + shift], axis=-1)
        return y, jnp.sum(log_scale, axis=(1, 2, 3))

    def inverse(self, y: Pixels, label: Int[Array, " batch"]) -> Changed:
        """Pixels of which `forward` gives these."""
        kept, changed = self._halves(y)
        log_scale, shift = self._read(kept, label)
        x = jnp.concatenate([kept, (changed - shift) * jnp.exp(-log_scale)], axis=-1)
        return x, -jnp.sum(log_scale, axis=(1, 2, 3))

    def _halves(self, x: Pixels) -> tuple[Pixels, Pixels]:
        return x[..., : self.num_kept], x[..., self.num_kept :]

    def _read(self, kept: Pixels, label: Int[Array, " batch"]) -> tuple[Pixels, Pixels]:
        hidden = nnx.relu(self.first(kept) + _label_pixels(self.labels, label))
        hidden = nnx.relu(hidden @ self.kernel[...].astype(hidden.dtype) + _as_pixel(self.bias))
        raw, shift = jnp.split(self.last(hidden), 2, axis=-1)
        return self.max_log_scale * jnp.tanh(raw / self.max_log_scale), shift


class SplitPrior(nnx.Module):
    r"""The Gaussian of channels that leave the flow, which the channels that stay and the class tell.

    As a layer it standardises them: $z = (x - \mu) \odot e^{-s}$, where s is the log of the deviation.

    Args:
        num_kept: Channels that stay.
        channels: Channels that leave.
        num_labels: Classes; that number itself, as a label, means none of them.
        rngs: Random number generators for the weights.

    References:
        Dinh et al. 2017, section 3.6. https://arxiv.org/abs/1605.08803
        Kingma and Dhariwal 2018, section 3. https://arxiv.org/abs/1807.03039
    """

    def __init__(self, num_kept: int, channels: int, num_labels: int, *, rngs: nnx.Rngs):
        self.head = _zero_conv(num_kept, 2 * channels, rngs=rngs)
        self.labels = _zero_labels(num_labels, 2 * channels, rngs=rngs)

    def forward(self, x: Pixels, kept: Pixels, label: Int[Array, " batch"]) -> Changed:
        """Noise of deviation 1, of the channels that leave."""
        return _standardised(x, *self._moments(kept, label))

    def inverse(self, z: Pixels, kept: Pixels, label: Int[Array, " batch"]) -> Changed:
        """The channels, of noise."""
        return _spread(z, *self._moments(kept, label))

    def _moments(self, kept: Pixels, label: Int[Array, " batch"]) -> list[Pixels]:
        return jnp.split(self.head(kept) + _label_pixels(self.labels, label), 2, axis=-1)


class TopPrior(nnx.Module):
    """The Gaussian of what comes out of the flow's last level, which the class tells, of each number its own.

    As a layer it standardises, like `SplitPrior`.

    Args:
        shape: Shape [h, w, c].
        num_labels: Classes; that number itself, as a label, means none of them.
        rngs: Random number generators for the weights.
    """

    def __init__(self, shape: tuple[int, int, int], num_labels: int, *, rngs: nnx.Rngs):
        height, width, channels = self.shape = shape
        self.labels = _zero_labels(num_labels, 2 * height * width * channels, rngs=rngs)

    def forward(self, x: Pixels, label: Int[Array, " batch"]) -> Changed:
        """Noise of deviation 1."""
        return _standardised(x, *self._moments(label))

    def inverse(self, z: Pixels, label: Int[Array, " batch"]) -> Changed:
        """What comes out of the level, of noise."""
        return _spread(z, *self._moments(label))

    def _moments(self, label: Int[Array, " batch"]) -> list[Pixels]:
        table = self.labels(label).astype(jnp.float32)
        return [part.reshape(-1, *self.shape) for part in jnp.split(table, 2, axis=-1)]


def squeezed(x: Pixels, factor: int) -> Pixels:
    """Blocks of so many pixels a side as channels of one."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // factor, width // factor, -1)


def unsqueezed(x: Pixels, factor: int) -> Pixels:
    """The pixels of which `squeezed` gives these."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * factor, width * factor, -1)


def _standardised(x: Pixels, mean: Pixels, log_std: Pixels) -> Changed:
    return (x - mean) * jnp.exp(-log_std), -jnp.sum(log_std, axis=(1, 2, 3))


def _spread(z: Pixels, mean: Pixels, log_std: Pixels) -> Changed:
    return mean + z * jnp.exp(log_std), jnp.sum(log_std, axis=(1, 2, 3))


def _zero_conv(in_features: int, features: int, *, rngs: nnx.Rngs) -> Conv3x3:
    """A convolution that gives zeros before training, so that layers begin as the identity."""
    conv = Conv3x3(in_features, features, rngs=rngs)
    conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    return conv


def _zero_labels(num_labels: int, features: int, *, rngs: nnx.Rngs) -> LabelEmbedding:
    labels = LabelEmbedding(num_labels, features, rngs=rngs)
    table = labels.embedding_table.embedding
    table[...] = jnp.zeros_like(table[...])
    return labels


def _label_pixels(labels: LabelEmbedding, label: Int[Array, " batch"]) -> Pixels:
    return labels(label).astype(jnp.float32)[:, None, None, :]


def _as_pixel(values: nnx.Param) -> Float[Array, "1 1 1 c"]:
    return values[...].astype(jnp.float32).reshape(1, 1, 1, -1)


def _of_each_pixel(x: Pixels, log_det: Float[Array, ""]) -> Float[Array, " batch"]:
    batch, height, width, _ = x.shape
    return jnp.full(batch, height * width * log_det)
