"""The loop of models that give an energy: Langevin dynamics, each row with its own method and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.sampling.linear import wide
from artifex.generative_models.core.specs import TensorSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# fn(model, x, sigma, inputs) -> the energies float32 [rows], unnormalised negative log-densities in nats, of
# samples with noise of deviation sigma, float32 [rows]; one that knows no noise ignores sigma.
Energy = Callable[..., Any]

METHODS = ("ula", "mala", "annealed")  # by the numbers that rows carry
ULA, MALA, ANNEALED = range(len(METHODS))

# What the loop reads of each row, besides what the energy does.
LANGEVIN_INPUTS = {
    "num_steps": TensorSpec((), np.int32, doc="steps of the chain"),
    "step_size": TensorSpec((), np.float32, doc="variance that a step adds, relative to that of the noise"),
    "temperature": TensorSpec((), np.float32, doc="what energies are divided by, from 0"),
    "method": TensorSpec((), np.int32, doc=f"the place of the method in {', '.join(METHODS)}"),
    "sigma_start": TensorSpec((), np.float32, doc="noise level before the first step"),
    "sigma_end": TensorSpec((), np.float32, doc="noise level after the last step"),
}

_START = 2**31 - 1  # the number of the step that draws where a chain starts


class LangevinState(NamedTuple):
    """Where a chain is.

    Args:
        x: The sample.
        energy: Its energy.
        gradient: The gradient of its energy.
        accepted: Proposals that were taken.
        step: Steps that were done.
    """

    x: Float[Array, "rows ..."]
    energy: Float[Array, " rows"]
    gradient: Float[Array, "rows ..."]
    accepted: Int[Array, " rows"]
    step: Int[Array, " rows"]


@dataclass(frozen=True)
class LangevinLoop:
    r"""Draws samples of the density $p(x) \propto e^{-E(x, \sigma) / T}$, each row by its own method.

    With the step $\epsilon$ = step_size · σ² a proposal is
    $$x' = x - \frac{\epsilon}{2} \nabla E(x, \sigma) + \sqrt{T \epsilon}\, \xi, \quad \xi \sim N(0, I).$$

    - `ula` takes it (the unadjusted Langevin algorithm), at one noise level. The samples' density is that of
      the energy but for an error that falls with the step.
    - `mala` takes it with the probability min(1, α), else it stays (Metropolis-adjusted), at one level:
      $$T \log \alpha = E(x) - E(x') + \frac{|x' - x + \frac{\epsilon}{2} \nabla E(x)|^2
      - |x - x' + \frac{\epsilon}{2} \nabla E(x')|^2}{2 \epsilon},$$
      whose samples have exactly that density. One whose energy is not finite is not taken.
    - `annealed` takes it while σ falls from sigma_start to sigma_end by the same factor each step. Its
      noise is what is missing to the next level, so that levels of noise stay those that the energy is told:
      the variance of ξ is $T \max(0, \sigma'^2 - (1 - \text{step\_size}/2)^2 \sigma^2)$.

    A step is one evaluation of the energy and its gradient; the start is one more. What the loop reads of
    each row is `LANGEVIN_INPUTS`. A chain that diverges is no longer finite, which its driver reports.

    Args:
        fn: The energy.
        shape: Shape of a sample.
        mean: Mean of the Gaussian that chains start from.
        std: Standard deviation that it has besides that of the noise.
        denoises: Whether to give $x - \sigma^2 \nabla E(x, \sigma)$ in place of x: the mean of the sample
            without its noise, by the formula of Tweedie and Miyasawa.

    References:
        Roberts and Tweedie, *Exponential convergence of Langevin distributions and their discrete
        approximations*, 1996, sections 1.4.1 and 1.4.2. https://doi.org/10.2307/3318418
        Song and Ermon, *Generative Modeling by Estimating Gradients of the Data Distribution*, 2019,
        algorithm 1. https://arxiv.org/abs/1907.05600
        Jolicoeur-Martineau et al., *Adversarial score matching and improved sampling for image generation*,
        2020, section 3, on the noise of annealed steps. https://arxiv.org/abs/2009.05475
        Saremi and Hyvärinen, *Neural Empirical Bayes*, 2019, who walk at one noise level and then remove the
        noise. https://arxiv.org/abs/1903.02334
    """

    fn: Energy
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 0.0
    denoises: bool = False

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> LangevinState:
        """A draw of the Gaussian that chains start from, and its energy."""

        def draw(key: Key[Array, ""]) -> Array:
            return jax.random.normal(jax.random.fold_in(key, _START), self.shape, jnp.float32)

        noise, zero = jax.vmap(draw)(keys), jnp.zeros(len(keys), jnp.int32)
        sigma = noise_level(inputs, zero)
        deviation = jnp.sqrt(sigma**2 + jnp.float32(self.std) ** 2)
        x = jnp.float32(self.mean) + wide(deviation, noise) * noise
        energy, gradient = energy_and_gradient(self.fn, model, x, sigma, inputs)
        return LangevinState(x, energy, gradient, zero, zero)

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: LangevinState
    ) -> LangevinState:
        """A proposal of every row, which is taken or not."""
        x, energy, gradient, accepted, step = state
        temperature, size, method = inputs["temperature"], inputs["step_size"], inputs["method"]
        sigma, next_sigma = noise_level(inputs, step), noise_level(inputs, step + 1)
        epsilon = size * sigma**2
        missing = jnp.maximum(next_sigma**2 - ((1 - size / 2) * sigma) ** 2, 0)
        variance = temperature * jnp.where(method == ANNEALED, missing, epsilon)
        noise, chance = _drawn(keys, step, self.shape)
        drift, move = wide(epsilon, x) / 2 * gradient, wide(jnp.sqrt(variance), x) * noise
        proposal = x - drift + move
        new_energy, new_gradient = energy_and_gradient(self.fn, model, proposal, next_sigma, inputs)
        back = drift - move + wide(epsilon, x) / 2 * new_gradient  # x - x' + epsilon / 2 of the new gradient
        gain = energy - new_energy + (_squared(move) - _squared(back)) / (2 * epsilon)
        taken = (method != MALA) | (temperature * jnp.log(chance) <= gain)

        def chosen(new: Array, old: Array) -> Array:
            return jnp.where(wide(taken, new), new, old)

        return LangevinState(
            chosen(proposal, x),
            chosen(new_energy, energy),
            chosen(new_gradient, gradient),
            accepted + taken.astype(jnp.int32),
            step + 1,
        )

    def value(self, model: Any, inputs: Mapping[str, Any], state: LangevinState) -> dict[str, Array]:
        """The sample, or the estimate of it without noise, and the share of proposals that were taken."""
        x = state.x
        if self.denoises:
            x = x - wide(noise_level(inputs, state.step) ** 2, x) * state.gradient
        rate = state.accepted.astype(jnp.float32) / jnp.maximum(state.step, 1).astype(jnp.float32)
        return {"x": x, "acceptance_rate": rate}

    def done(self, inputs: Mapping[str, Any], state: LangevinState) -> Bool[Array, " rows"]:
        """Which rows have taken all of their steps."""
        return state.step >= inputs["num_steps"]


def noise_level(inputs: Mapping[str, Any], step: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """The noise level after s of n steps: sigma_start (sigma_end / sigma_start)^(s / n)."""
    start, end, total = inputs["sigma_start"], inputs["sigma_end"], inputs["num_steps"]
    share = jnp.minimum(step, total).astype(jnp.float32) / total.astype(jnp.float32)
    return start * (end / start) ** share


def energy_and_gradient(
    fn: Energy, model: Any, x: Float[Array, "rows ..."], sigma: Float[Array, " rows"], inputs: Any
) -> tuple[Float[Array, " rows"], Float[Array, "rows ..."]]:
    """The energies of samples, and of each the gradient with respect to it."""
    energy, pull = jax.vjp(lambda x: fn(model, x, sigma, inputs), x)
    (gradient,) = pull(jnp.ones_like(energy))
    return energy, gradient


def _drawn(
    keys: Key[Array, " rows"], step: Int[Array, " rows"], shape: tuple[int, ...]
) -> tuple[Float[Array, "rows ..."], Float[Array, " rows"]]:
    """Of each row's step the noise, and a number above 0, at most 1."""

    def draw(key: Key[Array, ""], number: Array) -> tuple[Array, Array]:
        of_noise, of_chance = jax.random.split(jax.random.fold_in(key, number))
        noise = jax.random.normal(of_noise, shape, jnp.float32)
        return noise, 1 - jax.random.uniform(of_chance, (), jnp.float32)

    return jax.vmap(draw)(keys, step)


def _squared(x: Float[Array, "rows ..."]) -> Float[Array, " rows"]:
    """The squared length of each row."""
    return jnp.sum(x.reshape(len(x), -1) ** 2, axis=1)
