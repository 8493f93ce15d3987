"""Samples of which a part is known."""

import json

import jax
import numpy as np
import pytest
from gaussian import FLOW, denoiser, diffusion
from said import call, rows_of

from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.core.sampling.inpainting import NOISE_OF_KNOWN
from artifex.generative_models.core.sampling.linear import drawn_noise
from artifex.generative_models.core.sampling.samplers import table_for
from artifex.generative_models.core.sampling.table import LEVEL, O_TO_M, STEP, TIME, X_TO_M
from artifex.generative_models.inference import Executor

SHAPE = (2, 2, 1)
MEAN = np.array([0.3, -0.2, 0.1, 0.0])
# Pixels 0 and 1 hang together, pixel 2 with both a little less, pixel 3 with none.
COVARIANCE = np.array([
    [0.25, 0.2, 0.15, 0],
    [0.2, 0.25, 0.15, 0],
    [0.15, 0.15, 0.25, 0],
    [0, 0, 0, 0.25],
])  # fmt: skip
ROWS = 2048
MASK = np.array([0.0, 0, 1, 1], np.float32).reshape(SHAPE)
CONFIGS = {"diffusion": diffusion(), "flow": FLOW}
KEY = jax.random.key(3)


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def executor(config):
    fn = denoiser(config, MEAN, COVARIANCE)
    return Executor(None, denoiser_endpoints(fn, SHAPE, Denoising(json.dumps(config))), batch_sizes=(ROWS,))


@pytest.fixture(scope="module")
def known():
    drawn = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, ROWS)
    return drawn.astype(np.float32).reshape(-1, *SHAPE)


def inputs(known, mask=MASK):
    return {"x": known, "mask": np.ascontiguousarray(np.broadcast_to(mask, (len(known), *SHAPE)))}


def test_known_pixels_stay_and_others_fit_them(executor, config, known):
    sampler = "flow_euler" if config is FLOW else "ddpm"
    x = call(executor, "inpaint", inputs(known), key=KEY, num_steps=100, sampler=sampler)["x"]
    np.testing.assert_array_equal(x[:, 0], known[:, 0])
    made, given = x.reshape(ROWS, 4)[:, 2:], known.reshape(ROWS, 4)[:, :2].mean(axis=1)
    # What is made over the mean of what is known; replacement brings about a part of what exactly holds.
    exact = COVARIANCE[2, :2].mean() / COVARIANCE[:2, :2].mean()
    slopes = [np.cov(given, pixel)[0, 1] / given.var() for pixel in made.T]
    error = 0.5 / np.sqrt(ROWS * given.var())
    assert 0.4 * exact < slopes[0] < exact + 3 * error
    assert abs(slopes[1]) < 4 * error  # what hangs together with none is made as ever
    np.testing.assert_allclose(made.mean(axis=0), MEAN[2:], atol=0.05)
    np.testing.assert_allclose(made[:, 1].var(), COVARIANCE[3, 3], atol=0.04)


def test_it_is_the_method_step_by_step(executor, config, known):
    """Beside NumPy, with known pixels put back by hand before each step."""
    sampler, steps = "flow_euler" if config is FLOW else "ddim", 12
    keys = jax.random.split(KEY, 4)
    given, options = rows_of(executor, "inpaint", inputs(known[:4]), num_steps=steps, sampler=sampler)
    found = np.asarray(executor("inpaint", given, keys=keys, **options)["x"]).reshape(4, 4)
    is_made, flat = MASK.reshape(4) > 0, known[:4].reshape(4, 4)
    fn = jax.jit(denoiser(config, MEAN, COVARIANCE))

    def noise(number):
        return np.asarray(draw(keys, np.full(4, number, np.int32)), np.float64).reshape(4, 4)

    draw = jax.jit(lambda keys, numbers: drawn_noise(keys, numbers, SHAPE))
    state = noise(2**31 - 1)
    for k, row in enumerate(table_for(config, steps, sampler).rows):
        signal, level = row[LEVEL]
        state = np.where(is_made, state, signal * flat + level * noise(k + NOISE_OF_KNOWN))
        o = np.asarray(fn(None, np.float32(state), np.full(4, row[TIME], np.float32), None, {}))
        m = row[X_TO_M] * state + row[O_TO_M] * o
        state = row[STEP][0] * state + row[STEP][2] * m + row[STEP][5] * o
    np.testing.assert_allclose(found, np.where(is_made, state, flat), atol=2e-5)  # of float32


def test_a_mask_of_ones_is_a_sample_and_one_of_zeros_what_was_given(executor, known):
    rows = known[:4]
    given, options = rows_of(executor, "inpaint", inputs(rows, np.ones(SHAPE, np.float32)), num_steps=7)
    made = np.asarray(executor("inpaint", given, key=KEY, **options)["x"])
    tables = {name: given[name] for name in executor.endpoints["generate"].inputs}
    drawn = np.asarray(executor("generate", tables, key=KEY, **options)["x"])
    np.testing.assert_array_equal(made, drawn)
    kept = call(executor, "inpaint", inputs(rows, np.zeros(SHAPE, np.float32)), key=KEY, num_steps=7)["x"]
    np.testing.assert_array_equal(kept, rows)


def test_rows_of_any_samplers_are_the_same_alone(executor, config, known):
    fitting = executor.endpoints["inpaint"].says.fields["sampler"].choices
    names = (
        [fitting[i % len(fitting)] for i in range(4)] if config is FLOW else ["ddim", "heun", "unipc", "lcm"]
    )
    masks = np.stack([MASK, 1 - MASK, np.zeros_like(MASK), np.ones_like(MASK)])
    said = {"sampler": list(names), "num_steps": [5, 9, 12, 4]}
    keys = jax.random.split(KEY, 4)
    given, options = rows_of(executor, "inpaint", {"x": known[:4], "mask": masks}, **said)
    whole = np.asarray(executor("inpaint", given, keys=keys, **options)["x"])
    order = np.array([2, 0, 3, 1])
    turned = executor("inpaint", {n: v[order] for n, v in given.items()}, keys=keys[order], **options)["x"]
    np.testing.assert_array_equal(turned, whole[order])
    for i in range(4):
        alone = executor(
            "inpaint", {n: v[i : i + 1] for n, v in given.items()}, keys=keys[i : i + 1], **options
        )
        np.testing.assert_allclose(alone["x"], whole[i : i + 1], rtol=2e-5, atol=2e-5)
    looks = list(executor.iterate("inpaint", given, keys=keys, every=3, **options))
    np.testing.assert_array_equal(looks[-1].outputs["x"], whole)
    for look in looks:  # previews have what is known
        np.testing.assert_array_equal(look.outputs["x"][masks == 0], known[:4][masks == 0])


def test_every_sampler_inpaints(executor, known):
    for name in executor.endpoints["inpaint"].says.fields["sampler"].choices:
        x = call(executor, "inpaint", inputs(known), key=KEY, num_steps=30, sampler=name)["x"]
        np.testing.assert_array_equal(x[:, 0], known[:, 0])
        together = np.corrcoef(x[:, 1, 0, 0], known[:, 0].mean(axis=(1, 2)))[0, 1]
        assert 0.27 < together < 0.75  # 0.63 is exact
