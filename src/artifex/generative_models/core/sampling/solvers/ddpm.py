"""DDPM: ancestral sampling of the reversed diffusion (Ho et al. 2020, https://arxiv.org/abs/2006.11239).

With m the estimate of the sample, a = alpha**2 at this step's time and b at the next one's, and beta = 1 - a
/ b, equation 7 has

    x <- sqrt(b) beta / (1 - a) m + sqrt(a / b) (1 - b) / (1 - a) x + std noise

where std**2 is (1 - b) / (1 - a) beta ("fixed_small"), beta ("fixed_large"), or between both as the network
says ("learned_range"; Nichol and Dhariwal 2021, equation 15). The last step adds no noise.
"""

from __future__ import annotations

import math

from artifex.generative_models.core.sampling.schedules import (
    CLIP_DEFAULTS,
    NOISE_DEFAULTS,
    THRESHOLD_DEFAULTS,
    Config,
    alphas_squared,
    builder,
    choice,
    estimate,
    spaced_times,
)
from artifex.generative_models.core.sampling.table import Table

DEFAULTS = {
    **NOISE_DEFAULTS,
    **CLIP_DEFAULTS,
    **THRESHOLD_DEFAULTS,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "variance_type": "fixed_small",
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


def ddpm(config: Config, num_steps: int) -> Table:
    """The table of DDPM.

    Args:
        config: The scheduler's settings, those of `DEFAULTS`.
        num_steps: Evaluations of the network.
    """
    left = alphas_squared(config)
    kind = choice(config, "variance_type", _VARIANCES)
    table = builder(config)
    times = spaced_times(config, num_steps).astype(int)
    for time, following in zip(times, [*times[1:], -1], strict=True):
        a, b = left[time], left[following] if following >= 0 else 1.0
        beta = 1 - a / b
        least = max((1 - b) / (1 - a) * beta, 1e-20)
        step = {
            "m": math.sqrt(b) * beta / (1 - a),
            "x": math.sqrt(a / b) * (1 - b) / (1 - a),
        }
        log_variance = None
        if time > 0:
            step["noise"] = math.sqrt(beta if kind == "fixed_large" else least)
            if kind == "learned_range":
                step["noise"], log_variance = 1.0, (math.log(least), math.log(beta))
        table.add(
            time,
            level=(math.sqrt(a), math.sqrt(1 - a)),
            estimate=estimate(config["prediction_type"], math.sqrt(a), math.sqrt(1 - a)),
            step=step,
            log_variance=log_variance,
        )
    return table.table()
