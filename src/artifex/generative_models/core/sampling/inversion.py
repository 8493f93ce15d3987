"""From samples to the noise that a deterministic sampler draws them from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifex.generative_models.core.sampling.linear import LinearSampler, LinearState

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Key


@dataclass(frozen=True)
class Inversion:
    """A sampler whose table leads from samples to noise, which is what a row gives.

    Args:
        sampler: It starts from an input, and adds no noise.
    """

    sampler: LinearSampler

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> LinearState:
        """The samples."""
        return self.sampler.init(model, keys, inputs)

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: LinearState
    ) -> LinearState:
        """One evaluation, towards the noise."""
        return self.sampler.step(model, keys, inputs, state)

    def value(self, model: Any, inputs: Mapping[str, Any], state: LinearState) -> dict[str, Array]:
        """The noise, or how far a sample has become noise."""
        return {"noise": state.x}

    def done(self, inputs: Mapping[str, Any], state: LinearState) -> Bool[Array, " rows"]:
        """Which rows are noise."""
        return self.sampler.done(inputs, state)
