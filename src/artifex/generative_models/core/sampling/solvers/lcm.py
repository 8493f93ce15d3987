"""Latent consistency models: a few steps of a distilled network (Luo et al. 2023, https://arxiv.org/abs/2310.04378).

With m the estimate of the sample, u = 10 t and d = 1/2, the network's answer is

    f = d**2 / (u**2 + d**2) x + u / sqrt(u**2 + d**2) m

and every step but the last adds noise anew: x <- alpha' f + sigma' noise.
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sampling.schedules import (
    CLIP_DEFAULTS,
    NOISE_DEFAULTS,
    THRESHOLD_DEFAULTS,
    Config,
    alphas_squared,
    builder,
    estimate,
)
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    **NOISE_DEFAULTS,
    **CLIP_DEFAULTS,
    **THRESHOLD_DEFAULTS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
_SIGMA_DATA = 0.5


def lcm(config: Config, num_steps: int) -> Table:
    """The table of a latent consistency model.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network, at most `original_inference_steps`.
    """
    known = config["original_inference_steps"]
    if num_steps > known:
        raise InputError(
            f"num_steps: expected at most {known}, the steps of the distillation; got {num_steps}"
        )
    left = alphas_squared(config)
    of_distillation = np.arange(known, 0, -1) * (config["num_train_timesteps"] // known) - 1
    times = of_distillation[np.floor(np.linspace(0, known, num_steps, endpoint=False)).astype(int)]
    table = builder(config)
    for k, time in enumerate(times):
        scaled = time * config["timestep_scaling"]
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / math.sqrt(scaled**2 + _SIGMA_DATA**2)
        alpha, noise = 1.0, 0.0
        if k < num_steps - 1:
            alpha, noise = math.sqrt(left[times[k + 1]]), math.sqrt(1 - left[times[k + 1]])
        level = math.sqrt(left[time]), math.sqrt(1 - left[time])
        table.add(
            time,
            level=level,
            estimate=estimate(config["prediction_type"], *level),
            step={"x": alpha * skip, "m": alpha * out, "noise": noise},
        )
    return table.table()
