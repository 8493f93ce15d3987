"""JAX's settings: a sample is that of its seed whatever they are, or else a job says which they were."""

import jax
import numpy as np
import pytest
from shared import TOLERANCE

from artifex.generative_models.core import Endpoint
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import Executor, InferencePipeline, batch_generate_samples

SETTINGS = {
    "default_prng_impl": "rbg",
    "enable_x64": True,
    "threefry_partitionable": False,
    "default_matmul_precision": "highest",
}
each_setting = pytest.mark.parametrize(("name", "value"), SETTINGS.items(), ids=SETTINGS)


def draw(model, keys, inputs):
    return {"x": jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)}


def make():
    return Executor(None, {"generate": Endpoint(draw, {})}, batch_sizes=(2, 4))


@each_setting
def test_a_setting_that_is_switched_later_changes_no_sample(name, value):
    executor = make()
    two = executor("generate", key=sample_key(3), num_rows=2)["x"]
    with getattr(jax, name)(value):
        four = executor("generate", key=sample_key(3), num_rows=4)["x"]
    assert four.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(four)[:2], np.asarray(two))


@pytest.mark.parametrize("name", ["default_prng_impl", "enable_x64"])
def test_a_seed_is_the_same_samples_from_a_process_with_another_setting(tiny_vae, name):
    wanted = batch_generate_samples(tiny_vae, 3, 4, rngs=5)
    with getattr(jax, name)(SETTINGS[name]):
        given = batch_generate_samples(Executor(tiny_vae, batch_sizes=(4,)), 3, rngs=5)
    np.testing.assert_allclose(given, wanted, **TOLERANCE)


def test_rows_do_not_see_their_neighbours_whatever_kind_of_keys_is_the_default():
    with jax.default_prng_impl("rbg"):
        executor = make()
        two = executor("generate", key=sample_key(3), num_rows=2)["x"]
        four = executor("generate", key=sample_key(3), num_rows=4)["x"]
    np.testing.assert_array_equal(np.asarray(four)[:2], np.asarray(two))
    assert len(np.unique(np.asarray(four), axis=0)) == 4


@each_setting
def test_a_jobs_identity_names_what_changes_samples(name, value):
    pipeline = InferencePipeline(make())
    before = pipeline.job_identity("generate")
    with getattr(jax, name)(value):
        assert pipeline.job_identity("generate") != before
    assert pipeline.job_identity("generate") == before


def test_a_jobs_identity_names_xlas_flags_that_change_numbers(monkeypatch):
    pipeline = InferencePipeline(make())
    before = pipeline.job_identity("generate")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert pipeline.job_identity("generate") != before
