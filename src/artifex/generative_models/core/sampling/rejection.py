"""The loop of draws that are made again until they are likely enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.sampling.linear import wide

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# fn(model, keys, inputs) -> samples float32 [rows, ...], and their log-probabilities float32 [rows].
Draw = Callable[..., tuple[Any, Any]]

UNBOUNDED = float(np.finfo(np.float32).min)  # the bound where none is said
REJECTION_FIELDS = {
    "min_log_prob": Field(
        float, doc="Draw again until the log-probability is at least this; any if not said."
    ),
    "max_attempts": Field(int, 64, minimum=1, maximum=10_000, doc="Draws of a sample, at most."),
}
# What `Endpoint` is told to require of each row.
REQUIRES = (
    "accepted",
    "of {attempts} draws none has a log-probability of at least min_log_prob, the best has {log_prob:.6g}: "
    "lower min_log_prob, or raise max_attempts",
)


class RejectionState(NamedTuple):
    """How far a row has come.

    Args:
        x: The likeliest of its draws.
        log_prob: The log-probability of that one.
        step: Draws that were made.
    """

    x: Float[Array, "rows ..."]
    log_prob: Float[Array, " rows"]
    step: Int[Array, " rows"]


@dataclass(frozen=True)
class Rejection:
    """Draws each row until its log-probability is at least `min_log_prob`, or `max_attempts` times.

    These are its inputs, beside what `fn` reads: float32 [rows] and int32 [rows]. Draw s of a row has the key
    `fold_in(key, s)`. Without a bound, the first draw is the sample: one evaluation. The samples follow the
    distribution that `fn` draws from, given that they are so likely.

    Args:
        fn: Draws, and tells how likely the draws are.
        shape: Shape of a sample.
    """

    fn: Draw
    shape: tuple[int, ...]

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> RejectionState:
        """Nothing drawn yet."""
        rows = len(keys)
        log_prob = jnp.full(rows, UNBOUNDED, jnp.float32)
        return RejectionState(
            jnp.zeros((rows, *self.shape), jnp.float32), log_prob, jnp.zeros(rows, jnp.int32)
        )

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: RejectionState
    ) -> RejectionState:
        """One more draw, which stays if it is likelier than those before."""
        x, log_prob = self.fn(model, jax.vmap(jax.random.fold_in)(keys, state.step), inputs)
        # What is NaN stays, so that it is seen.
        is_less = (log_prob <= state.log_prob) | jnp.isnan(state.log_prob)
        return RejectionState(
            jnp.where(wide(is_less, x), state.x, x),
            jnp.where(is_less, state.log_prob, log_prob),
            state.step + 1,
        )

    def value(self, model: Any, inputs: Mapping[str, Any], state: RejectionState) -> dict[str, Array]:
        """The likeliest draw, and whether that is likely enough."""
        return {
            "x": state.x,
            "log_prob": state.log_prob,
            "attempts": state.step,
            "accepted": _is_accepted(inputs, state),
        }

    def done(self, inputs: Mapping[str, Any], state: RejectionState) -> Bool[Array, " rows"]:
        """Which rows have a draw that is likely enough, or no attempts left."""
        drawn = (state.step > 0) & _is_accepted(inputs, state)
        return drawn | (state.step >= inputs["max_attempts"])


def _is_accepted(inputs: Mapping[str, Any], state: RejectionState) -> Bool[Array, " rows"]:
    return state.log_prob >= inputs["min_log_prob"]
