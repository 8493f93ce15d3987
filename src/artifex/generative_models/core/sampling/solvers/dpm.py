"""DPM-Solver++ with two estimates, and its stochastic form (Lu et al. 2022, https://arxiv.org/abs/2211.01095).

With l = log(alpha / sigma), h = l' - l over a step (a prime marks its end), r = (the last h) / h, and the
estimates m and
the one before, m1, D = m + (m - m1) / (2 r):

    x <- sigma' / sigma x + alpha' (1 - exp(-h)) D                                        (2M, equation 15)
    x <- sigma' / sigma exp(-h) x + alpha' (1 - exp(-2 h)) D + sigma' sqrt(1 - exp(-2 h)) noise      (SDE)

The first step has D = m, as has the last where the noise ends at zero.
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.sampling.schedules import (
    NOISE_DEFAULTS,
    SIGMA_DEFAULTS,
    THRESHOLD_DEFAULTS,
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

DEFAULTS = {
    **NOISE_DEFAULTS,
    **THRESHOLD_DEFAULTS,
    **{key: value for key, value in SIGMA_DEFAULTS.items() if key not in ("sigma_min", "sigma_max")},
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
}
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
_FEW_STEPS = 15  # under which the last step is of first order for stability


def dpm_solver(config: Config, num_steps: int) -> Table:
    """The table of DPM-Solver++ 2M.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`; `solver_order` may be 1 too.
        num_steps: Evaluations of the network.
    """
    return _dpm(config, num_steps, is_stochastic=False)


def dpm_solver_sde(config: Config, num_steps: int) -> Table:
    """The table of the stochastic DPM-Solver++ 2M: arguments are those of `dpm_solver`."""
    return _dpm(config, num_steps, is_stochastic=True)


def levels(
    config: Config, num_steps: int, *, rounds_exponential: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The times that are visited; alpha and sigma at them and at the end."""
    if config["use_flow_sigmas"]:
        spread = np.linspace(0, 1 - 1 / config["num_train_timesteps"], num_steps + 1)
        shifted = config["flow_shift"] * spread / (1 + (config["flow_shift"] - 1) * spread)
        sigmas = shifted[::-1][:-1]
        return np.floor(sigmas * config["num_train_timesteps"]), *flow_pair(np.append(sigmas, 0.0))
    of_training = sigmas_of(alphas_squared(config, ends_at_zero=False))
    times = spaced_times(config, num_steps, drops_last=config["timestep_spacing"] != "trailing")
    sigmas = respaced_sigmas(config, of_training[-1], of_training[0], num_steps)
    if sigmas is None:
        sigmas = np.interp(times, np.arange(len(of_training)), of_training)
    else:
        times = times_of_sigmas(sigmas, of_training)
        is_rounded = config["use_karras_sigmas"] and config["beta_schedule"] != "squaredcos_cap_v2"
        times = np.round(times) if is_rounded or rounds_exponential else np.floor(times)
    end = of_training[0] if choice(config, "final_sigmas_type", ("zero", "sigma_min")) == "sigma_min" else 0.0
    ratio = np.append(sigmas, end)
    alphas = 1 / np.sqrt(ratio**2 + 1)
    return times, alphas, ratio * alphas


def flow_pair(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and sigma of flow matching, whose samples go straight to the noise."""
    return 1 - sigmas, sigmas


def log_ratio(alphas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """log(alpha / sigma); infinite at the end of all noise."""
    with np.errstate(divide="ignore"):
        return np.log(alphas) - np.log(sigmas)


def _dpm(config: Config, num_steps: int, *, is_stochastic: bool) -> Table:
    order = choice(config, "solver_order", (1, 2))
    choice(config, "solver_type", ("midpoint",))
    times, alphas, sigmas = levels(config, num_steps)
    lambdas = log_ratio(alphas, sigmas)
    table = builder(config)
    ends_low = config["euler_at_final"] or sigmas[-1] == 0
    ends_low = ends_low or (config["lower_order_final"] and num_steps < _FEW_STEPS)
    for k, time in enumerate(times):
        h = lambdas[k + 1] - lambdas[k]
        decay = math.exp(-h)
        step = {"x": sigmas[k + 1] / sigmas[k]}
        of_d = alphas[k + 1] * (1 - decay)
        if is_stochastic:
            step = {"x": step["x"] * decay, "noise": sigmas[k + 1] * math.sqrt(1 - decay**2)}
            of_d = alphas[k + 1] * (1 - decay**2)
        if order == 1 or k == 0 or (k == num_steps - 1 and ends_low):
            step["m"] = of_d
        else:
            half = 0.5 * h / (lambdas[k] - lambdas[k - 1])
            step |= {"m": of_d * (1 + half), "m1": -of_d * half}
        level = alphas[k], sigmas[k]
        table.add(time, level=level, estimate=estimate(config["prediction_type"], *level), step=step)
    return table.table()
