"""Attention of tokens to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from flax import nnx

from artifex.generative_models.core.nn.norms import GroupNorm

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Attention(nnx.Module):
    r"""Multi-head attention: $\mathrm{softmax}(q k^T / \sqrt d)\, v$ for each head, the softmax in float32.

    Args:
        features: Of a token, in and out.
        heads: How many.
        head_features: d. Together the heads may have other than the token's features.
        use_bias: Whether queries, keys and values have biases; the output has one always.
        groups: Of a normalisation over all tokens that comes first; None for none.
        epsilon: Of that normalisation.
        rngs: Random number generators for the weights.

    References:
        Vaswani et al., *Attention Is All You Need*, 2017, section 3.2. https://arxiv.org/abs/1706.03762
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_features: int,
        *,
        use_bias: bool = True,
        groups: int | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_features
        self.heads = heads
        self.group_norm = nnx.data(
            None if groups is None else GroupNorm(features, groups, epsilon, rngs=rngs)
        )
        self.to_q = nnx.Linear(features, inner, use_bias=use_bias, rngs=rngs)
        self.to_k = nnx.Linear(features, inner, use_bias=use_bias, rngs=rngs)
        self.to_v = nnx.Linear(features, inner, use_bias=use_bias, rngs=rngs)
        self.to_out = nnx.Linear(inner, features, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens features"]) -> Float[Array, "batch tokens features"]:
        """What each token learns from all of them, to be added to it."""
        if self.group_norm is not None:
            x = self.group_norm(x)
        q, k, v = (to(x).reshape(*x.shape[:2], self.heads, -1) for to in (self.to_q, self.to_k, self.to_v))
        with jax.numpy_dtype_promotion("standard"):  # of bfloat16, which JAX's function asks to promote
            attended = jax.nn.dot_product_attention(q, k, v)
        return self.to_out(attended.reshape(*x.shape[:2], -1))


def attend_to_pixels(
    attention: Attention, x: Float[Array, "batch h w features"]
) -> Float[Array, "batch h w features"]:
    """A picture plus what its pixels learn from one another."""
    batch, height, width, features = x.shape
    return x + attention(x.reshape(batch, height * width, features)).reshape(x.shape)
