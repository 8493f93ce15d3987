"""3×3 convolutions whose form is chosen from outside; see `core/convolutions.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.convolutions import ConvShape, chosen_form, formed, made_filters

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Conv3x3(nnx.Module):
    """A 3×3 convolution with one zero on each side, in the form that is chosen for its shape.

    Args:
        in_features: Channels in.
        features: Channels out.
        use_bias: Whether a bias is added.
        doubles: Whether it is the picture with each pixel four times that is convolved.
        rngs: Random number generators for the weights.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        use_bias: bool = True,
        doubles: bool = False,
        rngs: nnx.Rngs,
    ):
        self.doubles = doubles
        draw = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(draw(rngs.params(), (3, 3, in_features, features), jnp.float32))
        self.bias = nnx.data(nnx.Param(jnp.zeros(features)) if use_bias else None)

    def __call__(self, x: Float[Array, "batch h w in"]) -> Float[Array, "batch out_h out_w out"]:
        """A picture of as many pixels, or of four times as many."""
        kernel, scale = self.kernel[...], 1 + self.doubles
        in_features, features = kernel.shape[2:]
        form = chosen_form(
            ConvShape(scale * x.shape[1], scale * x.shape[2], in_features, features, self.doubles)
        )
        dtype = jnp.promote_types(x.dtype, kernel.dtype)  # as layers of Flax compute
        filters = made_filters(kernel, self.doubles, form).astype(dtype)
        found = formed(x.astype(dtype), filters, self.doubles, form)
        return found if self.bias is None else found + self.bias[...].astype(dtype).reshape(1, 1, 1, -1)
