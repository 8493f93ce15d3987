"""Endpoints that take steps: all in one executable, or a few at a time with a look in between."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import DeviceManager, Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.sampling.denoising import GUIDANCE_INPUTS, Denoising
from artifex.generative_models.core.sampling.guidance import Guided
from artifex.generative_models.core.sampling.linear import LinearSampler
from artifex.generative_models.core.sampling.packing import TABLE_INPUTS, TABLE_OPTIONS
from artifex.generative_models.inference import Executor

SHAPE = (4, 4, 1)
FIELDS = Denoising(json.dumps({"_class_name": "DDPMScheduler", "clip_sample": False}), num_labels=3)
# Rows with different samplers, steps and guidance.
SAID = {
    "sampler": ["ddim", "euler", "dpm++2m_sde", "heun", "unipc", "ddpm", "euler_a", "lcm"],
    "num_steps": [5, 20, 9, 11, 3, 17, 12, 4],
    "guidance_scale": [1.0, 2.0, 3.5, 1.0, 0.0, 1.5, 1.0, 7.0],
    "label": [0, 1, 2, 0, 1, 2, 0, 1],
}
ROWS = len(SAID["label"])


def network(model, x, time, guidance, inputs):
    shift = 0.1 * inputs["label"].astype(jnp.float32)[:, None, None, None]
    return jnp.tanh(jnp.flip(x, axis=1) @ model["w"] + shift + time[:, None, None, None] / 1000)


def breaks(model, x, time, guidance, inputs):
    o = network(model, x, time, guidance, inputs)
    return jnp.where(
        (inputs["label"] == 2)[:, None, None, None] & (time < 500)[:, None, None, None], jnp.nan, o
    )


INPUTS = {**TABLE_INPUTS, **GUIDANCE_INPUTS, "label": TensorSpec((), np.int32)}


@pytest.fixture(scope="module")
def executor():
    guided = LinearSampler(Guided(network, (("label", 3),)), SHAPE)
    endpoints = {
        "generate": Endpoint(guided, INPUTS, TABLE_OPTIONS),
        "breaks": Endpoint(LinearSampler(breaks, SHAPE), INPUTS, TABLE_OPTIONS),
        "plain": Endpoint(lambda model, keys, inputs: {"y": inputs["x"]}, {"x": TensorSpec((), np.float32)}),
    }
    return Executor({"w": np.full((1, 1), 0.7, np.float32)}, endpoints, batch_sizes=(1, 2, ROWS))


@pytest.fixture(scope="module")
def inputs():
    return rows_of(SAID, ROWS)


def rows_of(said, num_rows):
    checked = checked_fields("generate", FIELDS.fields, said, num_rows)
    return FIELDS.rows(checked, num_rows, FIELDS.options(checked))


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(4), ROWS)


@pytest.fixture(scope="module")
def whole(executor, inputs, keys):
    return np.asarray(executor("generate", inputs, keys=keys)["x"])


def test_rows_of_any_samplers_are_the_same_alone(executor, inputs, keys, whole):
    for i in range(ROWS):
        alone = executor("generate", {n: v[i : i + 1] for n, v in inputs.items()}, keys=keys[i : i + 1])["x"]
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=2e-5, atol=2e-5)
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    turned = executor("generate", {n: v[order] for n, v in inputs.items()}, keys=keys[order])["x"]
    np.testing.assert_array_equal(turned, whole[order])


@pytest.mark.parametrize("every", [1, 3, 7, 1000])
def test_a_few_steps_at_a_time_give_the_same(executor, inputs, keys, whole, every):
    looks = list(executor.iterate("generate", inputs, keys=keys, every=every))
    np.testing.assert_array_equal(looks[-1].outputs["x"], whole)
    assert looks[-1].left == 0
    np.testing.assert_array_equal(looks[-1].steps, inputs["num_steps"])
    assert len(looks) == -(-int(inputs["num_steps"].max()) // every)
    for number, look in enumerate(looks, 1):
        np.testing.assert_array_equal(look.steps, np.minimum(inputs["num_steps"], number * every))
        done = look.steps == inputs["num_steps"]
        np.testing.assert_array_equal(look.outputs["x"][done], whole[done])  # what is done stays


def test_cores_share_the_rows_of_a_loop(executor, inputs, keys, whole, monkeypatch):
    monkeypatch.setattr(executor._place, "parallel_executions", 3)
    assert executor.batch_sizes_for("generate", ROWS) == {ROWS}  # three, three and two
    assert executor.batch_sizes_for("generate", 5) == {1, 2}
    assert executor.batch_sizes_for("generate", 4) == {2}
    assert executor.batch_sizes_for("plain", 5) == {ROWS}
    few = {name: value[:5] for name, value in inputs.items()}
    found = np.asarray(executor("generate", few, keys=keys[:5])["x"])
    np.testing.assert_allclose(found, whole[:5], rtol=2e-5, atol=2e-5)
    looks = list(executor.iterate("generate", few, keys=keys[:5], every=4))
    np.testing.assert_array_equal(looks[-1].outputs["x"], found)
    for number, look in enumerate(looks, 1):  # of which some batches end before others
        np.testing.assert_array_equal(look.steps, np.minimum(few["num_steps"], 4 * number))
        assert look.left == (look.steps < few["num_steps"]).sum()


def test_a_row_that_breaks_on_another_core_is_told_by_its_number(executor, keys, monkeypatch):
    monkeypatch.setattr(executor._place, "parallel_executions", 2)
    inputs = rows_of({"num_steps": 20, "sampler": "ddim", "label": [0, 1, 0, 2]}, 4)
    with pytest.raises(NonFiniteError, match="row 3 came out NaN or infinite at step 11"):
        executor("breaks", inputs, keys=keys[:4])
    with pytest.raises(NonFiniteError, match="row 3 came out NaN or infinite at step 11"):
        list(executor.iterate("breaks", inputs, keys=keys[:4], every=4))


@pytest.mark.eight_devices
def test_a_few_steps_at_a_time_on_a_mesh(inputs, keys):
    guided = LinearSampler(Guided(network, (("label", 3),)), SHAPE)
    endpoints = {"generate": Endpoint(guided, INPUTS, TABLE_OPTIONS)}
    weights = {"w": np.full((1, 1), 0.7, np.float32)}
    executor = Executor(weights, endpoints, mesh=DeviceManager().mesh(), batch_sizes=(ROWS,))
    found = executor("generate", inputs, keys=keys)["x"]
    looks = list(executor.iterate("generate", inputs, keys=keys, every=7))
    np.testing.assert_array_equal(looks[-1].outputs["x"], found)
    few = {name: value[:5] for name, value in inputs.items()}
    looks = list(executor.iterate("generate", few, keys=keys[:5], every=7))
    np.testing.assert_array_equal(looks[-1].outputs["x"], found[:5])


def test_previews_come_close_to_the_sample(executor, keys):
    inputs = rows_of({"num_steps": 30, "label": 1}, 2)
    looks = [look.outputs["x"] for look in executor.iterate("generate", inputs, keys=keys[:2], every=5)]
    apart = [np.abs(look - looks[-1]).mean() for look in looks]
    assert apart[0] > apart[2] > apart[4] > apart[5] == 0


def test_other_fields_compile_nothing(executor, compilations, keys):
    for said in ({"num_steps": 5}, {"sampler": "heun", "num_steps": 20}, {"guidance_scale": 4.0, "label": 2}):
        executor("generate", rows_of(said, 2), keys=keys[:2])
        compilations.clear()
    for sampler in FIELDS.fields["sampler"].choices:
        for steps in (1, 13, 30):
            executor("generate", rows_of({"sampler": sampler, "num_steps": steps}, 2), keys=keys[:2])
    assert compilations == []


def test_the_state_is_held_once(executor, inputs):
    program = executor._catalog.find("generate", {}, inputs)
    memory = executor._catalog.part(program, ROWS, "steps").memory_analysis()
    state_bytes = ROWS * (4 * np.prod(SHAPE) * 4 + 4)  # four samples and a step number
    assert memory.alias_size_in_bytes >= state_bytes


@pytest.mark.parametrize("every", [None, 4])
def test_a_row_that_breaks_is_told_with_its_step(executor, keys, every):
    inputs = rows_of({"num_steps": 20, "sampler": "ddim", "label": [0, 1]}, 2)
    run = (
        (lambda: executor("breaks", inputs, keys=keys[:2]))
        if every is None
        else (lambda: list(executor.iterate("breaks", inputs, keys=keys[:2], every=every)))
    )
    run()
    inputs["label"][1] = 2
    with pytest.raises(NonFiniteError, match="row 1 came out NaN or infinite at step 11"):
        run()


def test_a_loop_reads_what_it_is_given_in_whatever_dtype_weights_are(inputs, keys):
    """A sampler's coefficients in bfloat16 would be another sampler's."""

    def without_weights(model, x, time, guidance, inputs):
        return jnp.tanh(jnp.flip(x, axis=1) + time[:, None, None, None] / 1000)

    endpoints = {"generate": Endpoint(LinearSampler(without_weights, SHAPE), INPUTS, TABLE_OPTIONS)}
    full, half = (
        Executor({"w": np.ones(1, np.float32)}, endpoints, batch_sizes=(ROWS,), dtype=dtype)
        for dtype in (None, "bfloat16")
    )
    found = [np.asarray(executor("generate", inputs, keys=keys)["x"]) for executor in (full, half)]
    np.testing.assert_array_equal(*found)


def test_who_stops_looking_stops_the_work(executor, inputs, keys):
    looks = executor.iterate("generate", inputs, keys=keys, every=1)
    assert next(looks).steps.max() == 1
    looks.close()


@pytest.mark.parametrize(
    ("endpoint", "settings", "words"),
    [
        ("plain", {}, "plain: it takes no steps"),
        ("generate", {"every": 0}, "every: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_iterated(executor, inputs, keys, endpoint, settings, words):
    given = {"x": np.ones(2, np.float32)} if endpoint == "plain" else inputs
    with pytest.raises(InputError, match=words):
        next(executor.iterate(endpoint, given, keys=keys if endpoint != "plain" else None, **settings))
