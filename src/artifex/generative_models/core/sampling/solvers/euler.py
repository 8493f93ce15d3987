"""Euler's method in the noise level, and its ancestral form (Karras et al. 2022, https://arxiv.org/abs/2206.00364).

The state is x / alpha = sample + s noise, with s = sigma / alpha. From s to the next t, with m the estimate,

    x <- m + t / s (x - m)                                      (Euler)
    x <- m + d / s (x - m) + u noise,  d**2 + u**2 = t**2,
                                       u**2 = t**2 (s**2 - t**2) / s**2   (ancestral, as in k-diffusion)
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.sampling.schedules import (
    NOISE_DEFAULTS,
    SIGMA_DEFAULTS,
    Config,
    alphas_squared,
    builder,
    choice,
    estimate,
    respaced_sigmas,
    sigmas_of,
    spaced_times,
    times_of_sigmas,
)
from artifex.generative_models.core.sampling.table import Table

ANCESTRAL_DEFAULTS = {**NOISE_DEFAULTS, "timestep_spacing": "linspace", "steps_offset": 0}
DEFAULTS = {
    **ANCESTRAL_DEFAULTS,
    **SIGMA_DEFAULTS,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def euler(config: Config, num_steps: int) -> Table:
    """The table of Euler's method.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
    """
    return _euler(config, *levels(config, num_steps), is_ancestral=False)


def euler_ancestral(config: Config, num_steps: int) -> Table:
    """The table of the ancestral method: arguments are those of `euler`, settings `ANCESTRAL_DEFAULTS`."""
    given = {**SIGMA_DEFAULTS, "interpolation_type": "linear", "timestep_type": "discrete", **config}
    return _euler(config, *levels(given, num_steps), is_ancestral=True)


def levels(config: Config, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The times that are visited, and their noise over signal, with that of the end."""
    of_training = sigmas_of(alphas_squared(config, ends_at_zero=False))
    choice(config, "timestep_type", ("discrete",))
    times = spaced_times(config, num_steps, rounded=False)
    end = of_training[0] if choice(config, "final_sigmas_type", ("zero", "sigma_min")) == "sigma_min" else 0.0
    if choice(config, "interpolation_type", ("linear", "log_linear")) == "linear":
        sigmas = np.interp(times, np.arange(len(of_training)), of_training)
    else:
        sigmas, end = np.geomspace(of_training[-1], of_training[0], num_steps + 1)[:-1], of_training[0]
    spaced = respaced_sigmas(config, sigmas[0], sigmas[-1], num_steps)
    if spaced is not None:
        sigmas, times = spaced, times_of_sigmas(spaced, of_training)
    return times, np.append(sigmas, end)


def scaled_estimate(config: Config, sigma: float) -> tuple[float, float]:
    """How the sample follows from x / alpha and what the network gives."""
    root = math.sqrt(sigma**2 + 1)
    of_x, of_o = estimate(config["prediction_type"], 1 / root, sigma / root)
    return of_x / root, of_o


def first_scale(config: Config, sigmas: np.ndarray) -> float:
    """Standard deviation of the state that it starts from."""
    largest = float(sigmas.max())
    return largest if config["timestep_spacing"] != "leading" else math.sqrt(largest**2 + 1)


def _euler(config: Config, times: np.ndarray, sigmas: np.ndarray, *, is_ancestral: bool) -> Table:
    table = builder(config)
    for time, sigma, following in zip(times, sigmas, sigmas[1:], strict=False):
        up = following * math.sqrt(max(1 - (following / sigma) ** 2, 0.0)) if is_ancestral else 0.0
        down = math.sqrt(following**2 - up**2)
        table.add(
            time,
            scale=1 / math.sqrt(sigma**2 + 1),
            level=(1.0, sigma),
            estimate=scaled_estimate(config, sigma),
            step={"x": down / sigma, "m": 1 - down / sigma, "noise": up},
        )
    return table.table(first_scale(config, sigmas))
