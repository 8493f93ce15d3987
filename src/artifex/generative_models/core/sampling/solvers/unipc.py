"""UniPC: a predictor and a corrector that costs no evaluation (Zhao et al. 2023, https://arxiv.org/abs/2302.04867).

With l = log(alpha / sigma) and h its growth over a step, in the form that predicts samples with B(h) =
exp(-h) - 1 ("bh2"). The estimate at a step's end corrects the step that led there (y, the corrected sample,
equation 9), from which the next one starts; the last estimates m1 and m2 serve as the paper's D.
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.sampling.schedules import (
    NOISE_DEFAULTS,
    SIGMA_DEFAULTS,
    THRESHOLD_DEFAULTS,
    Config,
    builder,
    choice,
    estimate,
)
from artifex.generative_models.core.sampling.solvers.dpm import flow_pair, levels, log_ratio
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    **NOISE_DEFAULTS,
    **THRESHOLD_DEFAULTS,
    **SIGMA_DEFAULTS,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
}
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


def unipc(config: Config, num_steps: int) -> Table:
    """The table of UniPC.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`; `solver_order` may be 1 too.
        num_steps: Evaluations of the network.
    """
    order = choice(config, "solver_order", (1, 2))
    choice(config, "solver_type", ("bh2",))
    choice(config, "predict_x0", (True,))
    times, alphas, sigmas = _levels(config, num_steps)
    lambdas = log_ratio(alphas, sigmas)
    table = builder(config)
    last_order = 1
    for k, time in enumerate(times):
        keep = {"x": 1.0}
        if k > 0:
            keep = _corrector(alphas, sigmas, lambdas, k, last_order)
        last_order = min(order, k + 1, num_steps - k if config["lower_order_final"] else order)
        table.add(
            time,
            level=(alphas[k], sigmas[k]),
            estimate=estimate(config["prediction_type"], alphas[k], sigmas[k]),
            keep=keep,
            step=_predictor(alphas, sigmas, lambdas, k, last_order),
        )
    return table.table()


def _levels(config: Config, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not config["use_flow_sigmas"]:
        times, alphas, sigmas = levels(config, num_steps)
        if config["use_karras_sigmas"] and config["final_sigmas_type"] == "sigma_min":
            alphas[-1], sigmas[-1] = alphas[-2], sigmas[-2]
        return times, alphas, sigmas
    spread = np.linspace(1, 1 / config["num_train_timesteps"], num_steps + 1)[:-1]
    spread = config["flow_shift"] * spread / (1 + (config["flow_shift"] - 1) * spread)
    if abs(spread[0] - 1) < 1e-6:
        spread[0] -= 1e-6  # for the logarithm of alpha
    end = spread[-1] if config["final_sigmas_type"] == "sigma_min" else 0.0
    return np.floor(spread * config["num_train_timesteps"]), *flow_pair(np.append(spread, end))


def _predictor(
    alphas: np.ndarray, sigmas: np.ndarray, lambdas: np.ndarray, k: int, order: int
) -> dict[str, float]:
    """From step k to k + 1, starting at y."""
    if sigmas[k + 1] == 0:
        return {"m": alphas[k + 1]}
    h = lambdas[k + 1] - lambdas[k]
    grown = math.expm1(-h)
    of_m, of_m1 = -alphas[k + 1] * grown, 0.0
    if order == 2:
        of_m1 = -alphas[k + 1] * grown * 0.5 * h / (lambdas[k - 1] - lambdas[k])
        of_m -= of_m1
    return {"y": sigmas[k + 1] / sigmas[k], "m": of_m, "m1": of_m1}


def _corrector(
    alphas: np.ndarray, sigmas: np.ndarray, lambdas: np.ndarray, k: int, order: int
) -> dict[str, float]:
    """The step from k - 1 to k once more, with the estimate m at its end; m1 and m2 were before it."""
    h = lambdas[k] - lambdas[k - 1]
    grown = math.expm1(-h)
    if order == 1:
        rhos, ratios = np.array([0.5]), np.array([1.0])
    else:
        ratios = np.array([(lambdas[k - 2] - lambdas[k - 1]) / h, 1.0])
        # Moments of the exponential that the weights must meet, equation 6.
        first = grown / -h - 1
        second = first / -h - 0.5
        moments = np.array([first, 2 * second]) / grown
        rhos = np.linalg.solve(np.stack([ratios**0, ratios]), moments)
    scale = -alphas[k] * grown
    of_m = scale * rhos[-1]
    of_m2 = scale * rhos[0] / ratios[0] if order == 2 else 0.0
    return {"y": sigmas[k] / sigmas[k - 1], "m": of_m, "m1": scale - of_m - of_m2, "m2": of_m2}
