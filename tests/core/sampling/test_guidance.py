"""Guidance: what it adds, in which steps, and what it costs where there is none."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from said import call, rows_of

from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.core.sampling.guidance import Guided, rescaled
from artifex.generative_models.core.sampling.table import GUIDANCE
from artifex.generative_models.inference import Executor

SHAPE = (3, 2, 1)
FIELDS = Denoising(json.dumps({"_class_name": "DDPMScheduler", "clip_sample": False}), num_labels=4)
KEY = jax.random.key(5)
seen: list[int] = []  # rows of each evaluation


def network(model, x, time, guidance, inputs):
    jax.debug.callback(lambda rows: seen.append(len(rows)), x)
    shift = 0.2 * inputs["label"].astype(jnp.float32)[:, None, None, None]
    return jnp.tanh(jnp.flip(x, axis=1) + shift + time[:, None, None, None] / 1000)


@pytest.fixture(scope="module")
def executor():
    endpoints = denoiser_endpoints(network, SHAPE, FIELDS)
    return Executor(None, {"from_noise": endpoints["from_noise"]}, batch_sizes=(2,))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


def drawn(executor, noise, **said):
    """The samples, and the rows of each evaluation."""
    seen.clear()
    said = {"sampler": "ddim", "num_steps": 10, "label": [1, 2], **said}
    x = call(executor, "from_noise", {"noise": noise}, key=KEY, **said)["x"]
    jax.effects_barrier()
    return x, list(seen)


def scales(num_steps=10, sampler="ddim", **said):
    checked = checked_fields(
        "generate", FIELDS.fields, {"num_steps": num_steps, "sampler": sampler, **said}, 2
    )
    rows = FIELDS.rows(checked, 2, FIELDS.options(checked))
    return rows["table"][0, : rows["num_steps"][0], GUIDANCE].tolist()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, [3] * 10),
        ({"guidance_start": 0.2}, [1] * 2 + [3] * 8),
        ({"guidance_stop": 0.5}, [3] * 5 + [1] * 5),
        ({"guidance_start": 0.3, "guidance_stop": 0.7}, [1] * 3 + [3] * 4 + [1] * 3),
        ({"guidance_start": 0.5, "guidance_stop": 0.5}, [1] * 10),
        ({"guidance_stop": 0.5, "num_steps": 4, "sampler": "heun"}, [3] * 4 + [1] * 3),  # 7 evaluations
    ],
)
def test_steps_outside_the_interval_have_none(said, wanted):
    assert scales(guidance_scale=3.0, **said) == wanted


def test_the_null_branch_is_evaluated_where_a_row_needs_it(executor, noise):
    assert drawn(executor, noise)[1] == [2] * 10  # two rows, once a step
    assert drawn(executor, noise, guidance_scale=2.0)[1] == [4] * 10
    assert drawn(executor, noise, guidance_scale=[1.0, 2.0])[1] == [4] * 10
    assert drawn(executor, noise, guidance_scale=2.0, guidance_start=0.3)[1] == [2] * 3 + [4] * 7
    assert drawn(executor, noise, guidance_scale=2.0, guidance_stop=0.0)[1] == [2] * 10


def test_the_defaults_change_nothing(executor, noise):
    plain = drawn(executor, noise, guidance_scale=3.0)[0]
    said = {"guidance_rescale": 0.0, "guidance_start": 0.0, "guidance_stop": 1.0}
    np.testing.assert_array_equal(drawn(executor, noise, guidance_scale=3.0, **said)[0], plain)
    without = drawn(executor, noise)[0]
    for said in ({"guidance_rescale": 0.7}, {"guidance_start": 0.4}):  # which count where there is guidance
        assert np.abs(drawn(executor, noise, guidance_scale=3.0, **said)[0] - plain).min() > 1e-4
        np.testing.assert_array_equal(drawn(executor, noise, **said)[0], without)
    both = drawn(executor, noise, guidance_scale=3.0, guidance_stop=[0.4, 1.0], guidance_rescale=[0.0, 0.7])[
        0
    ]
    for i, said in enumerate(({"guidance_stop": 0.4}, {"guidance_rescale": 0.7})):
        np.testing.assert_array_equal(both[i], drawn(executor, noise, guidance_scale=3.0, **said)[0][i])


def test_what_is_rescaled_has_the_spread_that_it_should():
    rng = np.random.default_rng(1)
    given, guided = rng.normal(size=(2, 3, 8, 8, 2)).astype(np.float32) * np.float32([[[[[1]]]], [[[[4]]]]])
    found = np.asarray(rescaled(guided, given, np.float32([1, 0, 0.25])))
    spreads = [part.reshape(3, -1).std(axis=1) for part in (found, given, guided)]
    np.testing.assert_allclose(spreads[0][0], spreads[1][0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], guided[1])
    np.testing.assert_allclose(spreads[0][2], 0.25 * spreads[1][2] + 0.75 * spreads[2][2], rtol=1e-5)
    flat = np.ones((1, 2, 2, 1), np.float32)
    np.testing.assert_array_equal(rescaled(flat, given[:1, :2, :2, :1], np.ones(1, np.float32)), flat)


def test_channels_of_the_variance_are_neither_guided_nor_rescaled():
    def fn(model, x, time, guidance, inputs):
        of_label = inputs["label"].astype(jnp.float32)[:, None, None, None]
        return jnp.concatenate([x * of_label, 100 * x * of_label], axis=-1)

    x = np.random.default_rng(2).normal(size=(2, 3, 3, 1)).astype(np.float32)
    inputs = {"label": np.array([2, 2], np.int32), "guidance_rescale": np.array([0, 1], np.float32)}
    guided = Guided(fn, (("label", 1),), num_channels=1)
    found = np.asarray(guided(None, x, jnp.zeros(2), jnp.full(2, 4.0), inputs))
    np.testing.assert_allclose(found[..., 1:], 200 * x)
    np.testing.assert_allclose(found[0, ..., :1], (1 + 4 * (2 - 1)) * x[0], rtol=1e-6)
    np.testing.assert_allclose(found[1, ..., :1].std(), 2 * x[1].std(), rtol=1e-5)


def test_an_interval_that_ends_before_it_starts_is_refused(executor, noise):
    with pytest.raises(
        InputError, match=r"guidance_start: expected at most guidance_stop, which is 0.2, got 0.8"
    ):
        rows_of(executor, "from_noise", {"noise": noise}, guidance_start=0.8, guidance_stop=0.2)
