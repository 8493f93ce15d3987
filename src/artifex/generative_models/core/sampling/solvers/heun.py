"""Heun's method in the noise level: two evaluations a step (Karras et al. 2022, algorithm 1, without churn).

The state is x / alpha = sample + s noise. A step goes from s to t as Euler's does, keeping the first x as y
and the first estimate as m1; then, with m the estimate at t,

    x <- y + (t - s) / 2 ((y - m1) / s + (x - m) / t)

The last step, to s = 0, is Euler's alone: N steps are 2 N - 1 evaluations.
"""

from __future__ import annotations

import itertools
import math

from artifex.generative_models.core.sampling.schedules import (
    CLIP_DEFAULTS,
    NOISE_DEFAULTS,
    Config,
    builder,
)
from artifex.generative_models.core.sampling.solvers.euler import first_scale, levels, scaled_estimate
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    **NOISE_DEFAULTS,
    **CLIP_DEFAULTS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def heun(config: Config, num_steps: int) -> Table:
    """The table of Heun's method.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Steps, of two evaluations each but the last.
    """
    fixed = {"final_sigmas_type": "zero", "interpolation_type": "linear", "timestep_type": "discrete"}
    times, sigmas = levels({**fixed, **config}, num_steps)
    table = builder(config)
    for k, (s, t) in enumerate(itertools.pairwise(sigmas)):
        table.add(
            times[k],
            scale=1 / math.sqrt(s**2 + 1),
            level=(1.0, s),
            estimate=scaled_estimate(config, s),
            keep={"x": 1.0},
            step={"x": t / s, "m": 1 - t / s},
        )
        if t > 0:
            half = (t - s) / 2
            table.add(
                times[k + 1],
                scale=1 / math.sqrt(t**2 + 1),
                level=(1.0, t),
                estimate=scaled_estimate(config, t),
                step={"y": 1 + half / s, "m1": -half / s, "x": half / t, "m": -half / t},
            )
    return table.table(first_scale(config, sigmas))
