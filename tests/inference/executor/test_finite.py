"""Numbers that are none: refused where they come in, and never given as if a model had meant them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from served import error_of, live
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.inference import (
    Batcher,
    Executor,
    StreamingGenerator,
    batch_generate_samples,
)
from artifex.serving import create_app


def one(dtype):
    return {"x": TensorSpec((1,), dtype)}


def same(model, keys, inputs):
    return {"y": inputs["x"]}


def inverse(model, keys, inputs):
    return {"y": 1 / inputs["x"]}


def one_is_infinite(model, keys, inputs):
    """Of the first hundred of the seed below."""
    x = jax.vmap(lambda key: jax.random.uniform(key, (1,), jnp.float32))(keys)
    return {"x": jnp.where(x > 0.9975, jnp.inf, x)}


ENDPOINTS = {
    "inverse": Endpoint(inverse, one(np.float32)),
    "float32": Endpoint(same, one(np.float32)),
    "float16": Endpoint(same, one(np.float16)),
    "int32": Endpoint(same, one(np.int32)),
    "uint8": Endpoint(same, one(np.uint8)),
    "codes": Endpoint(same, {"x": TensorSpec((1,), np.int32, minimum=0, maximum=9)}),
    "up to": Endpoint(same, {"x": TensorSpec((1,), np.uint8, maximum=9)}),
    "class": Endpoint(lambda m, k, inputs: {"y": inputs["x"]}, {"x": TensorSpec((), np.int32, minimum=3)}),
    "scalar": Endpoint(lambda m, k, inputs: {"y": inputs["t"]}, {"t": TensorSpec((), np.float32)}),
}


@pytest.fixture(scope="module")
def executor():
    return Executor(None, ENDPOINTS, batch_sizes=(1, 2))


def column(*numbers):
    return np.array(numbers)[:, None]


@pytest.mark.parametrize(
    ("endpoint", "inputs", "words"),
    [
        ("float32", {"x": column(1.0, 1e39)}, "row 1 has a NaN or infinite value as float32"),
        ("float32", {"x": column(1.0, np.nan)}, "row 1 has a NaN or infinite value"),
        ("float16", {"x": column(1.0, 1e5).astype(np.float32)}, "row 1 has .* value as float16"),
        ("float16", {"x": jnp.asarray([[1.0], [1e5]])}, "row 1 has .* value as float16"),
        ("int32", {"x": column(1, 2**40)}, "expected integers from -2147483648 to 2147483647"),
        ("int32", {"x": column(1, 2**31).astype(np.uint32)}, "expected integers"),
        ("uint8", {"x": column(1, -1)}, "expected integers from 0 to 255, got -1 to 1"),
        ("uint8", {"x": column(1, 256)}, "expected integers from 0 to 255, got 1 to 256"),
        (
            "codes",
            {"x": column(9, 10).astype(np.int32)},
            "codes: x: expected integers from 0 to 9, got 9 to 10",
        ),
        ("codes", {"x": jnp.asarray([[3], [-1]])}, "expected integers from 0 to 9, got -1 to 3"),
        ("codes", {"x": column(0, 2**32)}, "expected integers from 0 to 9, got 0 to 4294967296"),
        ("up to", {"x": column(0, 10).astype(np.uint8)}, "expected integers from 0 to 9, got 0 to 10"),
        ("class", {"x": np.array([2, 3], np.int32)}, "expected integers from 3 to 2147483647, got 2 to 3"),
        ("scalar", {"t": np.array([1.0, 1e39])}, "row 1 has a NaN or infinite value as float32"),
    ],
)
def test_what_a_dtype_does_not_hold_is_refused(executor, endpoint, inputs, words):
    for refused in (
        lambda: executor(endpoint, inputs),
        lambda: list(executor.map(endpoint, [inputs])),
        lambda: executor.check(endpoint, inputs),
    ):
        with pytest.raises(InputError, match=words):
            refused()


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_the_ends_of_a_range_are_taken(executor, convert):
    x = convert(column(0, 9).astype(np.int32))
    np.testing.assert_array_equal(executor("codes", {"x": x})["y"], x)


def test_a_scalar_for_all_rows_out_of_its_range_is_refused(executor):
    with pytest.raises(InputError, match="class: x: expected integers from 3 to 2147483647, got 2 to 2"):
        executor("class", {"x": 2}, num_rows=2)


def test_a_scalar_for_all_rows_that_overflows_is_refused(executor):
    with pytest.raises(InputError, match="expected a finite number, got 1e"):
        executor("scalar", {"t": 1e39}, num_rows=2)


@pytest.mark.parametrize("num_rows", [2, 5])  # one batch, and several
def test_what_comes_out_infinite_is_an_error_that_names_the_row(executor, num_rows):
    x = np.ones((num_rows, 1), np.float32)
    x[-1] = 0
    with pytest.raises(NonFiniteError, match=f"inverse: row {num_rows - 1} came out NaN or infinite"):
        executor("inverse", {"x": x})
    with pytest.raises(NonFiniteError, match=f"row {num_rows} came out"):
        list(executor.map("inverse", [{"x": np.ones((1, 1), np.float32)}, {"x": x}]))


def test_it_is_the_error_of_its_request_alone(executor):
    x = np.ones((5, 1), np.float32)
    bad = x.copy()
    bad[3] = 0
    with Batcher(executor) as batcher:
        futures = [batcher.submit("inverse", {"x": rows}) for rows in (x, bad, x)]
        with pytest.raises(NonFiniteError, match="row 3 came out"):
            futures[1].result(TIMEOUT)
        for future in (futures[0], futures[2]):
            np.testing.assert_array_equal(future.result(TIMEOUT)["y"], x)


def test_a_stream_and_a_job_name_the_same_sample():
    draws = {"generate": Endpoint(one_is_infinite, {})}
    executor = Executor(None, draws, batch_sizes=(1, 4))
    with pytest.raises(NonFiniteError) as of_job:
        batch_generate_samples(executor, 100, rngs=0)
    with StreamingGenerator(executor, 0) as stream, pytest.raises(NonFiniteError) as of_stream:
        list(stream)
    assert "row 56 came out" in str(of_job.value)
    assert str(of_job.value) == str(of_stream.value)


def test_a_server_says_so_to_the_one_who_asked(executor, caplog):
    with live(create_app({"m": executor})) as server:

        def ask(x):
            tensor = {"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1.0, x]}
            return server.client.post("/v2/models/m.inverse/infer", json={"inputs": [tensor]})

        assert ask(2.0).json()["outputs"][0]["data"] == [1.0, 0.5]
        answer = ask(0.0)
    assert answer.status_code == 500
    assert "inverse: row 1 came out NaN or infinite" in error_of(answer)
    assert "internal error" not in caplog.text
