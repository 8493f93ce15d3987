"""Inpainting: what is known of a sample is put back before every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from artifex.generative_models.core.sampling import table as columns
from artifex.generative_models.core.sampling.linear import (
    LinearSampler,
    LinearState,
    drawn_noise,
    table_row,
    wide,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Key

NOISE_OF_KNOWN = 2**30  # from the number of a step to that of the noise that known pixels get in it


@dataclass(frozen=True)
class Inpainting:
    """A sampler that makes some of the pixels, and has the others given.

    Before each step the known pixels are `signal * x + level * noise`, as noisy as the step begins. So the
    network sees them at every step, and what it makes fits them; in the end they are exactly what was given.
    What is made fits a little less closely than the distribution of samples has it, and best with samplers
    that add noise: of Gaussian pixels that hang together by 0.63, DDPM has 0.50, and DDIM 0.35.

    Besides the sampler's, the inputs are `x` [rows, ...], whose values count where they are known, and
    `mask`, of the same shape or with one channel, from 0 to 1: pixels are kept where it is 0, and all others
    are made. So is white what is painted anew, as in diffusers' pipelines.

    Args:
        sampler: What makes samples.

    References:
        Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
        appendix I.2. https://arxiv.org/abs/2011.13456
        Lugmayr et al., *RePaint*, 2022, equation 8, without resampling. https://arxiv.org/abs/2201.09865
    """

    sampler: LinearSampler

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> LinearState:
        """Noise everywhere."""
        return self.sampler.init(model, keys, _others(inputs))

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: LinearState
    ) -> LinearState:
        """The sampler's step, once what is known is as noisy as the rest."""
        level = table_row(inputs["table"], state.step)[:, columns.LEVEL]
        signal, noise = (wide(level[:, i], state.x) for i in (0, 1))
        drawn = drawn_noise(keys, state.step + NOISE_OF_KNOWN, self.sampler.shape)
        known = signal * inputs["x"].astype(jnp.float32) + noise * drawn
        state = state._replace(x=_completed(inputs, state.x, known))
        return self.sampler.step(model, keys, _others(inputs), state)

    def value(self, model: Any, inputs: Mapping[str, Any], state: LinearState) -> dict[str, Array]:
        """The sample, or the estimate of it, with what is known."""
        known = inputs["x"].astype(jnp.float32)
        state = state._replace(x=_completed(inputs, state.x, known), m1=_completed(inputs, state.m1, known))
        return self.sampler.value(model, _others(inputs), state)

    def done(self, inputs: Mapping[str, Any], state: LinearState) -> Bool[Array, " rows"]:
        """Which rows have no noise left to remove."""
        return self.sampler.done(inputs, state)


def _completed(
    inputs: Mapping[str, Any], made: Float[Array, "rows ..."], known: Float[Array, "rows ..."]
) -> Float[Array, "rows ..."]:
    return jnp.where(inputs["mask"] > 0, made, known)


def _others(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the sampler and its network read."""
    return {name: value for name, value in inputs.items() if name not in ("x", "mask")}
