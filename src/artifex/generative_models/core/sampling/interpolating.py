"""Samples between two others: both are turned into noise, and what is between the noises into a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from artifex.generative_models.core.sampling.linear import LinearSampler, LinearState, wide

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

_LEAST_SINE = 1e-4  # of the angle between vectors, under which they are taken to be on one line


def spherical(
    x: Float[Array, "rows ..."], y: Float[Array, "rows ..."], weight: Float[Array, " rows"]
) -> Float[Array, "rows ..."]:
    """What is between x at weight 0 and y at 1, along the arc from one to the other.

    sin((1 - w) angle) / sin(angle) x + sin(w angle) / sin(angle) y, row by row. Where there is no one arc, as
    between vectors of one direction, of opposite ones, or of no length, it is the straight line.

    References:
        Shoemake, *Animating rotation with quaternion curves*, 1985, section 3.3.
        https://doi.org/10.1145/325334.325242
    """
    one, other = (_directions(rows) for rows in (x, y))
    # By its half, since the cosine of small angles is 1 in float32.
    angle = 2 * jnp.arctan2(jnp.linalg.norm(one - other, axis=1), jnp.linalg.norm(one + other, axis=1))
    sine = jnp.sin(angle)
    has_arc = (sine > _LEAST_SINE) & jnp.any(one != 0, axis=1) & jnp.any(other != 0, axis=1)
    safe = jnp.where(has_arc, sine, jnp.ones_like(sine))
    of_x = jnp.where(has_arc, jnp.sin((1 - weight) * angle) / safe, 1 - weight)
    of_y = jnp.where(has_arc, jnp.sin(weight * angle) / safe, weight)
    return wide(of_x, x) * x + wide(of_y, y) * y


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


def _directions(rows: Float[Array, "rows ..."]) -> Float[Array, "rows size"]:
    """Vectors of length 1; none stays none."""
    flat = rows.reshape(len(rows), -1)
    length = jnp.linalg.norm(flat, axis=1, keepdims=True)
    return flat / jnp.where(length > 0, length, jnp.ones_like(length))
