"""Vectors that tell a network the time, the class and the place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_LONGEST = 10_000  # about a period in units of 2π, as Vaswani et al. have it


def time_sinusoids(
    time: Float[Array, " batch"], features: int, *, cos_first: bool, freq_shift: float
) -> Float[Array, "batch features"]:
    r"""Sines and cosines of the time at geometric frequencies, in float32.

    $$\omega_k = 10000^{-k / (n/2 - s)}, \quad k = 0, \dots, n/2 - 1$$

    Args:
        time: Any numbers.
        features: n, even.
        cos_first: The cosines come before the sines, not after them.
        freq_shift: s, less than n/2. With 1 the lowest frequency is exactly 1/10000.

    References:
        Vaswani et al., *Attention Is All You Need*, 2017, section 3.5. https://arxiv.org/abs/1706.03762
    """
    half = features // 2
    frequencies = np.exp(-math.log(_LONGEST) * np.arange(half) / (half - freq_shift))
    angles = time.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)[None]
    waves = (jnp.cos(angles), jnp.sin(angles)) if cos_first else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, -1)


def position_sinusoids(
    height: int, width: int, features: int, row_step: float = 1.0, column_step: float = 1.0
) -> Float[Array, "height width features"]:
    """Sines and cosines of each pixel's place, in float32.

    A quarter of the features each: the sine and the cosine of the column, then those of the row.

    Args:
        height: Rows.
        width: Columns.
        features: A multiple of 4.
        row_step: Distance between neighbours in a column.
        column_step: Distance between neighbours in a row.

    References:
        Peebles and Xie, *Scalable Diffusion Models with Transformers*, 2022, section 3.2.
        https://arxiv.org/abs/2212.09748
    """
    quarter = features // 4
    frequencies = float(_LONGEST) ** -(np.arange(quarter) / quarter)

    def waves(count: int, step: float) -> np.ndarray:  # of one axis: the grid of both would be large
        angles = (np.arange(count) * step)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)

    shape = (height, width, 2 * quarter)
    columns = jnp.broadcast_to(waves(width, column_step)[None], shape)
    rows = jnp.broadcast_to(waves(height, row_step)[:, None], shape)
    return jnp.concatenate([columns, rows], -1)


class FourierFeatures(nnx.Module):
    r"""Sines, then cosines, of $2\pi w \log t$ for random frequencies w that are drawn once and kept.

    Args:
        features: Number of frequencies.
        std: Standard deviation of the frequencies.
        rngs: Random number generators for the frequencies.

    References:
        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, 2021,
        appendix C.1. https://arxiv.org/abs/2011.13456
    """

    def __init__(self, features: int, std: float, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (features,)))

    def __call__(self, time: Float[Array, " batch"]) -> Float[Array, "batch 2*features"]:
        """The time must be positive."""
        logarithm = jnp.log(time.astype(jnp.float32))
        angles = 2 * math.pi * logarithm[:, None] * self.weight[...].astype(jnp.float32)[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class TimeEmbedding(nnx.Module):
    """Two layers with SiLU between them, from waves of the time to the vector that blocks are given.

    Args:
        in_features: Number of waves.
        features: Size of the vector.
        rngs: Random number generators for the weights.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(in_features, features, rngs=rngs)
        self.linear_2 = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, waves: Float[Array, "batch waves"]) -> Float[Array, "batch features"]:
        """In the dtype of the weights."""
        return self.linear_2(nnx.silu(self.linear_1(waves.astype(self.linear_1.kernel.dtype))))


class LabelEmbedding(nnx.Module):
    """A vector for each class, and a last one for none.

    Args:
        classes: How many there are; that number itself, as a label, means none of them.
        features: Size of a vector.
        rngs: Random number generators for the weights.

    References:
        Ho and Salimans, *Classifier-Free Diffusion Guidance*, 2022, section 3.2.
        https://arxiv.org/abs/2207.12598
    """

    def __init__(self, classes: int, features: int, *, rngs: nnx.Rngs):
        self.embedding_table = nnx.Embed(classes + 1, features, rngs=rngs)

    def __call__(self, label: Array) -> Float[Array, "batch features"]:
        """A vector for each label; NaN for one that there is not."""
        return self.embedding_table(label)
