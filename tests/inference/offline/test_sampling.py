"""What samples are drawn with reaches the model by every way of drawing them."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, Option, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference import (
    AsyncInferenceServer,
    Executor,
    InferencePipeline,
    batch_generate_samples,
    stream_samples,
)


def conditioned(model, keys, inputs, *, steps=1):
    noise = jax.vmap(lambda key: jax.random.uniform(key, (2, 2, 1), jnp.float32))(keys)
    label = inputs["label"].astype(jnp.float32)[:, None, None, None]
    return {"x": noise + 10 * label + 100 * inputs["place"].sum(axis=1)[:, None, None, None] + 1000 * steps}


ENDPOINTS = {
    "generate": Endpoint(
        conditioned,
        {"label": TensorSpec((), jnp.int32, default=0), "place": TensorSpec((2,), jnp.float32)},
        {"steps": Option(1, minimum=1, maximum=8)},
    )
}
PLACE = [1.0, 1.0]


@pytest.fixture(scope="module")
def executor():
    return Executor(None, ENDPOINTS, batch_sizes=(4,))


def whole(samples):
    return np.floor(np.asarray(samples)[:, 0, 0, 0]).tolist()


def test_one_for_all_and_one_a_sample(executor):
    def draw(**given):
        return whole(batch_generate_samples(executor, 3, rngs=1, place=PLACE, **given))

    assert draw(label=3) == [1230] * 3
    assert draw(label=[1, 2, 3], steps=2) == [2210, 2220, 2230]
    assert draw(label=np.array([1, 2, 3]), batch_size=2) == [1210, 1220, 1230]


def test_every_way_gives_the_same_samples(executor):
    given = {"label": 3, "place": PLACE, "steps": 2}
    wanted = np.asarray(batch_generate_samples(executor, 6, rngs=7, **given))
    pipeline = InferencePipeline(executor)
    np.testing.assert_array_equal(pipeline.generate(6, rngs=7, **given), wanted)
    np.testing.assert_array_equal(list(stream_samples(executor, 6, seed=7, **given)), wanted)

    async def ask():
        async with AsyncInferenceServer(executor) as server:
            return await server.generate_async(6, 7, **given)

    np.testing.assert_array_equal(asyncio.run(ask()), wanted)


def test_without_a_seed_samples_differ(executor):
    first, second = (np.asarray(batch_generate_samples(executor, 2, place=PLACE)) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "missing input 'place'"),
        ({"place": PLACE, "lable": 3}, "generate: lable is not taken; it takes label, place, steps"),
        ({"place": PLACE, "label": [1, 2]}, r"label: expected shape \[\] or \[3\], got \[2\]"),
        ({"place": [1.0]}, r"place: expected shape \[2\] or \[3, 2\], got \[1\]"),
        ({"place": PLACE, "label": 2**40}, "label: expected integers from"),
        ({"place": PLACE, "label": 0.5}, "label: expected int32"),
        ({"place": PLACE, "steps": 0}, "steps: expected at least 1, got 0"),
        ({"place": PLACE, "steps": 100_000}, "steps: expected at most 8, got 100000"),
        ({"place": PLACE, "temperature": 0.5}, "temperature: this model takes none"),
    ],
)
def test_what_does_not_fit_is_told(executor, given, words):
    with pytest.raises((InputError, InputTypeError), match=words):
        batch_generate_samples(executor, 3, rngs=1, **given)


def test_a_part_of_the_samples_is_given_its_part_of_the_inputs(executor):
    pipeline, key = InferencePipeline(executor), jax.random.key(3)
    how = {"key": key, "given": {"label": [1, 2, 3, 4, 5], "place": PLACE}}
    wanted = np.concatenate(list(pipeline.generate_chunks(5, **how)))
    part = np.concatenate(list(pipeline.generate_chunks(5, first_row=1, stop=4, **how)))
    np.testing.assert_array_equal(part, wanted[1:4])
