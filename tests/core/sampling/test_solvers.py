"""Every solver beside diffusers' scheduler of the same config, over whole trajectories."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.sampling import linear
from artifex.generative_models.core.sampling.linear import LinearSampler
from artifex.generative_models.core.sampling.samplers import SAMPLERS, table_for
from artifex.generative_models.core.sampling.table import LENGTHS, NUM_COLUMNS

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "samplers.npz")
CASES = json.loads(str(GOLDEN["cases"]))
MAX_STEPS = LENGTHS[0]


def rows_last(pictures):
    """From the order of axes that PyTorch has to that of JAX."""
    return jnp.moveaxis(pictures, -3, -1)


def network(mixes, x, time, guidance, inputs):
    flat = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
    shape = (len(x), x.shape[-1], *x.shape[1:-1])
    parts = [jnp.tanh(flat @ mixes[0] + time[:, None] / 1000)]
    parts += [jnp.tanh(flat @ mix) for mix in mixes[1:]]
    return rows_last(jnp.concatenate([part.reshape(shape) for part in parts], axis=1))


SAMPLER = LinearSampler(network, (2, 2, 3))


@cache
def stepped(with_variance):
    """One step, in which the noise is that of the golden trajectories."""
    mixes = [jnp.asarray(GOLDEN[name]) for name in ("mix", "mix_variance")[: 1 + with_variance]]
    noise = rows_last(jnp.asarray(GOLDEN["noise"]))

    @jax.jit
    def step(table, state):
        keys = jax.random.split(jax.random.key(0), 2)
        return SAMPLER.step(mixes, keys, {"table": table}, state)

    def traced(table, state):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "drawn_noise", lambda keys, step, shape: noise[step[0]])
            return step(table, state)

    return traced


@pytest.mark.parametrize(
    ("number", "facts"), list(enumerate(CASES)), ids=[f"{case['config']['_class_name']}" for case in CASES]
)
def test_a_trajectory_is_that_of_diffusers(number, facts):
    table = table_for(facts["config"], facts["steps"], **facts["parameters"])
    padded = np.zeros((2, MAX_STEPS, NUM_COLUMNS), np.float32)
    padded[:, : len(table)] = table.rows
    x = rows_last(jnp.asarray(GOLDEN["start"])) * np.float32(table.scale)
    nothing = jnp.zeros_like(x)
    state = linear.LinearState(x, nothing, nothing, nothing, jnp.zeros(2, jnp.int32))
    step = stepped(facts["config"].get("variance_type") == "learned_range")
    found = []
    for k in range(len(table)):
        state = step(padded, state)
        if k in facts["kept"]:
            found.append(state.x)
    wanted = rows_last(jnp.asarray(GOLDEN[f"states_{number}"]))
    assert len(table) == facts["kept"][-1] + 1
    assert np.abs(np.stack(found) - wanted).max() <= 2e-5 * facts["largest"]


def test_at_least_forty_configurations_of_every_solver():
    assert len(CASES) >= 40
    assert {case["config"]["_class_name"] for case in CASES} == {s.scheduler for s in SAMPLERS.values()}


PLAIN = {"_class_name": "DDPMScheduler"}


@pytest.mark.parametrize(
    ("config", "steps", "given", "error", "words"),
    [
        (PLAIN, 10, {"sampler": "dpm"}, InputError, "sampler: expected one of ddpm, ddim, euler, "),
        (PLAIN, 0, {}, InputError, "num_steps: expected 1 to 1000, got 0"),
        (PLAIN, 1001, {}, InputError, "num_steps: expected 1 to 1000, got 1001"),
        (PLAIN, 10, {"sampler": "ddim", "eta": 1.5}, InputError, "eta: expected 0 to 1, got 1.5"),
        (PLAIN, 10, {"sampler": "ddim", "eta": float("nan")}, InputError, "eta: expected 0 to 1"),
        (PLAIN, 10, {"sampler": "euler", "eta": 0.5}, InputError, "eta: the sampler euler takes none"),
        (
            PLAIN,
            10,
            {"sampler": "flow_euler"},
            InputError,
            "sampler: expected one of ddpm, .*predicts epsilon",
        ),
        (PLAIN, 51, {"sampler": "lcm"}, InputError, "num_steps: expected at most 50"),
        ({"_class_name": "PNDMScheduler"}, 10, {}, ConfigError, "_class_name: expected one of CMStoch"),
        (PLAIN | {"beta_schedule": "laplace"}, 10, {}, ConfigError, "beta_schedule: expected one of linear"),
        (PLAIN | {"betas": 3}, 10, {}, ConfigError, "unknown setting 'betas'"),
        (PLAIN | {"use_beta_sigmas": True}, 10, {}, ConfigError, "use_beta_sigmas: expected False"),
        (
            PLAIN | {"prediction_type": "noise"},
            10,
            {},
            ConfigError,
            "prediction_type: expected one of epsilon",
        ),
        (PLAIN | {"solver_order": 3}, 10, {"sampler": "dpm++2m"}, ConfigError, "solver_order: expected one"),
        (PLAIN | {"timestep_spacing": "log"}, 10, {}, ConfigError, "timestep_spacing: expected one of lins"),
    ],
)
def test_what_does_not_fit_is_refused(config, steps, given, error, words):
    with pytest.raises(error, match=words):
        table_for(config, steps, **given)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 40])
def test_any_number_of_steps_gives_finite_coefficients(name, steps):
    prediction = {"prediction_type": "flow_prediction"} if name == "flow_euler" else {}
    prediction = {"_class_name": "CMStochasticIterativeScheduler"} if name == "consistency" else prediction
    table = table_for({"_class_name": "DDPMScheduler", **prediction}, steps, name)
    assert len(table) == (2 * steps - 1 if name == "heun" else steps)
    assert np.isfinite(table.rows.astype(np.float32)).all()
    assert table.rows.shape == (len(table), NUM_COLUMNS)
