r"""Pictures of 256 levels as real numbers, on which flows have a density.

Here u = (255 x + 1/2) / 256 takes a picture to the middle of its cell of [0, 1], which `core/levels.py` fills
with noise. So samples are real numbers, half a level outside [0, 1] at most
(with logits, the share that they leave out more), and one that is rounded to 256 levels is what it would have
been without the noise.

References:
    Dinh, Sohl-Dickstein and Bengio, *Density Estimation Using Real NVP*, 2017, section 4.1.
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.levels import LEVELS

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Pixels = Float[Array, "batch h w c"]
    Changed = tuple[Pixels, Float[Array, " batch"]]

SCALINGS = ("logit", "linear", "none")


@dataclass(frozen=True)
class Scaling:
    """What is done to numbers before a flow: a bijection like those in `models/bijections.py`.

    Args:
        kind: "logit" gives logit(a + (1 - 2 a) u) of pictures, with u as above; "linear" gives 2 u - 1;
            "none" gives numbers as they are.
        boundary: The share a of [0, 1] at each end that logits leave out.
    """

    kind: str
    boundary: float

    def forward(self, x: Pixels) -> Changed:
        """Numbers as a flow takes them, and the log-determinant [batch]."""
        if self.kind == "none":
            return x, jnp.zeros(len(x), jnp.float32)
        u = (x * (LEVELS - 1) + 0.5) / LEVELS
        if self.kind == "linear":
            return 2 * u - 1, self._of_linear(x)
        share = self.boundary + (1 - 2 * self.boundary) * u
        y = jnp.log(share) - jnp.log1p(-share)
        return y, -self._log_slopes(y)

    def inverse(self, y: Pixels) -> Changed:
        """Numbers of which `forward` gives these, and the log-determinant [batch]."""
        if self.kind == "none":
            return y, jnp.zeros(len(y), jnp.float32)
        if self.kind == "linear":
            u, log_det = (y + 1) / 2, -self._of_linear(y)
        else:
            u = (nnx.sigmoid(y) - self.boundary) / (1 - 2 * self.boundary)
            log_det = self._log_slopes(y)
        return (u * LEVELS - 0.5) / (LEVELS - 1), log_det

    def _of_linear(self, x: Pixels) -> Float[Array, " batch"]:
        return jnp.full(len(x), math.prod(x.shape[1:]) * math.log(2 * (LEVELS - 1) / LEVELS), jnp.float32)

    def _log_slopes(self, y: Pixels) -> Float[Array, " batch"]:
        """The log-determinant of the way from logits to pictures: sigmoid' = sigmoid(y) sigmoid(-y)."""
        constant = math.log(LEVELS / ((LEVELS - 1) * (1 - 2 * self.boundary)))
        return jnp.sum(constant - nnx.softplus(y) - nnx.softplus(-y), axis=(1, 2, 3))
