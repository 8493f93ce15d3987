"""Samples between two others: both are turned into noise, and what is between the noises into a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from artifex.generative_models.core.between import spherical
from artifex.generative_models.core.sampling.linear import LinearSampler, LinearState, wide

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key


class BetweenState(NamedTuple):
    """Where a row is.

    Args:
        first: The sample at weight 0 while it becomes noise, then the one that is made.
        second: The sample at weight 1 while it becomes noise.
        step: Steps that were done.
    """

    first: LinearState
    second: LinearState
    step: Int[Array, " rows"]


@dataclass(frozen=True)
class Interpolating:
    """A sampler that goes from two samples to their noises, and from what is between them to a sample.

    The first half of a row's table leads to the noise, the second half back. Besides what the sampler reads,
    the inputs are `x` and `y` [rows, ...] and `weight` float32 [rows], from 0 (x) to 1 (y).

    Args:
        sampler: What makes samples; it adds no noise, so keys are not read.

    References:
        Song et al., *Denoising diffusion implicit models*, 2020, section 5.3 and appendix D.5.
        https://arxiv.org/abs/2010.02502
    """

    sampler: LinearSampler

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> BetweenState:
        """Both samples."""
        step = jnp.zeros(len(keys), jnp.int32)
        return BetweenState(_at(inputs["x"], step), _at(inputs["y"], step), step)

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: BetweenState
    ) -> BetweenState:
        """One evaluation for each sample that there is: two on the way to the noise, one on the way back.

        Each is of as many rows as the batch has, so that a row gives the same to the bit beside any others.
        """
        own = {name: value for name, value in inputs.items() if name not in ("x", "y", "weight")}
        turn = inputs["num_steps"] // 2
        is_on_way = state.step < turn

        def stepped(state: LinearState) -> LinearState:
            return self.sampler.step(model, keys, own, state)

        second = jax.lax.cond(
            jnp.any(is_on_way),
            lambda second: _where(is_on_way, stepped(second), second),
            lambda second: second,
            state.second,
        )
        first, step = stepped(state.first), state.step + 1
        between = _at(spherical(first.x, second.x, inputs["weight"]), step)
        return BetweenState(_where(step == turn, between, first), second, step)

    def value(self, model: Any, inputs: Mapping[str, Any], state: BetweenState) -> dict[str, Array]:
        """The sample where it is done, else the estimate of it."""
        return self.sampler.value(model, inputs, state.first)

    def done(self, inputs: Mapping[str, Any], state: BetweenState) -> Bool[Array, " rows"]:
        """Which rows have been there and back."""
        return state.step >= inputs["num_steps"]


def _where(chosen: Bool[Array, " rows"], state: LinearState, other: LinearState) -> LinearState:
    """The one state for the rows that are chosen, the other for others."""
    return LinearState(*(jnp.where(wide(chosen, a), a, b) for a, b in zip(state, other, strict=True)))


def _at(x: Float[Array, "rows ..."], step: Int[Array, " rows"]) -> LinearState:
    x = x.astype(jnp.float32)
    nothing = jnp.zeros_like(x)
    return LinearState(x, nothing, nothing, nothing, step)
