"""Results that an endpoint does not allow: the row that has one fails alone, as a mistake of who asked."""

import jax
import numpy as np
import pytest
from served import error_of, live
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.fields import RowNumbers
from artifex.generative_models.core.sampling.rejection import (
    REJECTION_FIELDS,
    REQUIRES,
    UNBOUNDED,
    Rejection,
)
from artifex.generative_models.inference import Batcher, Executor
from artifex.serving import create_app

FIELDS = RowNumbers.of(REJECTION_FIELDS, {"min_log_prob": UNBOUNDED})
KEY = jax.random.key(3)


def uniform(model, keys, inputs):
    """A number in [0, 1), which is its own log-probability."""
    x = jax.vmap(lambda key: jax.random.uniform(key, (), np.float32))(keys)
    return x, x


def halved(model, keys, inputs):
    return {"y": inputs["x"] / 2, "fits": inputs["x"] <= 1, "wide": inputs["x"][:, None] <= np.ones((1, 2))}


def said(*min_log_prob, max_attempts=8):
    return FIELDS.rows(
        {"min_log_prob": np.float32(min_log_prob), "max_attempts": np.int32(max_attempts)},
        len(min_log_prob),
        {},
    )


@pytest.fixture(scope="module")
def executor():
    x = {"x": TensorSpec((), np.float32)}
    endpoints = {
        "halve": Endpoint(halved, x, requires=("fits", "{y:.2f} is over 0.50")),
        "generate": Endpoint(Rejection(uniform, ()), FIELDS.inputs, says=FIELDS, requires=REQUIRES),
    }
    return Executor(None, endpoints, batch_sizes=(1, 2, 4))


@pytest.mark.parametrize("num_rows", [2, 7])  # one batch, and several
def test_a_row_that_is_not_allowed_is_told_by_its_number(executor, num_rows):
    x = np.linspace(0, 1, num_rows, dtype=np.float32)
    np.testing.assert_array_equal(executor("halve", {"x": x})["y"], x / 2)
    x[-1] = 3
    with pytest.raises(InputError, match=rf"^halve: row {num_rows - 1}: 1\.50 is over 0\.50$"):
        executor("halve", {"x": x})
    with pytest.raises(InputError, match=f"halve: row {num_rows + 1}: 1.50"):
        list(executor.map("halve", [{"x": np.ones(2, np.float32)}, {"x": x}]))


def test_previews_may_be_what_results_may_not(executor):
    """Row 1 takes a few draws, of which those before the last are not accepted."""
    bounds = (0.0, 0.95)
    looks = list(executor.iterate("generate", said(*bounds, max_attempts=200), key=KEY))
    assert len(looks) > 2
    assert [look.outputs["accepted"].tolist() for look in looks[:-1]] == [[True, False]] * (len(looks) - 1)
    assert looks[-1].outputs["accepted"].all()
    whole = executor("generate", said(*bounds, max_attempts=200), key=KEY)
    np.testing.assert_array_equal(looks[-1].outputs["x"], whole["x"])
    np.testing.assert_array_equal(looks[-1].steps, whole["attempts"])
    never = executor.iterate("generate", said(0.0, 2.0, max_attempts=3), key=KEY)
    assert [next(never).steps.tolist() for _ in range(2)] == [[1, 1], [1, 2]]
    with pytest.raises(InputError, match="generate: row 1: of 3 draws none has a log-probability"):
        next(never)


@pytest.mark.parametrize("slots", [True, False])
def test_it_fails_its_request_alone(executor, slots):
    key = jax.random.fold_in(KEY, 1)
    wanted = np.asarray(executor("generate", said(0.3, 0.6), key=key)["x"])
    best = np.max([jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 1), s)) for s in range(4)])
    with Batcher(executor, slots=slots) as batcher:
        bounds = ((0.3, 0.6), (0.0, 2.0), (0.3, 0.6))
        futures = [
            batcher.submit("generate", said(*some, max_attempts=4 if some[1] > 1 else 64), key=key)
            for some in bounds
        ]
        with pytest.raises(InputError, match=f"row 1: of 4 draws none .* the best has {best:.6g}: lower"):
            futures[1].result(TIMEOUT)
        for future in (futures[0], futures[2]):
            np.testing.assert_allclose(future.result(TIMEOUT)["x"], wanted, rtol=1e-6)


def test_a_server_says_that_it_was_the_caller_s(executor):
    with live(create_app({"m": executor})) as server:

        def ask(bound):
            said = {"parameters": {"min_log_prob": bound, "max_attempts": 3, "seed": 1}}
            return server.client.post("/v2/models/m.generate/infer", json={"inputs": [], **said})

        assert ask(0.0).status_code == 200
        answer = ask(2.0)
    assert answer.status_code == 400
    assert "row 0: of 3 draws none has a log-probability of at least min_log_prob" in error_of(answer)


@pytest.mark.parametrize("name", ["z", "y", "wide"])
def test_what_is_required_is_a_flag_of_each_row(executor, name):
    endpoint = Endpoint(halved, {"x": TensorSpec((), np.float32)}, requires=(name, ""))
    with pytest.raises(
        InputTypeError, match=rf"requires: expected an output that is bool \[rows\], got '{name}'"
    ):
        Executor(None, {"halve": endpoint})("halve", {"x": np.zeros(1, np.float32)})
