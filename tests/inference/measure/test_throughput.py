import jax.numpy as jnp
import numpy as np
import pytest
from shared import rows

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.measure import throughput
from artifex.generative_models.inference.measure.throughput import (
    Throughput,
    measure_latency,
    measure_throughput,
    random_rows,
)
from artifex.generative_models.inference.measure.timing import Timing


def test_random_rows_are_valid():
    specs = {
        "x": TensorSpec((2, 3), jnp.float32),
        "half": TensorSpec((1000,), jnp.bfloat16),
        "label": TensorSpec((), jnp.int32),
        "mask": TensorSpec((2,), jnp.bool_),
        "codes": TensorSpec((5,), jnp.int32, minimum=3, maximum=5),
        "from": TensorSpec((5,), jnp.int32, minimum=1),
        "temperature": TensorSpec((), jnp.float32, default=0.5),
    }
    values = random_rows(specs, 7)
    assert {name: (value.shape, value.dtype) for name, value in values.items()} == {
        name: ((7, *spec.shape), spec.dtype) for name, spec in specs.items()
    }
    assert len(np.unique(values["x"])) > 1
    for name in ("x", "half"):
        assert values[name].min() >= 0
        assert values[name].max() <= 1
    assert not values["label"].any()
    assert not values["mask"].any()
    assert set(values["codes"].flat) == {3, 4, 5}
    assert values["from"].min() >= 1
    assert (values["temperature"] == 0.5).all()
    np.testing.assert_array_equal(random_rows(specs, 7)["x"], values["x"])


def test_throughput_is_rows_over_the_median_round():
    found = Throughput(120, Timing(np.array([1.0, 2, 2, 2, 2, 4]), 0, 0))
    assert found.rows_per_second == 60
    assert found.interval == (30, 120)


def spy(executor, monkeypatch):
    """Records the rows of each chunk that `map` is given."""
    seen, run = [], executor.map

    def recording(endpoint, chunks, **arguments):
        chunks = list(chunks)
        seen.append([chunk if isinstance(chunk, int) else len(chunk["x"]) for chunk in chunks])
        return run(endpoint, chunks, **arguments)

    monkeypatch.setattr(executor, "map", recording)
    return seen


def test_latency_is_that_of_one_batch(plain, monkeypatch):
    seen = spy(plain, monkeypatch)
    timed = measure_latency(plain, "double", 4, 7)
    assert len(timed.seconds) == 7
    assert seen == [[4]] * (1 + timed.warmup_runs + 7)


@pytest.mark.parametrize("endpoint", ["double", "noise"])
def test_a_round_is_a_stream_of_batches(plain, monkeypatch, endpoint):
    seen = spy(plain, monkeypatch)
    found = measure_throughput(
        plain, endpoint, 4, min_seconds=0.1, num_rounds=3, batch_seconds=0.1 / 50 * plain.parallel_executions
    )
    assert found.rows == 200
    assert seen == [[4] * 50] * 4  # one round warms up
    assert found.rounds.warmup_runs == 0


def test_slow_batches_fill_the_window_twice(plain, monkeypatch):
    seen = spy(plain, monkeypatch)
    measure_throughput(plain, "double", 2, min_seconds=0.1, num_rounds=1, batch_seconds=60)
    assert seen == [[2] * (2 * plain.executions_in_flight)] * 2


def test_many_rows_take_turns_in_a_bounded_pool(plain, monkeypatch):
    monkeypatch.setattr(throughput, "_POOL_BYTES", 10 * rows(4).nbytes)
    made = []
    monkeypatch.setattr(throughput, "random_rows", lambda specs, n: made.append(n) or random_rows(specs, n))
    found = measure_throughput(plain, "double", 4, min_seconds=0.1, num_rounds=1, batch_seconds=1e-3)
    assert made == [40]
    assert found.rows > 40


def test_the_latency_is_measured_where_it_is_not_known(plain, monkeypatch):
    monkeypatch.setattr(throughput, "measure_latency", lambda *args, **said: Timing(np.array([0.01]), 0, 0))
    found = measure_throughput(plain, "double", 1, min_seconds=0.2, num_rounds=1)
    assert found.rows == 20 * plain.parallel_executions


def test_an_endpoint_without_inputs_runs():
    ones = Endpoint(lambda model, keys, inputs: {"y": jnp.ones(len(keys))}, {})
    executor = Executor(None, {"ones": ones}, batch_sizes=(2,))
    assert measure_throughput(executor, "ones", 2, min_seconds=1e-3, num_rounds=1).rows >= 8
