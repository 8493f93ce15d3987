"""DDIM: implicit diffusion, deterministic at eta = 0 (Song et al. 2020, https://arxiv.org/abs/2010.02502).

With m the estimate of the sample, e that of the noise before m was bounded, a = alpha**2 at this step's time
and b at the next one's, equation 12 has

    x <- sqrt(b) m + sqrt(1 - b - std**2) e + std noise,    std = eta sqrt((1 - b) / (1 - a) (1 - a / b))

The next time is the present one less the training's steps over the sampler's, which is not always the next
that is visited. Run from the sample to the noise, the same update inverts it.
"""

from __future__ import annotations

import math

import numpy as np

from artifex.generative_models.core.sampling.schedules import (
    CLIP_DEFAULTS,
    NOISE_DEFAULTS,
    THRESHOLD_DEFAULTS,
    Config,
    alphas_squared,
    builder,
    estimate,
    noise_estimate,
    spaced_times,
)
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    **NOISE_DEFAULTS,
    **CLIP_DEFAULTS,
    **THRESHOLD_DEFAULTS,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def ddim(config: Config, num_steps: int, *, eta: float = 0.0) -> Table:
    """The table of DDIM.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
        eta: How much of DDPM's noise is added, from 0 to 1.
    """
    left = alphas_squared(config)
    last = 1.0 if config["set_alpha_to_one"] else left[0]
    stride = config["num_train_timesteps"] // num_steps
    times = spaced_times(config, num_steps).astype(int)
    ends = [(left[time], left[time - stride] if time >= stride else last) for time in times]
    return _updates(config, times, ends, eta)


def ddim_inverse(config: Config, num_steps: int) -> Table:
    """The table of DDIM's inversion, from a sample to the noise that it would be drawn from.

    A network that predicts samples says nothing of the noise where there is none: for it, a sample has the
    least noise of training.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
    """
    left = alphas_squared(config)
    has_none = config["set_alpha_to_one"] and config["prediction_type"] != "sample"
    first = 1.0 if has_none else left[0]
    stride = config["num_train_timesteps"] // num_steps
    times = spaced_times(config, num_steps).astype(int)[::-1]
    ends = [(left[time - stride] if time >= stride else first, left[time]) for time in times]
    return _updates(config, times, ends, 0.0)


def _updates(config: Config, times: np.ndarray, ends: list[tuple[float, float]], eta: float) -> Table:
    table = builder(config)
    prediction = config["prediction_type"]
    for time, (a, b) in zip(times, ends, strict=True):
        alpha, sigma = math.sqrt(a), math.sqrt(1 - a)
        std = eta * math.sqrt(max((1 - b) / (1 - a) * (1 - a / b), 0.0)) if eta else 0.0
        of_x, of_o = noise_estimate(prediction, alpha, sigma)
        direction = math.sqrt(max(1 - b - std**2, 0.0))
        table.add(
            time,
            level=(alpha, sigma),
            estimate=estimate(prediction, alpha, sigma),
            step={"m": math.sqrt(b), "x": direction * of_x, "o": direction * of_o, "noise": std},
        )
    return table.table()
