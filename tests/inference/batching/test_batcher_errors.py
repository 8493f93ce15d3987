"""Mistakes and failures reach the request that they belong to, and no other."""

import asyncio

import jax
import numpy as np
import pytest
from shared import TIMEOUT, rows, submit

from artifex.generative_models.core.errors import (
    ClosedError,
    DeadlineExceededError,
    InputError,
    InputTypeError,
    OutOfDeviceMemoryError,
)
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.batching.batcher import Batcher
from artifex.generative_models.inference.executor.jobs import Job


def with_value(value, row=2):
    x = rows(4)
    x[row, 1] = value
    return x


X = {"x": rows(2)}
BAD = {
    "endpoint": (("triple", X), {}, InputError, "no endpoint 'triple'; there are double"),
    "missing input": (("double",), {}, InputError, "double: missing input 'x'"),
    "unknown input": (("double", {**X, "y": 1}), {}, InputError, "double: unknown input 'y'"),
    "shape": (
        ("double", {"x": np.ones((2, 4), np.float32)}),
        {},
        InputError,
        r"\[rows, 3\], got shape \(2, 4\)",
    ),
    "no batch axis": (("double", {"x": rows(1)[0]}), {}, InputError, "add a batch axis"),
    "dtype": (("double", {"x": np.ones((2, 3), np.uint8)}), {}, InputTypeError, "float32 .* got uint8"),
    "unknown option": (("double", X), {"colour": 1}, InputError, "unknown option 'colour'"),
    "option": (("double", X), {"power": []}, InputTypeError, "hashable"),
    "infinite scalar": (("scaled", {**X, "temperature": np.inf}), {}, InputError, "finite number, got inf"),
    "other lengths": (("scaled", {**X, "temperature": np.ones(3)}), {}, InputError, "3 rows where 2"),
    "unknown output": (("double", X), {"outputs": ["y", "z"]}, InputError, "no output 'z'; there are y"),
    "no rows": (("double", {"x": rows(0)}), {}, InputError, "at least one row"),
    "number of rows": (("noise",), {"seed": 1}, InputError, "pass num_rows="),
    "no samples": (("noise",), {"seed": 1, "num_rows": 0}, InputError, "at least one row"),
    "no key": (("noise",), {"num_rows": 2}, InputError, "draws random numbers: pass"),
    "two keys": (("noise",), {"num_rows": 2, "seed": 1, "key": jax.random.key(1)}, InputError, "pass"),
    "keys": (
        ("noise",),
        {"num_rows": 2, "keys": jax.random.split(jax.random.key(1), 3)},
        InputError,
        "3 keys",
    ),
    "seed": (("noise",), {"num_rows": 2, "seed": 1.5}, InputTypeError, "expected an integer, got 1.5"),
    "first row": (("noise",), {"num_rows": 2, "seed": 1, "first_row": -1}, InputError, "first_row"),
    "last row": (("noise",), {"num_rows": 2, "seed": 1, "first_row": 2**32 - 2}, InputError, "at most"),
    "negative timeout": (("double", X), {"timeout": -0.1}, InputError, "timeout: expected seconds from 0"),
    "no timeout": (("double", X), {"timeout": float("nan")}, InputError, "got nan"),
    "too many rows": (("double", {"x": rows(21)}), {}, InputError, "never fit a queue of 20 rows"),
    "too many bytes": (
        ("scaled", {"x": rows(18)}),
        {},
        InputError,
        r"504 bytes\) never fit .*\(500 bytes\)",
    ),
}
bad = pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD.values(), ids=BAD.keys())


@bad
def test_a_mistake_is_named_at_once_and_hurts_nobody_else(held, gate, arguments, keywords, error, message):
    batcher = held(max_queued_rows=20, max_queued_bytes=500)
    neighbour = submit(batcher, 2, 5)
    with pytest.raises(error, match=message):
        batcher.submit(*arguments, **keywords)
    after = submit(batcher, 1, 7)
    gate.release()
    np.testing.assert_array_equal(neighbour.result(TIMEOUT)["y"], 2 * rows(2, 5))
    np.testing.assert_array_equal(after.result(TIMEOUT)["y"], 2 * rows(1, 7))
    assert gate.sizes == [1, 3]
    assert list(batcher.stats()) == ["double"]


@bad
def test_a_coroutine_gets_it_at_once_too(open_batcher, gate, arguments, keywords, error, message):
    batcher = open_batcher(max_queued_rows=20, max_queued_bytes=500)

    async def main():
        with pytest.raises(error, match=message):
            batcher.submit_async(*arguments, **keywords)
        return await batcher.submit_async("double", {"x": rows(2)})

    np.testing.assert_array_equal(asyncio.run(main())["y"], 2 * rows(2))
    assert gate.sizes == [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_in_flight": 0}, "max_in_flight: expected at least 1, got 0"),
        ({"max_queued_rows": 0}, "max_queued_rows: expected at least 1, got 0"),
        ({"max_queued_bytes": 0}, "max_queued_bytes: expected at least 1, got 0"),
        ({"max_delay": -1}, "max_delay: expected seconds from 0, got -1"),
        ({"max_delay": float("inf")}, "max_delay: expected seconds from 0, got inf"),
        ({"max_delay": float("nan")}, "max_delay: expected seconds from 0, got nan"),
    ],
)
def test_bad_limits_are_named(plain, settings, message):
    with pytest.raises(InputError, match=message):
        Batcher(plain, **settings)


def test_the_longest_delay_is_one(open_batcher):
    batcher = open_batcher(max_delay=1e300)
    waiting = submit(batcher, 1)
    with pytest.raises(DeadlineExceededError):  # a thread looked at the queue, and waits for the delay
        batcher.submit("double", {"x": rows(1)}, timeout=0).result(10)
    np.testing.assert_array_equal(submit(batcher, 7).result(10)["y"], 2 * rows(7))
    np.testing.assert_array_equal(waiting.result(10)["y"], 2 * rows(1))


def test_what_has_no_endpoints_is_refused():
    with pytest.raises(TypeError):
        Batcher({"w": np.zeros(3)})


def test_a_closed_batcher_takes_nothing(open_batcher):
    batcher = open_batcher()
    batcher.close()
    with pytest.raises(ClosedError, match="closed") as caught:
        submit(batcher, 1)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(InputError, match="missing input"):  # what is wrong with it is said first
        batcher.submit("double")


def test_a_coroutines_request_needs_an_event_loop(open_batcher):
    batcher = open_batcher()
    with pytest.raises(RuntimeError, match="event loop"):
        batcher.submit_async("double", {"x": rows(2)})
    assert batcher.stats() == {}


VALUES = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_is_not_finite_is_named_at_once(held, value):
    batcher = held()
    with pytest.raises(InputError, match="double: x: row 2 has a NaN or infinite value"):
        batcher.submit("double", {"x": with_value(value)})
    assert batcher.stats()["double"].queued_rows == 0


@pytest.mark.parametrize("value", VALUES)
def test_coroutines_get_it_when_awaited_and_neighbours_get_their_answers(held, gate, value):
    batcher = held()

    async def main():
        futures = [batcher.submit_async("double", {"x": rows(1, first)}) for first in range(1, 21)]
        futures.insert(10, batcher.submit_async("double", {"x": with_value(value)}))
        futures.append(batcher.submit_async("double", {"x": with_value(value, row=0)}))
        gate.release()
        return await asyncio.gather(*futures, return_exceptions=True)

    answers = asyncio.run(main())
    first, second = answers.pop(10), answers.pop()
    with pytest.raises(InputError, match="double: x: row 2 has a NaN or infinite value"):
        raise first
    with pytest.raises(InputError, match="double: x: row 0 has"):
        raise second
    np.testing.assert_array_equal(np.concatenate([answer["y"] for answer in answers]), 2 * rows(20))
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.failed) == (21, 2)


def test_a_value_deep_in_a_long_request_is_named_by_its_row(open_batcher):
    batcher = open_batcher()
    x = rows(50)
    x[37, 0] = np.nan

    async def main():
        return await batcher.submit_async("double", {"x": x})

    with pytest.raises(InputError, match="double: x: row 37 has"):
        asyncio.run(main())


def fail_on(*numbers, error=RuntimeError):
    def fault(batch):
        if set(numbers) & set(batch):
            raise error(f"a fault in {batch}")

    return fault


@pytest.mark.parametrize("row", [1, 4, 8])
@pytest.mark.parametrize("error", [RuntimeError, InputError, MemoryError])
def test_a_failure_is_that_of_the_request_that_causes_it(held, gate, row, error):
    batcher = held()
    futures = [submit(batcher, 1, first) for first in range(1, 9)]
    gate.fault = fail_on(row, error=error)
    gate.release()
    failed = futures.pop(row - 1)
    with pytest.raises(error, match=rf"a fault in \[{row}.0\]"):
        failed.result(TIMEOUT)
    assert [future.result(TIMEOUT)["y"][0, 0] / 2 for future in futures] == sorted({*range(1, 9)} - {row})
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.failed, stats.rows_in_flight) == (8, 1, 0)


def test_a_device_that_fails_always_fails_each(held, gate):
    batcher = held()
    futures = [submit(batcher, 2, first) for first in (1, 3, 5, 7, 9)]
    gate.fault = fail_on(*range(1, 11))
    gate.release()
    for future, first in zip(futures, (1, 3, 5, 7, 9), strict=True):
        with pytest.raises(RuntimeError, match=rf"a fault in \[{first}.0, {first + 1}.0\]"):
            future.result(TIMEOUT)
    np.testing.assert_array_equal(submit(batcher, 1, 50).result(TIMEOUT)["y"], 2 * rows(1, 50))
    assert batcher.stats()["double"].failed == 5


@pytest.mark.parametrize("row", [1, 8, 9, 20, 30])
@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_a_long_request_fails_once_and_leaves_the_queue(open_batcher, gate, row, max_in_flight):
    batcher = open_batcher(max_in_flight=max_in_flight)
    gate.fault = fail_on(row, 30)  # in two batches at times
    gate.hold()
    ended = []
    long = submit(batcher, 30)
    long.add_done_callback(ended.append)
    neighbours = [submit(batcher, 3, 40), submit(batcher, 3, 50)]
    gate.release()
    with pytest.raises(RuntimeError, match="a fault"):
        long.result(TIMEOUT)
    for future, first in zip(neighbours, (40, 50), strict=True):
        np.testing.assert_array_equal(future.result(TIMEOUT)["y"], 2 * rows(3, first))
    batcher.close()
    assert ended == [long]
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.failed, stats.queued_rows, stats.rows_in_flight) == (2, 1, 0, 0)


def exhausted(*arguments):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")


@pytest.fixture
def own(plain):
    """An executor whose executables a test may break."""
    executor = Executor(None, plain.endpoints, batch_sizes=(1, 2, 4, 8))
    executor.warmup(["double"])
    return executor


@pytest.mark.parametrize("sizes", [(8, 4), (8, 4, 2)])
def test_out_of_memory_halves_the_batch_and_all_are_answered(own, open_batcher, sizes):
    program = own._catalog.find("double", {})
    program.executables.update(dict.fromkeys(sizes, exhausted))
    batcher = open_batcher(own)
    futures = [submit(batcher, size, first) for size, first in ((8, 1), (3, 9), (21, 12))]
    answers = np.concatenate([future.result(TIMEOUT)["y"] for future in futures])
    np.testing.assert_array_equal(answers, 2 * rows(32))
    assert program.max_batch_size == min(sizes) // 2


def test_out_of_memory_at_one_row_is_an_error(own, open_batcher):
    own._catalog.find("double", {}).executables.update(dict.fromkeys((1, 2, 4, 8), exhausted))
    future = submit(open_batcher(own), 5)
    with pytest.raises(OutOfDeviceMemoryError, match="double: out of device memory at 1 rows"):
        future.result(TIMEOUT)


def test_no_memory_for_the_answer_of_one_request_is_its_error_alone(own, open_batcher, monkeypatch):
    def no_memory(job, names=None):
        raise MemoryError(f"no room for {job.num_rows} rows")

    monkeypatch.setattr(Job, "allocate", no_memory)
    batcher = open_batcher(own, max_in_flight=1)
    future = submit(batcher, 20)
    with pytest.raises(MemoryError, match="no room for 20 rows"):
        future.result(10)
    np.testing.assert_array_equal(submit(batcher, 2).result(10)["y"], 2 * rows(2))
    assert batcher.stats()["double"].rows_in_flight == 0
