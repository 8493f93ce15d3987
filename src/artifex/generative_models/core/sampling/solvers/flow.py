"""Euler's method along the paths of flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747).

x = (1 - sigma) sample + sigma noise, the network gives the velocity v = noise - sample, and a step to sigma'
is

    x <- x + (sigma' - sigma) v

Times are shifted towards the noise for large pictures: s sigma / (1 + (s - 1) sigma) (Esser et al. 2024,
section 5.3.2).
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.sampling.schedules import (
    Config,
    builder,
    choice,
    estimate,
    respaced_sigmas,
)
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "time_shift_type": "exponential",
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "prediction_type": "flow_prediction",
}
PREDICTIONS = ("flow_prediction",)


def flow_euler(config: Config, num_steps: int, *, num_tokens: int | None = None) -> Table:
    """The table of Euler's method for flow matching.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
        num_tokens: Patches of a picture, which the dynamic shift depends on.
    """
    return _updates(config, np.append(_sigmas(config, num_steps, num_tokens), 0.0))


def flow_euler_inverse(config: Config, num_steps: int, *, num_tokens: int | None = None) -> Table:
    """The table of the same steps from a sample to its noise: arguments are those of `flow_euler`."""
    return _updates(config, np.append(_sigmas(config, num_steps, num_tokens), 0.0)[::-1])


def _sigmas(config: Config, num_steps: int, num_tokens: int | None) -> np.ndarray:
    """The shares of noise that are visited, descending, without the end."""
    choice(config, "invert_sigmas", (False,))
    choice(config, "stochastic_sampling", (False,))
    total = config["num_train_timesteps"]
    if config["use_dynamic_shifting"]:
        if num_tokens is None:
            raise ConfigError("scheduler config: use_dynamic_shifting: the number of tokens is not known")
        sigmas = _dynamic(config, np.linspace(1, 1 / total, num_steps), num_tokens)
    else:
        # The end point is one of training, which was shifted already; then all are.
        sigmas = _shifted(np.linspace(1, _shifted(1 / total, config["shift"]), num_steps), config["shift"])
    if config["shift_terminal"]:
        sigmas = 1 - (1 - sigmas) * (1 - config["shift_terminal"]) / (1 - sigmas[-1])
    spaced = respaced_sigmas(config, sigmas[0], sigmas[-1], num_steps)
    return sigmas if spaced is None else spaced


def _updates(config: Config, sigmas: np.ndarray) -> Table:
    table = builder(config)
    for sigma, following in itertools.pairwise(sigmas):
        table.add(
            sigma * config["num_train_timesteps"],
            level=(1 - sigma, sigma),
            estimate=estimate("flow_prediction", 1 - sigma, sigma),
            step={"x": 1.0, "o": following - sigma},
        )
    return table.table()


def _shifted(sigmas: np.ndarray | float, shift: float) -> np.ndarray:
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))


def _dynamic(config: Config, sigmas: np.ndarray, num_tokens: int) -> np.ndarray:
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    mu = config["base_shift"] + slope * (num_tokens - low)
    kind = choice(config, "time_shift_type", ("exponential", "linear"))
    return _shifted(sigmas, math.exp(mu) if kind == "exponential" else mu)
