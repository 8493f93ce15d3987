"""Noise schedules: how much noise each time of a diffusion process has, and which times a sampler visits.

A sample with noise is `alpha * sample + sigma * noise` with `alpha**2 + sigma**2 = 1`; the arrays here hold
`alpha**2`, the product of the alphas in Ho et al. 2020 (https://arxiv.org/abs/2006.11239). Names of settings
are those of diffusers' `scheduler_config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.sampling.table import TableBuilder

Config = Mapping[str, Any]

# Settings of every schedule of variance-preserving noise.
NOISE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
SIGMA_DEFAULTS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
}
CLIP_DEFAULTS = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLD_DEFAULTS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SMALLEST = 2.0**-24  # of alpha**2 at the end, for solvers that divide by alpha


def choice(config: Config, key: str, choices: Mapping[Any, Any] | tuple[Any, ...]) -> Any:
    """A setting, which must be one of some.

    Raises:
        ConfigError: It is another.
    """
    value = config[key]
    if value not in choices:
        raise ConfigError(
            f"scheduler config: {key}: expected one of {', '.join(map(str, choices))}, got {value!r}"
        )
    return choices[value] if isinstance(choices, Mapping) else value


def betas_of(config: Config) -> np.ndarray:
    """The variance of the noise that each step of training adds, float64 [num_train_timesteps]."""
    num_steps = config["num_train_timesteps"]
    start, end = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        return np.asarray(config["trained_betas"], np.float64)
    kind = choice(config, "beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    if kind == "linear":
        return np.linspace(start, end, num_steps)
    if kind == "scaled_linear":  # of latent diffusion
        return np.linspace(math.sqrt(start), math.sqrt(end), num_steps) ** 2
    if kind == "sigmoid":
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_steps))) + start
    # Nichol and Dhariwal 2021, equation 17.
    remaining = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999)


def alphas_squared(config: Config, *, ends_at_zero: bool = True) -> np.ndarray:
    """The share of a sample's variance that is left at each time of training, float64 [num_train_timesteps].

    Args:
        config: The settings.
        ends_at_zero: Whether a schedule rescaled to no signal at its end really ends at 0.
    """
    left = np.cumprod(1 - betas_of(config))
    if config["rescale_betas_zero_snr"]:  # Lin et al. 2023, algorithm 1
        alpha = np.sqrt(left)
        left = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        left[-1] = 0.0 if ends_at_zero else _SMALLEST
    return left


def sigmas_of(alpha_squared: np.ndarray) -> np.ndarray:
    """Noise over signal, sigma / alpha."""
    return np.sqrt((1 - alpha_squared) / alpha_squared)


def spaced_times(
    config: Config, num_steps: int, *, rounded: bool = True, drops_last: bool = False
) -> np.ndarray:
    """The times of training that a sampler visits, descending (Lin et al. 2023, table 2).

    Args:
        config: The settings; `timestep_spacing` and `steps_offset` among them.
        num_steps: How many.
        rounded: Whether to round those that are evenly spaced.
        drops_last: Whether to space one more, and leave out the last.
    """
    total, count = config["num_train_timesteps"], num_steps + drops_last
    kind = choice(config, "timestep_spacing", ("linspace", "leading", "trailing"))
    if kind == "linspace":
        times = np.linspace(0, total - 1, count)[::-1]
        times = np.round(times) if rounded else times
    elif kind == "leading":
        times = np.arange(count)[::-1] * float(total // count)
    else:
        return np.round(np.arange(total, 0, -total / num_steps))[:num_steps] - 1
    times = times[:-1] if drops_last else times
    return times + config["steps_offset"] if kind == "leading" else times


def respaced_sigmas(config: Config, largest: float, smallest: float, num_steps: int) -> np.ndarray | None:
    """Sigmas spaced in another way than by times, where the settings ask for it; descending."""
    low = smallest if config.get("sigma_min") is None else config["sigma_min"]
    high = largest if config.get("sigma_max") is None else config["sigma_max"]
    if config["use_karras_sigmas"]:
        return karras_sigmas(high, low, np.linspace(0, 1, num_steps))
    if config["use_exponential_sigmas"]:
        return np.geomspace(high, low, num_steps)
    return None


def karras_sigmas(largest: float, smallest: float, ramp: np.ndarray, rho: float = 7.0) -> np.ndarray:
    """Sigmas from the largest at 0 to the smallest at 1 of a ramp (Karras et al. 2022, equation 5)."""
    high, low = largest ** (1 / rho), smallest ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def times_of_sigmas(sigmas: np.ndarray, of_training: np.ndarray) -> np.ndarray:
    """The times at which training had such sigmas, interpolated between their logarithms."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(of_training), np.arange(len(of_training)))


def estimate(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """How the sample without noise follows from x and what the network gives: coefficients of both."""
    return {
        "epsilon": (1 / alpha, -sigma / alpha) if alpha else (math.inf, -math.inf),
        "sample": (0.0, 1.0),
        "v_prediction": (alpha, -sigma),
        "flow_prediction": (1.0, -sigma),
    }[prediction]


def noise_estimate(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """How the noise follows from x and what the network gives: coefficients of both."""
    return {
        "epsilon": (0.0, 1.0),
        "sample": (1 / sigma, -alpha / sigma) if sigma else (math.inf, -math.inf),
        "v_prediction": (sigma, alpha),
    }[prediction]


def builder(config: Config) -> TableBuilder:
    """An empty table, with the bounds of estimates that the settings ask for."""
    if config.get("thresholding"):
        return TableBuilder(
            quantile=config["dynamic_thresholding_ratio"], quantile_max=config["sample_max_value"]
        )
    return TableBuilder(bound=config["clip_sample_range"] if config.get("clip_sample") else None)
