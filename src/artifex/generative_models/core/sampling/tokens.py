"""The loop of everything that is drawn a token at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from artifex.generative_models.core.sampling.choosing import chosen_tokens
from artifex.generative_models.core.sampling.loop import Rewritable

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key


class Prompt(NamedTuple):
    """What rows begin with, and how long they may become.

    Args:
        tokens: The first tokens, and anything in place of those that are to be drawn.
        length: How many are given.
        stop: How many there may be in the end, at most the width of `tokens`.
    """

    tokens: Int[Array, "rows length"]
    length: Int[Array, " rows"]
    stop: Int[Array, " rows"]


class TokenState(NamedTuple):
    """Where a row is.

    Args:
        tokens: Those that are given or drawn, and anything after them.
        length: How many are given or drawn.
        stop: At how many the row is done.
        log_prob: The natural logarithm of the probability that the network gives to what was drawn.
        step: Tokens that were drawn.
        written: What the network remembers, and which symbols were there, bool [rows, vocab].
    """

    tokens: Int[Array, "rows length"]
    length: Int[Array, " rows"]
    stop: Int[Array, " rows"]
    log_prob: Float[Array, " rows"]
    step: Int[Array, " rows"]
    written: Rewritable


@dataclass(frozen=True)
class TokenLoop:
    """Draws tokens one after the other, each row at its own place, of its own prompt and in its own way.

    Besides what its functions read, the inputs are those of `CHOOSING_FIELDS`.

    Args:
        prompt: `prompt(model, inputs)` gives a `Prompt`.
        prefill: `prefill(model, tokens, length, inputs)` gives what the network remembers of prompts, arrays
            [rows, ...] in any pytree. It may leave the last token of a prompt out: the first step is told it.
        next: `next(model, token, index, cache, inputs)` gives the unnormalised log-probabilities, float32
            [rows, vocab], of the token of an index, int32 [rows], after the one before it, and what the
            network then remembers. Asked again for the same index it must write the same. At index 0 the
            token is anything.
        vocab_size: Symbols that there are.
        finish: `finish(model, tokens, length, inputs)` gives what the endpoint gives, of so many tokens;
            None gives `tokens` and `length`, with `end`, or else 0, after the last.
        end: The symbol that ends a row; None where none does.
    """

    prompt: Callable[[Any, Mapping[str, Any]], Prompt]
    prefill: Callable[..., Any]
    next: Callable[..., tuple[Any, Any]]
    vocab_size: int
    finish: Callable[..., dict[str, Array]] | None = None
    end: int | None = None

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> TokenState:
        """The prompt, and what the network remembers of it."""
        tokens, length, stop = self.prompt(model, inputs)
        cache = self.prefill(model, tokens, length, inputs)
        rows = jnp.arange(len(tokens))[:, None]
        is_given = jnp.arange(tokens.shape[1])[None] < length[:, None]
        symbols = jnp.where(is_given, tokens, self.vocab_size)
        seen = jnp.zeros((len(tokens), self.vocab_size), bool).at[rows, symbols].set(True, mode="drop")
        nothing = jnp.zeros(len(tokens), jnp.int32)
        return TokenState(
            tokens, length, stop, jnp.zeros(len(tokens), jnp.float32), nothing, Rewritable((cache, seen))
        )

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: TokenState
    ) -> TokenState:
        """One more token."""
        tokens, length, stop, log_prob, step, written = state
        cache, seen = written.leaves
        last = jnp.take_along_axis(tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
        logits, cache = self.next(model, last, length, cache, inputs)
        seen = seen | (jnp.arange(self.vocab_size)[None] == jnp.where(length > 0, last, -1)[:, None])
        token = chosen_tokens(keys, step, logits, seen, inputs)
        log_prob = log_prob + jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
        is_next = jnp.arange(tokens.shape[1])[None] == length[:, None]  # quicker than a scatter on the CPU
        tokens = jnp.where(is_next, token[:, None], tokens)
        length = length + 1
        if self.end is not None:
            stop = jnp.where(token == self.end, length, stop)
        return TokenState(tokens, length, stop, log_prob, step + 1, Rewritable((cache, seen)))

    def value(self, model: Any, inputs: Mapping[str, Any], state: TokenState) -> dict[str, Array]:
        """The tokens so far."""
        if self.finish is not None:
            return self.finish(model, state.tokens, state.length, inputs)
        is_there = jnp.arange(state.tokens.shape[1])[None] < state.length[:, None]
        return {"tokens": jnp.where(is_there, state.tokens, self.end or 0), "length": state.length}

    def done(self, inputs: Mapping[str, Any], state: TokenState) -> Bool[Array, " rows"]:
        """Which rows have all of their tokens, or ended before."""
        return state.length >= state.stop
