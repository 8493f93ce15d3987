"""Pictures of 256 levels as points of cells, of which a density tells the probability.

A density of real numbers says nothing of a picture whose numbers are levels. Noise that fills the cell of
each level makes the mean log-density of noisy pictures, times the volume of the cells, a lower bound of the
log-probability of pictures. Published bits a dimension are of that bound.

References:
    Theis, van den Oord and Bethge, *A Note on the Evaluation of Generative Models*, 2016, section 3.1.
    https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

LEVELS = 256


def dequantized(
    x: Float[Array, "batch h w c"], keys: Key[Array, " batch"], image_range: tuple[float, float] = (0.0, 1.0)
) -> Float[Array, "batch h w c"]:
    """Pictures of 256 levels in `image_range`, with uniform noise that fills the cell of each number."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], jnp.float32))(keys)
    return x + (noise - 0.5) * _width(image_range)


def bits_of_a_cell(image_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """What a cell's volume adds to the bits a dimension of a density over `image_range`."""
    return -math.log2(_width(image_range))


def _width(image_range: tuple[float, float]) -> float:
    low, high = image_range
    return (high - low) / (LEVELS - 1)
