"""How much noise tables say that each step begins with, beside what there is."""

import numpy as np
import pytest

from artifex.generative_models.core.sampling.samplers import SAMPLERS, inverse_table_for, table_for
from artifex.generative_models.core.sampling.table import KEEP, LEVEL, O_TO_M, STEP, X_TO_M

DIFFUSION = {"_class_name": "DDPMScheduler"}
CONFIGS = {
    "flow_euler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler"},
}
ROWS = 20_000
SAMPLE = 0.6


def trajectory(table, x, rng):
    """The x before each step and after the last, where the network always estimates the same sample."""
    y = m1 = m2 = np.zeros_like(x)
    states = [x]
    for row in table.rows:
        m = np.full_like(x, SAMPLE)
        o = (m - row[X_TO_M] * x) / row[O_TO_M]
        y = row[KEEP] @ np.stack([x, y, m, m1, m2, o])
        x = row[STEP] @ np.stack([x, y, m, m1, m2, o, rng.normal(size=x.shape)])
        m1, m2 = m, m1
        states.append(x)
    return states


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_begins_at_its_level(name):
    """Data of one value, whose exact denoiser always gives it, has known noise at any time."""
    rng = np.random.default_rng(0)
    table = table_for(CONFIGS.get(name, DIFFUSION), 10, name)
    noise = rng.normal(size=ROWS)
    signal, level = table.rows[0, LEVEL]
    states = trajectory(table, signal * SAMPLE + level * noise, rng)
    adds_noise = np.any(table.rows[:, STEP.stop - 1])
    for state, (signal, level) in zip(states[:-1], table.rows[:, LEVEL], strict=True):
        if adds_noise:  # the error of a mean and of a deviation of so many rows, five times
            assert abs(state.mean() - signal * SAMPLE) < 5 * level / np.sqrt(ROWS) + 1e-3
            assert abs(state.std() / level - 1) < 5 / np.sqrt(2 * ROWS) + 1e-3
        else:
            np.testing.assert_allclose(state, signal * SAMPLE + level * noise, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(states[-1], SAMPLE, atol=0.01)


def test_an_inversion_ends_at_the_noise_that_its_sampler_starts_from():
    for config, name in ((DIFFUSION, "ddim"), (CONFIGS["flow_euler"], "flow_euler")):
        there, back = inverse_table_for(config, 10).rows, table_for(config, 10, name).rows
        np.testing.assert_allclose(there[0, LEVEL], [1, 0])
        np.testing.assert_allclose(there[1:, LEVEL], back[:0:-1, LEVEL])
