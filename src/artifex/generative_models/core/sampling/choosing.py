"""How the next token is chosen among all symbols, by numbers that each row carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from artifex.generative_models.core.fields import Field

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

_ALL = 2**31 - 1  # more symbols than there are
_COLDEST = 1e-20  # at less the likeliest symbol is as good as certain, and scores overflow


CHOOSING_FIELDS = {
    "temperature": Field(
        float, 1.0, minimum=0, doc="What log-probabilities are divided by; 0 takes the likeliest symbol."
    ),
    "greedy": Field(bool, False, doc="Whether to take the likeliest symbol each time."),
    "top_k": Field(
        int, None, minimum=1, doc="How many of the likeliest symbols may be drawn; all if not said."
    ),
    "top_p": Field(
        float,
        1.0,
        above=0,
        maximum=1,
        doc="Only the fewest likeliest symbols may be drawn whose probability is at least this.",
    ),
    "min_p": Field(
        float,
        0.0,
        minimum=0,
        maximum=1,
        doc="The least probability of what may be drawn, as a share of the largest.",
    ),
    "repetition_penalty": Field(
        float, 1.0, above=0, doc="Above 1 symbols that were there already are less likely; 1 is no penalty."
    ),
}
CHOOSING_UNSAID = {"top_k": _ALL}


def chosen_tokens(
    keys: Key[Array, " rows"],
    step: Int[Array, " rows"],
    logits: Float[Array, "rows vocab"],
    seen: Bool[Array, "rows vocab"],
    inputs: Mapping[str, Any],
) -> Int[Array, " rows"]:
    r"""A symbol for each row, drawn from the softmax of its `processed` scores $s$; the likeliest if greedy.

    It is the symbol of the largest $s + g$, with Gumbel noise $g = -\log(-\log u)$ from each row's key and
    step (Gumbel 1954), so a row without filters gets the same symbol beside one with them.

    Args:
        keys: One a row.
        step: Folded into the key.
        logits: Unnormalised log-probabilities.
        seen: Symbols that the penalty is for.
        inputs: Numbers [rows] by the names of `CHOOSING_FIELDS`.
    """
    is_greedy = _is_greedy(inputs)
    scores = processed(logits, seen, inputs)
    noise = jax.lax.cond(
        jnp.all(is_greedy), lambda: jnp.zeros_like(scores), lambda: _gumbel(keys, step, scores.shape[1])
    )
    noise = jnp.where(is_greedy[:, None], jnp.float32(0), noise)
    return jnp.argmax(scores + noise, -1).astype(jnp.int32)


def processed(
    logits: Float[Array, "rows vocab"], seen: Bool[Array, "rows vocab"], inputs: Mapping[str, Any]
) -> Float[Array, "rows vocab"]:
    """Log-probabilities up to a constant of what each row may draw; of what it may not, minus infinity.

    In order: the penalty, the temperature, `top_k`, `top_p`, `min_p`. Where no row has filters, nothing is
    sorted.

    Args:
        logits: Unnormalised log-probabilities.
        seen: Symbols that the penalty is for.
        inputs: Numbers [rows] by the names of `CHOOSING_FIELDS`.

    References:
        Keskar et al., *CTRL: A Conditional Transformer Language Model for Controllable Generation*, 2019,
        section 4.1, for the penalty. https://arxiv.org/abs/1909.05858
        Fan et al., *Hierarchical Neural Story Generation*, 2018, section 5.4, for `top_k`.
        https://arxiv.org/abs/1805.04833
        Holtzman et al., *The Curious Case of Neural Text Degeneration*, 2020, section 3.1, for `top_p`.
        https://arxiv.org/abs/1904.09751
        Nguyen et al., *Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs*, 2024,
        section 3. https://arxiv.org/abs/2407.01082
    """
    penalty = inputs["repetition_penalty"][:, None]
    punished = jnp.where(logits > 0, logits / penalty, logits * penalty)
    is_greedy = _is_greedy(inputs)
    temperature = jnp.where(is_greedy, jnp.float32(1), inputs["temperature"])
    scores = jnp.where(seen, punished, logits) / temperature[:, None]
    filters = inputs["top_k"], inputs["top_p"], inputs["min_p"]
    is_filtered = (filters[0] < scores.shape[1]) | (filters[1] < 1) | (filters[2] > 0)
    return jax.lax.cond(
        jnp.any(is_filtered & ~is_greedy), _filtered, lambda scores, *_: scores, scores, *filters
    )


def _is_greedy(inputs: Mapping[str, Any]) -> Bool[Array, " rows"]:
    return inputs["greedy"] | (inputs["temperature"] < _COLDEST)


def _filtered(
    scores: Float[Array, "rows vocab"],
    top_k: Int[Array, " rows"],
    top_p: Float[Array, " rows"],
    min_p: Float[Array, " rows"],
) -> Float[Array, "rows vocab"]:
    """The scores, and minus infinity for each symbol that a filter takes out."""
    order = jnp.argsort(-scores, axis=-1, stable=True)
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    last = jnp.minimum(top_k, scores.shape[1]) - 1
    kept = ranked >= jnp.take_along_axis(ranked, last[:, None], axis=1)
    likely = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf))
    before = jnp.cumsum(likely, -1) - likely
    kept &= (before < top_p[:, None]) | (top_p >= 1)[:, None] | (jnp.arange(kept.shape[1]) == 0)[None]
    kept &= likely >= min_p[:, None] * likely[:, :1]
    rows = jnp.arange(len(scores))[:, None]
    return scores.at[rows, order].set(jnp.where(kept, ranked, -jnp.inf), unique_indices=True)


def _gumbel(keys: Key[Array, " rows"], step: Int[Array, " rows"], vocab: int) -> Float[Array, "rows vocab"]:
    def draw(key: Key[Array, ""], number: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, number), (vocab,), jnp.float32)

    return jax.vmap(draw)(keys, step)
