"""The way of rows on an accelerator, taken on the CPU: flags for what is not finite come from the device."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.endpoint import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.inference import Batcher, Executor
from artifex.generative_models.inference.executor.placement import Placement

ENDPOINTS = {
    "inverse": Endpoint(
        lambda model, keys, inputs: {"y": 1 / inputs["x"], "n": inputs["n"] + 1},
        {"x": TensorSpec((2,), np.float32), "n": TensorSpec((), np.int32)},
    )
}
NUMBERS = np.arange(9, dtype=np.int32)


@pytest.fixture
def executor(monkeypatch):
    made = Placement.__init__

    def elsewhere(place, *arguments):
        made(place, *arguments)
        place.on_cpu = False

    monkeypatch.setattr(Placement, "__init__", elsewhere)
    return Executor(None, ENDPOINTS, batch_sizes=(1, 4), tuned=False)


def rows(**changed):
    x = np.full((9, 2), 2, np.float32)
    for name, value in changed.items():
        x[int(name[1:])] = value
    return {"x": x, "n": NUMBERS}


def ways(executor, inputs):
    """A call of several batches, one of a batch, with arrays of the device, a stream, and a queue."""
    part = {name: value[4:8] for name, value in inputs.items()}
    yield 0, lambda: executor("inverse", inputs)
    yield 4, lambda: executor("inverse", part)
    yield 4, lambda: executor("inverse", jax.tree.map(jnp.asarray, part))
    yield 0, lambda: next(executor.map("inverse", [inputs]))
    yield 4, lambda: executor.run(executor.check("inverse", part, values=False))


def test_rows_are_what_they_are(executor):
    for _, call in ways(executor, rows()):
        found = call()
        np.testing.assert_array_equal(found["y"], np.full((len(found["n"]), 2), 0.5))
        assert set(found) == {"y", "n"}
    np.testing.assert_array_equal(found["n"], NUMBERS[4:8] + 1)


def test_an_input_that_is_not_finite_is_named(executor):
    for first, call in ways(executor, rows(_6=np.nan)):
        with pytest.raises(InputError, match=f"inverse: x: row {6 - first} has a NaN or infinite value"):
            call()


def test_a_result_that_is_not_finite_is_told(executor):
    for first, call in ways(executor, rows(_5=0)):
        with pytest.raises(NonFiniteError, match=f"inverse: row {5 - first} came out NaN or infinite"):
            call()


def test_a_bad_request_fails_alone(executor):
    async def answers():
        values = (4, np.inf, 2, 0)
        inputs = [{"x": np.full((1, 2), value, np.float32), "n": NUMBERS[:1]} for value in values]
        with Batcher(executor, max_delay=0.05) as batcher:
            futures = [batcher.submit_async("inverse", one) for one in inputs]
            return await asyncio.gather(*futures, return_exceptions=True)

    good, bad, other, zero = asyncio.run(answers())
    np.testing.assert_array_equal(good["y"], [[0.25, 0.25]])
    np.testing.assert_array_equal(other["y"], [[0.5, 0.5]])
    for error, kind, says in ((bad, InputError, "x: row 0"), (zero, NonFiniteError, "row 0")):
        assert type(error) is kind
        assert says in str(error)
