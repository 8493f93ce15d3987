"""Any endpoint by what callers say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import denoiser, diffusion
from said import rows_of

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.inference import Executor, InferencePipeline

SHAPE = (2, 1, 1)


def plain(model, keys, inputs, *, times=1):
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)
    return {"y": drawn + times * inputs["scale"] * inputs["x"].sum(axis=1)}


@pytest.fixture(scope="module")
def pipeline():
    config = diffusion()
    fn = denoiser(config, np.zeros(2), np.eye(2))
    endpoints = denoiser_endpoints(fn, SHAPE, Denoising(json.dumps(config)))
    specs = {"x": TensorSpec((3,), np.float32), "scale": TensorSpec((), np.float32, default=1.0)}
    endpoints["plain"] = Endpoint(plain, specs, {"times": 1})
    return InferencePipeline(Executor(None, endpoints, batch_sizes=(4,)))


def test_inputs_fields_and_options_reach_the_endpoint(pipeline):
    x = np.arange(18, dtype=np.float32).reshape(6, 3)
    once = pipeline.call("plain", x=x, rngs=1)["y"]
    noise = once - x.sum(axis=1)
    assert np.all((noise >= -1e-5) & (noise < 1))
    scale = np.arange(6, dtype=np.float32)
    found = pipeline.call("plain", x=x.tolist(), rngs=1, scale=scale, times=2)["y"]
    np.testing.assert_allclose(found - 2 * scale * x.sum(axis=1), noise, atol=1e-4)
    np.testing.assert_allclose(pipeline.call("plain", x=x, rngs=1, scale=0.0)["y"], noise, atol=1e-5)


def test_batches_give_what_a_call_does(pipeline):
    x = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)
    mask = np.ones((6, *SHAPE), np.float32)
    said = {"num_steps": [3, 4, 5, 6, 7, 8], "sampler": "ddpm"}
    found = pipeline.call("inpaint", x=x, mask=mask, rngs=2, **said)["x"]
    given, options = rows_of(pipeline.executor, "inpaint", {"x": x, "mask": mask}, **said)
    wanted = pipeline.executor("inpaint", given, key=sample_key(2), **options)["x"]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(pipeline.call("generate", num_rows=6, rngs=2, **said)["x"], wanted)
    np.testing.assert_array_equal(pipeline.generate(6, rngs=2, **said), wanted)


@pytest.mark.parametrize(
    ("endpoint", "given", "words"),
    [
        ("imagine", {}, "no endpoint 'imagine'; there are generate, from_noise, inpaint"),
        ("invert", {"y": 1}, "invert: y is not taken; it takes x, num_steps"),
        ("invert", {"x": 1.0}, r"invert: x: expected rows of \[2, 1, 1\], got one number"),
        ("invert", {"x": np.ones((3, 2)), "num_steps": [1, 2]}, "num_steps: expected one value, or 3"),
        ("inpaint", {"x": np.ones((2, *SHAPE), np.float32)}, "inpaint: missing input 'mask'"),
        ("plain", {"x": np.ones((2, 3)), "scale": np.ones(3)}, "scale has 3 rows where 2 were expected"),
        ("generate", {}, "generate: num_rows: expected at least 1, since no input tells it; got None"),
        ("generate", {"num_rows": 0}, "generate: num_rows: expected at least 1"),
    ],
)
def test_what_is_refused(pipeline, endpoint, given, words):
    with pytest.raises(InputError, match=words):
        pipeline.call(endpoint, rngs=0, **given)
