"""The transformer that tells what comes next in a sequence, all of it at once or a token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.nn.feedforward import FeedForward
from artifex.generative_models.core.nn.norms import LayerNorm

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    # Of each layer the keys and the values of all positions, [batch, heads, d, positions].
    Cache = tuple[tuple[Array, Array], ...]

_STD = 0.02  # of weights at the start
_QUERIES = 64  # that are taken together: those of one part look at no keys after it


class CausalAttention(nnx.Module):
    r"""Multi-head attention in which each token sees itself and those before it.

    Args:
        features: Of a token, in and out.
        heads: How many; a divisor of the features.
        std: Standard deviation of the last layer's weights at the start.
        rngs: Random number generators for the weights.

    References:
        Vaswani et al., *Attention Is All You Need*, 2017, section 3.2. https://arxiv.org/abs/1706.03762
    """

    def __init__(self, features: int, heads: int, std: float, *, rngs: nnx.Rngs):
        self.heads = heads
        self.to_qkv = nnx.Linear(features, 3 * features, kernel_init=nnx.initializers.normal(_STD), rngs=rngs)
        self.to_out = nnx.Linear(features, features, kernel_init=nnx.initializers.normal(std), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> tuple[Float[Array, "batch tokens features"], tuple[Array, Array]]:
        """What each token learns, and the keys and the values of all of them."""
        batch, tokens, features = x.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, -1).transpose(0, 2, 1, 3)
            for part in jnp.split(self.to_qkv(x), 3, -1)
        )
        together = -(-tokens // -(-tokens // _QUERIES))
        ends = range(together, tokens + together, together)
        parts = [_attended(q[:, :, i - together : i], k[:, :, :i], v[:, :, :i], i - together) for i in ends]
        attended = jnp.concatenate(parts, 2).transpose(0, 2, 1, 3).reshape(batch, tokens, features)
        return self.to_out(attended), (k.swapaxes(2, 3), v.swapaxes(2, 3))

    def step(
        self, x: Float[Array, "batch features"], position: Int[Array, " batch"], cache: tuple[Array, Array]
    ) -> tuple[Float[Array, "batch features"], tuple[Array, Array]]:
        """What the token at a position learns, and the cache with its key and value."""
        q, k, v = (part.reshape(len(x), self.heads, -1) for part in jnp.split(self.to_qkv(x), 3, -1))
        keys, values = written(cache, (k, v), position)
        q = q * q.shape[-1] ** -0.5
        scores = jnp.einsum("bhd,bhdk->bhk", q, keys, preferred_element_type=jnp.float32)
        is_seen = jnp.arange(keys.shape[3])[None, None] <= position[:, None, None]
        likely = _likely(jnp.where(is_seen, scores, -jnp.inf))
        found = jnp.einsum(
            "bhk,bhdk->bhd", likely.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        found = (found / likely.sum(-1, keepdims=True)).astype(x.dtype)
        return self.to_out(found.reshape(x.shape)), (keys, values)


def written(
    cache: tuple[Array, ...], new: tuple[Array, ...], position: Int[Array, " batch"]
) -> tuple[Array, ...]:
    """Arrays [batch, ..., positions] with others [batch, ...] put in at each row's position.

    XLA's CPU backend copies all of an array that it scatters into, or that it updates within a fusion. There
    rows are put in one after the other, out of what no fusion may take.
    """

    def by_row(cache: tuple[Array, ...], new: tuple[Array, ...], position: Array) -> tuple[Array, ...]:
        def put(row: Array, cache: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(
                jax.lax.dynamic_update_slice(old, one, (row, *[0] * (old.ndim - 2), position[row]))
                for old, one in zip(cache, _row_of(new, row), strict=True)
            )

        return jax.lax.fori_loop(0, len(position), put, cache)

    def scattered(cache: tuple[Array, ...], new: tuple[Array, ...], position: Array) -> tuple[Array, ...]:
        rows = jnp.arange(len(position))
        return tuple(
            old.at[rows, ..., position].set(one, unique_indices=True, mode="drop")
            for old, one in zip(cache, new, strict=True)
        )

    return jax.lax.platform_dependent(cache, new, position, cpu=by_row, default=scattered)


def _row_of(arrays: tuple[Array, ...], row: Array) -> tuple[Array, ...]:
    """One row of each, [1, ..., 1]."""
    rows = tuple(jax.lax.dynamic_slice_in_dim(array, row, 1)[..., None] for array in arrays)
    return jax.lax.optimization_barrier(rows)


def _likely(scores: Float[Array, "*shape keys"]) -> Float[Array, "*shape keys"]:
    """The softmax but for its denominator, which is cheaper to divide by later."""
    return jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))


def _attended(q: Array, k: Array, v: Array, first: int) -> Float[Array, "batch heads queries d"]:
    """The values that queries see, the first of which stands at a position."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    is_seen = jnp.arange(k.shape[2])[None] <= first + jnp.arange(q.shape[2])[:, None]
    likely = _likely(jnp.where(is_seen[None, None], scores, -jnp.inf))
    values = jnp.einsum("bhqk,bhkd->bhqd", likely.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (values / likely.sum(-1, keepdims=True)).astype(v.dtype)


class CausalBlock(nnx.Module):
    """A layer of the transformer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Args:
        features: Of a token.
        heads: Of the attention.
        epsilon: Of the normalisations.
        std: Standard deviation of the weights that add to `x`, at the start.
        rngs: Random number generators for the weights.
    """

    def __init__(self, features: int, heads: int, epsilon: float, std: float, *, rngs: nnx.Rngs):
        self.norm_1 = LayerNorm(features, epsilon, rngs=rngs)
        self.attention = CausalAttention(features, heads, std, rngs=rngs)
        self.norm_2 = LayerNorm(features, epsilon, rngs=rngs)
        self.feed_forward = FeedForward(features, "gelu-approximate", rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> tuple[Float[Array, "batch tokens features"], tuple[Array, Array]]:
        """The tokens, and their keys and values."""
        found, cache = self.attention(self.norm_1(x))
        x = x + found
        return x + self.feed_forward(self.norm_2(x)), cache

    def step(
        self, x: Float[Array, "batch features"], position: Int[Array, " batch"], cache: tuple[Array, Array]
    ) -> tuple[Float[Array, "batch features"], tuple[Array, Array]]:
        """The token at a position, and the cache with its key and value."""
        found, cache = self.attention.step(self.norm_1(x), position, cache)
        x = x + found
        return x + self.feed_forward(self.norm_2(x)), cache


class CausalTransformer(nnx.Module):
    """The decoder of GPT-2: learned positions, normalisations before the layers and after the last.

    With starts, a sequence begins with one of them, such as that of its class, which stands at position 0 in
    place of a symbol; without, with its first symbol.

    Args:
        vocab_size: Symbols that there are.
        num_positions: The most tokens that it sees, a start included.
        features: Of a token.
        num_layers: How many blocks.
        num_heads: Of the attention; a divisor of the features.
        num_starts: How many starts there are; 0 for none.
        tied: Whether symbols are told by the vectors that stand for them; else a layer tells them.
        epsilon: Of the normalisations.
        rngs: Random number generators for the weights.

    References:
        Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019, section 2.3.
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
        Press and Wolf, *Using the Output Embedding to Improve Language Models*, 2017, for tied weights.
        https://arxiv.org/abs/1608.05859
    """

    def __init__(
        self,
        vocab_size: int,
        num_positions: int,
        features: int,
        num_layers: int,
        num_heads: int,
        *,
        num_starts: int = 0,
        tied: bool = True,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        normal = nnx.initializers.normal(_STD)
        self.vocab_size, self.num_positions, self.num_starts = vocab_size, num_positions, num_starts
        self.symbols = nnx.Embed(vocab_size, features, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Embed(num_positions, features, embedding_init=normal, rngs=rngs)
        self.starts = nnx.data(
            nnx.Embed(num_starts, features, embedding_init=normal, rngs=rngs) if num_starts else None
        )
        std = _STD / (2 * num_layers) ** 0.5
        self.blocks = nnx.List(
            CausalBlock(features, num_heads, epsilon, std, rngs=rngs) for _ in range(num_layers)
        )
        self.norm = LayerNorm(features, epsilon, rngs=rngs)
        self.head = nnx.data(
            None if tied else nnx.Linear(features, vocab_size, use_bias=False, kernel_init=normal, rngs=rngs)
        )

    def __call__(
        self, tokens: Int[Array, "batch tokens"], start: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch tokens vocab"]:
        """Unnormalised log-probabilities, float32: with a start of each token, without of the one after it.

        Args:
            tokens: Symbols; NaN is what follows one that there is not.
            start: Which start, where there are starts.
        """
        return self._logits(self._whole(tokens if start is None else tokens[:, :-1], start)[0])

    def prefill(
        self, tokens: Int[Array, "batch tokens"], size: int, start: Int[Array, " batch"] | None = None
    ) -> Cache:
        """A cache of a size with the keys and the values of a start, if any, and tokens."""
        _, found = self._whole(tokens, start)
        empty = self.empty_cache(len(tokens), size)
        return jax.tree.map(lambda all_, some: all_.at[..., : some.shape[-1]].set(some), empty, found)

    def empty_cache(self, batch: int, size: int) -> Cache:
        """A cache for so many tokens, a start included, in which nothing has been written."""
        heads, kernel = self.blocks[0].attention.heads, self.blocks[0].attention.to_qkv.kernel[...]
        zeros = jnp.zeros((batch, heads, kernel.shape[0] // heads, size), kernel.dtype)
        return tuple((zeros, zeros) for _ in self.blocks)

    def step(
        self,
        token: Int[Array, " batch"],
        index: Int[Array, " batch"],
        cache: Cache,
        start: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Unnormalised log-probabilities, float32, of the token of an index, and the cache for the next.

        Args:
            token: The token before it; with a start and at index 0 it is not read.
            index: 0 for the first, which only a start can come before.
            cache: With what came before that token.
            start: Which start, where there are starts.
        """
        x = _vectors(self.symbols, token)
        if start is None:
            position = index - 1
        else:
            assert self.starts is not None
            position = index
            x = jnp.where((index == 0)[:, None], _vectors(self.starts, start), x)
        x = x + _vectors(self.positions, position)
        parts = []
        for block, part in zip(self.blocks, cache, strict=True):
            x, part = block.step(x, position, part)
            parts.append(part)
        return self._logits(x), tuple(parts)

    def _whole(
        self, tokens: Array, start: Array | None
    ) -> tuple[Float[Array, "batch tokens features"], Cache]:
        x = _vectors(self.symbols, tokens)
        if start is not None:
            assert self.starts is not None
            x = jnp.concatenate([_vectors(self.starts, start)[:, None], x], 1)
        x = x + self.positions.embedding[...][None, : x.shape[1]]
        parts = []
        for block in self.blocks:
            x, part = block(x)
            parts.append(part)
        return x, tuple(parts)

    def _logits(self, x: Float[Array, "*rows features"]) -> Float[Array, "*rows vocab"]:
        x = self.norm(x)
        table = self.symbols.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(x, table, preferred_element_type=jnp.float32)


def _vectors(embedding: nnx.Embed, which: Int[Array, "*shape"]) -> Float[Array, "*shape features"]:
    """Of each number its vector, in the dtype of the weights; NaN of one that there is not."""
    return (
        embedding.embedding[...].at[which].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )
