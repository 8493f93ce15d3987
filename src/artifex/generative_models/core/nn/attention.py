"""Attention of tokens to one another."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.nn.norms import GroupNorm

if TYPE_CHECKING:
    from jaxtyping import Array, Float


_CPU_BYTES, _CPU_BLOCK = 16 << 20, 2 << 20  # beyond which scores leave the caches, and what stays in them
_BYTES = 1 << 30  # of an accelerator's memory
_QUERIES = 32  # of a head that are taken together at least: products of fewer rows are slow


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
        return self.to_out(attend(q, k, v).reshape(*x.shape[:2], -1))


def attend(
    q: Float[Array, "batch tokens heads d"],
    k: Float[Array, "batch tokens heads d"],
    v: Float[Array, "batch tokens heads d"],
) -> Float[Array, "batch tokens heads d"]:
    r"""$\mathrm{softmax}(q k^T / \sqrt d)\, v$ of each head, the softmax in float32.

    What the scores are divided by is divided out of the result, which is smaller. Scores of many tokens are
    made for some heads and queries at a time: on a CPU two megabytes, which stay in its caches, elsewhere a
    gigabyte, or those of 32 queries of one head where that is more.
    """
    q, k, v = (x.transpose(2, 0, 1, 3) for x in (q, k, v))
    attended = jax.lax.platform_dependent(
        q,
        k,
        v,
        cpu=partial(_in_blocks, most=_CPU_BYTES, block=_CPU_BLOCK),
        default=partial(_in_blocks, most=_BYTES, block=_BYTES),
    )
    return attended.transpose(1, 2, 0, 3)


def _in_blocks(
    q: Array, k: Array, v: Array, *, most: int, block: int
) -> Float[Array, "heads batch tokens d"]:
    """Each head's values, of all scores at once if their bytes are no more than `most`, else of blocks."""
    heads, batch, tokens, d = q.shape
    a_query = 4 * batch * tokens
    if heads * tokens * a_query <= most:
        return _attended(q, k, v)
    together = max(1, block // (tokens * a_query))
    together = next(n for n in range(min(together, heads), 0, -1) if heads % n == 0)
    queries = tokens if together > 1 else min(tokens, max(_QUERIES, block // a_query))
    num_cuts = -(-tokens // queries)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, num_cuts * queries - tokens), (0, 0)))

    def of_heads(parts: tuple[Array, Array, Array]) -> Array:
        q, k, v = parts
        cut = jnp.moveaxis(q.reshape(together, batch, num_cuts, queries, d), 2, 0)
        found = jax.lax.map(lambda part: _attended(part, k, v), cut)
        return jnp.moveaxis(found, 0, 2).reshape(together, batch, num_cuts * queries, d)

    grouped = [x.reshape(heads // together, together, *x.shape[1:]) for x in (q, k, v)]
    return jax.lax.map(of_heads, tuple(grouped)).reshape(heads, *q.shape[1:])[:, :, :tokens]


def _attended(q: Array, k: Array, v: Array) -> Float[Array, "heads batch queries d"]:
    scores = jnp.einsum("hbqd,hbkd->hbqk", q, k, preferred_element_type=jnp.float32)
    likely = jnp.exp((scores - scores.max(-1, keepdims=True)) * q.shape[-1] ** -0.5)
    sums = likely.sum(-1, keepdims=True)
    values = jnp.einsum("hbqk,hbkd->hbqd", likely.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (values / sums).astype(v.dtype)


def attend_to_pixels(
    attention: Attention, x: Float[Array, "batch h w features"]
) -> Float[Array, "batch h w features"]:
    """A picture plus what its pixels learn from one another."""
    batch, height, width, features = x.shape
    return x + attention(x.reshape(batch, height * width, features)).reshape(x.shape)
