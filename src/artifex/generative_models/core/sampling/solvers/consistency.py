"""Consistency models: the network maps any noise level to the sample (Song et al. 2023, https://arxiv.org/abs/2303.01469).

x = sample + s noise. With d = `sigma_data` and e = `sigma_min`, the estimate is (equation 5)

    m = d**2 / ((s - e)**2 + d**2) x + d (s - e) / sqrt(s**2 + d**2) o

and a step adds noise anew, down to the next level t: x <- m + sqrt(t**2 - e**2) noise (algorithm 1).
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.sampling.schedules import Config, builder, karras_sigmas
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    "num_train_timesteps": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "s_noise": 1.0,
    "rho": 7.0,
    "clip_denoised": True,
    "prediction_type": "sample",
}
PREDICTIONS = ("sample",)


def consistency(config: Config, num_steps: int) -> Table:
    """The table of a consistency model.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
    """
    total, data, least = (config[key] for key in ("num_train_timesteps", "sigma_data", "sigma_min"))
    ramp = np.arange(num_steps) * (total // num_steps) / (total - 1)
    sigmas = karras_sigmas(config["sigma_max"], least, ramp, config["rho"])
    table = builder({"clip_sample": config["clip_denoised"], "clip_sample_range": 1.0})
    for sigma, following in zip(sigmas, [*sigmas[1:], least], strict=True):
        level = min(max(following, least), config["sigma_max"])
        noise = config["s_noise"] * math.sqrt(level**2 - least**2) if num_steps > 1 else 0.0
        table.add(
            250 * math.log(sigma + 1e-44),
            level=(1.0, sigma),
            scale=1 / math.sqrt(sigma**2 + data**2),
            estimate=(
                data**2 / ((sigma - least) ** 2 + data**2),
                data * (sigma - least) / math.sqrt(sigma**2 + data**2),
            ),
            step={"m": 1.0, "noise": noise},
        )
    return table.table(config["sigma_max"])
