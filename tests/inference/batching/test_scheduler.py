"""Which rows run together, in which order, and when."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import TIMEOUT, rows, submit

from artifex.generative_models.core.errors import DeadlineExceededError
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.batching.scheduler import batch_rows
from artifex.generative_models.inference.executor.program import Program


def result(future):
    return future.result(TIMEOUT)["y"]


@pytest.mark.parametrize(
    ("num_queued", "batch_sizes", "parallel", "expected"),
    [
        # One execution at a time: all that there is.
        (1, (1, 2, 4, 8), 1, 1),
        (7, (1, 2, 4, 8), 1, 7),
        (8, (1, 2, 4, 8), 1, 8),
        (9, (1, 2, 4, 8), 1, 8),
        (3, (4, 8), 1, 3),
        # Two share the rows, half the largest batch each at least.
        (4, (1, 2, 4, 8), 2, 4),
        (8, (1, 2, 4, 8), 2, 4),
        (12, (1, 2, 4, 8), 2, 6),
        (16, (1, 2, 4, 8), 2, 8),
        (100, (1, 2, 4, 8), 2, 8),
        (64, (1, 2, 4, 8, 16, 32, 64), 2, 32),
        (96, (1, 2, 4, 8, 16, 32, 64), 2, 48),
        (64, (1, 2, 4, 8, 16, 32, 64), 8, 32),
        # More than a quarter of a size empty: the size below, full.
        (3, (1, 2, 4, 8), 2, 3),
        (5, (1, 2, 4, 8), 2, 4),
        (10, (1, 2, 4, 8), 2, 4),
        (11, (1, 2, 4, 8), 2, 6),
        (20, (1, 2, 4, 8, 16, 32, 64), 2, 16),
        (24, (1, 2, 4, 8, 16, 32, 64), 2, 24),
        # No size below: padded.
        (1, (4, 8), 2, 1),
        (5, (16,), 2, 5),
        (40, (16,), 2, 16),
        (1, (1,), 4, 1),
        (9, (1,), 4, 1),
    ],
)
def test_batch_rows(num_queued, batch_sizes, parallel, expected):
    assert batch_rows(num_queued, batch_sizes, parallel) == expected


def test_rows_of_loops_are_shared_however_few():
    sizes = (1, 2, 4, 8)
    assert [batch_rows(number, sizes, 2, least=1) for number in (1, 2, 3, 4, 8, 16)] == [1, 1, 2, 2, 4, 8]


SIZES = st.sets(st.integers(1, 64), min_size=1, max_size=6).map(lambda sizes: tuple(sorted(sizes)))


@given(num_queued=st.integers(1, 200), batch_sizes=SIZES, parallel=st.integers(1, 9))
def test_batch_rows_is_never_none_nor_more_than_there_is_or_fits(num_queued, batch_sizes, parallel):
    taken = batch_rows(num_queued, batch_sizes, parallel)
    assert 1 <= taken <= min(num_queued, batch_sizes[-1])
    padded = next(size for size in batch_sizes if size >= taken)
    wastes = 4 * taken < 3 * padded
    assert not wastes or parallel == 1 or taken < batch_sizes[0] or taken in batch_sizes


def test_an_idle_device_takes_one_row_at_once_and_then_all_that_came_meanwhile(held, gate):
    batcher = held()
    assert gate.sizes == [1]
    futures = [submit(batcher, 1, first) for first in range(1, 8)]
    assert gate.sizes == [1]
    gate.release()
    assert [result(future)[0, 0] for future in futures] == [2 * first for first in range(1, 8)]
    assert gate.sizes == [1, 7]


def test_more_than_the_largest_batch_goes_as_full_batches(held, gate):
    batcher = held()
    futures = [submit(batcher, 3, first) for first in range(1, 19, 3)]
    gate.release()
    for future, first in zip(futures, range(1, 19, 3), strict=True):
        np.testing.assert_array_equal(result(future), 2 * rows(3, first))
    assert gate.sizes == [1, 8, 8, 2]
    assert [row for batch in gate.batches[1:] for row in batch.rows] == list(range(1, 19))


@pytest.mark.parametrize("max_in_flight", [2, 3])
def test_as_many_batches_as_may_be_in_flight_are_at_the_same_time(open_batcher, gate, max_in_flight):
    together = threading.Barrier(max_in_flight)
    gate.fault = lambda batch: together.wait(TIMEOUT)  # passes only if all are there
    batcher = open_batcher(max_in_flight=max_in_flight)
    futures = [submit(batcher, 8) for _ in range(2 * max_in_flight)]
    for future in futures:
        np.testing.assert_array_equal(result(future), 2 * rows(8))


def test_no_more_batches_than_allowed_are_in_flight(open_batcher, gate):
    batcher = open_batcher(max_in_flight=2)
    gate.hold()
    futures = [submit(batcher, 8) for _ in range(6)]
    gate.wait(2)
    with pytest.raises(DeadlineExceededError):  # a thread looked at the queue, and took nothing more
        submit(batcher, 8, timeout=0).result(TIMEOUT)
    assert gate.sizes == [8, 8]
    gate.release()
    assert all((result(future) == 2 * rows(8)).all() for future in futures)


def test_where_two_compute_at_once_they_share_the_rows(held, gate, monkeypatch):
    monkeypatch.setattr(Executor, "parallel_executions", 2)
    batcher = held()
    future = submit(batcher, 12)
    gate.release()
    np.testing.assert_array_equal(result(future), 2 * rows(12))
    assert gate.sizes == [1, 6, 4, 2]


@pytest.mark.parametrize("max_in_flight", [1, 4])
@pytest.mark.parametrize("size", [9, 50])
def test_a_request_of_many_batches_comes_back_in_order(open_batcher, gate, size, max_in_flight):
    batcher = open_batcher(max_in_flight=max_in_flight)
    np.testing.assert_array_equal(result(submit(batcher, size)), 2 * rows(size))
    assert sum(gate.sizes) == size
    assert max(gate.sizes) == 8


def test_rows_of_a_request_complete_in_any_order(open_batcher, gate):
    order = threading.Semaphore(0)

    def first_batch_last(batch):
        if batch[0] == 1:
            assert order.acquire(timeout=TIMEOUT)
        else:
            order.release()

    gate.fault = first_batch_last
    batcher = open_batcher(max_in_flight=2)
    np.testing.assert_array_equal(result(submit(batcher, 16)), 2 * rows(16))


def test_requests_that_differ_in_values_of_a_row_share_a_batch(held, gate):
    batcher = held()
    given_inputs = [
        {"x": rows(1)},
        {"x": rows(1), "temperature": 0.5},
        {"x": rows(2), "temperature": [3, 4.0]},
    ]
    futures = [batcher.submit("scaled", inputs) for inputs in given_inputs]
    gate.release()
    answers = [result(future)[:, 0].tolist() for future in futures]
    assert answers == [[1.0], [0.5], [3.0, 8.0]]
    assert gate.sizes == [1, 4]


def test_options_make_batches_of_their_own_and_defaults_do_not(held, gate):
    batcher = held()
    powers = [{"power": 2}, {}, {"power": 2}, {"power": 1}]
    futures = [submit(batcher, 1, first=3, **options) for options in powers]
    gate.release()
    assert [result(future)[0, 0] for future in futures] == [18, 6, 18, 6]
    assert [(batch.options["power"], batch.size) for batch in gate.batches] == [(1, 1), (2, 2), (1, 2)]


def test_the_endpoint_whose_first_request_is_oldest_goes_first(held, gate):
    batcher = held()
    order = ["scaled", "double", "scaled", "noise", "double"]
    futures = []
    for number, name in enumerate(order, 1):
        inputs, seed = (None, 1) if name == "noise" else ({"x": rows(1, number)}, None)
        futures.append(batcher.submit(name, inputs, seed=seed, num_rows=1))
    gate.release()
    for future in futures:
        result(future)
    seen = [(batch.endpoint, batch.rows) for batch in gate.batches[1:]]
    assert seen == [("scaled", [1, 3]), ("double", [2, 5]), ("noise", [0])]


def test_nothing_starves_beside_an_endpoint_that_always_has_more(held, gate):
    batcher = held()
    submit(batcher, 8, 100)
    rare = submit(batcher, 1, 7, "scaled")
    for batch in range(1, 6):  # whatever runs, there is a full batch more of the other
        submit(batcher, 8, 100 * (batch + 1))
        gate.release(1)
        gate.wait(batch + 1)
    assert [batch.endpoint for batch in gate.batches[:4]] == ["double", "double", "scaled", "double"]
    assert result(rare)[0, 0] == 7


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("sizes", [[8], [3, 5], [1] * 8, [16]])
def test_a_full_batch_waits_for_no_delay(open_batcher, gate, monkeypatch, sizes, parallel):
    monkeypatch.setattr(Executor, "parallel_executions", parallel)
    batcher = open_batcher(max_delay=600)
    futures = [submit(batcher, size) for size in sizes]
    for future, size in zip(futures, sizes, strict=True):
        np.testing.assert_array_equal(future.result(10)["y"], 2 * rows(size))


def test_a_batch_that_is_not_full_waits_for_more(open_batcher, gate):
    batcher = open_batcher(max_delay=600)
    early = submit(batcher, 5, 1)
    with pytest.raises(DeadlineExceededError):  # a thread looked at the queue, and took nothing
        submit(batcher, 1, timeout=0).result(TIMEOUT)
    assert gate.batches == []
    late = submit(batcher, 3, 6)
    np.testing.assert_array_equal(np.concatenate([result(early), result(late)]), 2 * rows(8))
    assert gate.sizes == [8]


def test_a_delay_ends(open_batcher, gate):
    batcher = open_batcher(max_delay=0.01)
    np.testing.assert_array_equal(result(submit(batcher, 3)), 2 * rows(3))
    assert gate.sizes == [3]


def test_a_full_queue_overtakes_one_that_waits_for_its_delay(open_batcher, gate):
    batcher = open_batcher(max_delay=600)
    waiting = submit(batcher, 1, endpoint="scaled")
    np.testing.assert_array_equal(result(submit(batcher, 8)), 2 * rows(8))
    assert not waiting.done()


def test_close_waits_for_no_delay(open_batcher):
    batcher = open_batcher(max_delay=600)
    futures = [submit(batcher, 3), submit(batcher, 2, endpoint="scaled")]
    batcher.close()
    assert [len(future.result(0)["y"]) for future in futures] == [3, 2]


def test_small_requests_do_not_wait_for_all_rows_of_large_ones(held, gate):
    batcher = held()
    waiting = {100: 40, 200: 40, 300: 6, 400: 1}  # rows of requests, by their first number
    futures = [submit(batcher, num_rows, first) for first, num_rows in waiting.items()]
    gate.release()
    for future, (first, num_rows) in zip(futures, waiting.items(), strict=True):
        np.testing.assert_array_equal(future.result(TIMEOUT)["y"], 2 * rows(num_rows, first))
    batches = [[min(number // 100, 4) for number in batch.rows] for batch in gate.batches[1:]]
    assert sorted(batches[0]) == [1, 1, 1, 1, 3, 3, 3, 4]  # half to the oldest, then the smallest first
    assert sorted(batches[1]) == [1, 1, 1, 1, 1, 3, 3, 3]
    assert all(3 not in batch and 4 not in batch for batch in batches[2:])
    assert sum(len(batch) for batch in batches) == 87


def test_what_nobody_waits_for_ends_after_the_batch_under_way(open_batcher, gate):
    batcher = open_batcher(max_in_flight=1)
    gate.hold()
    future = submit(batcher, 64)
    gate.wait(1)
    assert future.cancel()
    gate.release()
    batcher.close()
    assert gate.sizes == [8]


def test_programs_take_turns(held, gate):
    batcher = held()
    futures = [submit(batcher, 24, endpoint="double"), submit(batcher, 24, endpoint="scaled")]
    futures.append(submit(batcher, 24, endpoint="double", power=2))
    gate.release()
    for future in futures:
        future.result(TIMEOUT)
    kinds = [(batch.endpoint, batch.options.get("power")) for batch in gate.batches[1:]]
    assert len(set(kinds[:3])) == 3
    assert kinds == kinds[:3] * 3


def test_what_is_compiled_already_goes_before_what_is_not(held, gate, plain, monkeypatch):
    may_compile, prepare = threading.Event(), plain.prepare

    def slow(program, size):
        assert may_compile.wait(TIMEOUT)
        return prepare(program, size)

    monkeypatch.setattr(plain, "prepare", slow)
    batcher = held()
    other = submit(batcher, 3, power=5)
    futures = [submit(batcher, 3) for _ in range(4)]
    gate.release()
    for future in futures:
        result(future)
    assert not other.done()
    may_compile.set()
    assert result(other).shape == (3, 3)


def test_what_does_not_compile_is_told_to_whoever_asked_for_it(held, gate, plain, monkeypatch):
    def fails(*given):
        raise ValueError("no such instruction")

    monkeypatch.setattr(plain, "prepare", fails)
    monkeypatch.setattr(Program, "_compile", fails)
    batcher = held()
    futures = [submit(batcher, 1, power=7), submit(batcher, 1)]
    gate.release()
    with pytest.raises(ValueError, match="no such instruction"):
        result(futures[0])
    result(futures[1])
