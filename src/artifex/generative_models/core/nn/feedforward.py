"""The layers of a transformer that look at one token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.nn.activations import ACTIVATIONS

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Whether half of what goes in is the gate of the other half, and the activation of the gate.
FEED_FORWARDS = {
    "gelu": (False, ACTIVATIONS["gelu"]),
    "gelu-approximate": (False, ACTIVATIONS["gelu-approximate"]),
    "geglu": (True, ACTIVATIONS["gelu"]),
    "swiglu": (True, ACTIVATIONS["silu"]),
    "linear-silu": (False, ACTIVATIONS["silu"]),
}


class FeedForward(nnx.Module):
    """Two layers, the inner one of four times the features.

    Args:
        features: Of a token, in and out.
        activation: One of `FEED_FORWARDS`.
        rngs: Random number generators for the weights.

    References:
        Shazeer, *GLU Variants Improve Transformer*, 2020, equation 6, for gates. https://arxiv.org/abs/2002.05202
    """

    def __init__(self, features: int, activation: str, *, rngs: nnx.Rngs):
        gated, _ = FEED_FORWARDS[activation]
        self.activation = activation
        self.proj_in = nnx.Linear(features, (8 if gated else 4) * features, rngs=rngs)
        self.proj_out = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows features"]) -> Float[Array, "*rows features"]:
        """The value comes before its gate."""
        gated, activation = FEED_FORWARDS[self.activation]
        x = self.proj_in(x)
        if gated:
            x, gate = jnp.split(x, 2, -1)
            return self.proj_out(x * activation(gate))
        return self.proj_out(activation(x))
