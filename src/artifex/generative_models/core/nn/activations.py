"""Activations by the names that configs give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]

# PyTorch's GELU is the exact one unless asked otherwise, JAX's the approximation by tanh.
ACTIVATIONS: dict[str, Activation] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu-approximate": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
