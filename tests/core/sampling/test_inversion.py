"""From samples to their noise and back, and what is between two samples."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from gaussian import FLOW, denoiser, diffusion
from said import call, rows_of

from artifex.generative_models.core.between import spherical
from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.core.sampling.samplers import inverse_table_for
from artifex.generative_models.core.sampling.table import BOUND, O_TO_M, STEP, TIME, X_TO_M
from artifex.generative_models.inference import Executor

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "samplers.npz")
INVERSES = json.loads(str(GOLDEN["inverses"]))
SHAPE = (2, 1, 1)
MEAN = np.array([0.3, -0.2])
COVARIANCE = np.array([[0.25, 0.12], [0.12, 0.16]])
CONFIGS = {
    "epsilon": diffusion(),
    "v": diffusion("v_prediction", timestep_spacing="trailing"),
    "sample": diffusion("sample"),
    "flow": FLOW,
}
SAMPLERS = {"flow": "flow_euler"}
ROWS = 64
# For what does not depend on what the network predicts.
two_kinds = pytest.mark.parametrize("kind", ["v", "flow"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def executor(kind):
    config = CONFIGS[kind]
    fn = denoiser(config, MEAN, COVARIANCE)
    fields = Denoising(json.dumps(config), sampler=SAMPLERS.get(kind, "ddim"))
    return Executor(None, denoiser_endpoints(fn, SHAPE, fields), batch_sizes=(ROWS,))


@pytest.fixture(scope="module")
def samples():
    drawn = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, ROWS)
    return drawn.astype(np.float32).reshape(-1, *SHAPE)


def one_of(given, i):
    """One of the rows of inputs."""
    return {name: rows[i : i + 1] for name, rows in given.items()}


@pytest.mark.parametrize(("number", "facts"), list(enumerate(INVERSES)))
def test_an_inversion_is_that_of_diffusers(number, facts):
    table = inverse_table_for({"_class_name": "DDIMScheduler", **facts["config"]}, facts["steps"])
    x, mix, found = GOLDEN["start"].astype(np.float64), GOLDEN["mix"], []
    for k, row in enumerate(table.rows):
        o = np.tanh(x.reshape(len(x), -1) @ mix + row[TIME] / 1000).reshape(x.shape)
        m = np.clip(row[X_TO_M] * x + row[O_TO_M] * o, -row[BOUND], row[BOUND])
        x = row[STEP][0] * x + row[STEP][2] * m + row[STEP][5] * o
        if k in facts["kept"]:
            found.append(x)
    assert len(table) == facts["steps"]
    # Where samples are predicted, the first noise is a difference over 0.01.
    tolerance = 2e-4 if facts["config"].get("prediction_type") == "sample" else 2e-5
    assert np.abs(np.stack(found) - GOLDEN[f"inverse_states_{number}"]).max() <= tolerance * facts["largest"]


def test_there_and_back_ends_closer_with_more_steps(executor, samples):
    """The error halves where steps double, since both ways are of first order."""
    errors = []
    for steps in (65, 128, 256):  # tables of other tests have the same room
        noise = call(executor, "invert", {"x": samples}, num_steps=steps)["noise"]
        key = jax.random.key(0)
        back = call(executor, "from_noise", {"noise": noise}, key=key, num_steps=steps)["x"]
        errors.append(np.abs(back - samples).mean())
    assert errors[-1] < 0.015
    assert errors[0] / errors[1] > 1.8
    assert errors[1] / errors[2] > 1.8


def test_the_noise_of_samples_is_white(executor, samples, kind):
    """The exact flow takes N(mean, C) to N(0, 1) by a linear map."""
    noise = call(executor, "invert", {"x": samples}, num_steps=200)["noise"].reshape(ROWS, 2)
    centred = samples.reshape(ROWS, 2) - MEAN
    values, vectors = np.linalg.eigh(COVARIANCE)
    wanted = centred @ vectors / np.sqrt(values) @ vectors.T
    assert np.abs(noise - wanted).max() < (0.2 if kind == "sample" else 0.05)  # of as many steps


@two_kinds
def test_inversion_needs_no_key_and_rows_are_the_same_alone(executor, samples):
    assert not executor.draws("invert")
    assert not executor.draws("interpolate")
    given, options = rows_of(executor, "invert", {"x": samples[:4]}, num_steps=[5, 70, 17, 1])
    whole = np.asarray(executor("invert", given, **options)["noise"])
    for i in range(4):
        alone = executor("invert", one_of(given, i), **options)["noise"]
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=2e-5, atol=2e-5)


@two_kinds
def test_between_two_samples(executor, samples):
    """By the endpoints for each part of the way; the ends are the samples, once there and back."""
    x, y = samples[:4], samples[4:8]
    weight = np.array([0, 0.3, 0.8, 1], np.float32)
    given, options = rows_of(executor, "interpolate", {"x": x, "y": y}, num_steps=70, weight=weight.tolist())
    found = np.asarray(executor("interpolate", given, **options)["x"])
    noises = [call(executor, "invert", {"x": rows}, num_steps=70)["noise"] for rows in (x, y)]
    between = np.asarray(spherical(*noises, weight))
    key = jax.random.key(0)
    wanted = call(executor, "from_noise", {"noise": between}, key=key, num_steps=70)["x"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    looks = list(executor.iterate("interpolate", given, every=50, **options))
    np.testing.assert_array_equal(looks[-1].outputs["x"], found)
    ends = call(executor, "interpolate", {"x": x, "y": y}, num_steps=200, weight=[0, 0, 1, 1])["x"]
    np.testing.assert_allclose(ends, np.concatenate([x[:2], y[2:]]), atol=0.03)


@two_kinds
def test_rows_on_both_ways_are_the_same_alone(executor, samples):
    x, y, steps, weight = samples[:4], samples[4:8], [3, 70, 11, 8], [0.1, 0.5, 0.7, 1.0]
    given, options = rows_of(executor, "interpolate", {"x": x, "y": y}, num_steps=steps, weight=weight)
    whole = np.asarray(executor("interpolate", given, **options)["x"])
    others = given | {
        "x": np.concatenate([x[:1], x[1:] * 0]),
        "num_steps": np.array([6, 2, 2, 2], np.int32),
    }  # other rows change nothing, to the bit
    np.testing.assert_array_equal(executor("interpolate", others, **options)["x"][0], whole[0])
    for i in range(4):
        alone = executor("interpolate", one_of(given, i), **options)["x"]
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=2e-5, atol=2e-5)
