"""What a queue does not hold, drops or forgets: limits, deadlines, cancellation, and the counters of them."""

import dataclasses
import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace

import numpy as np
import pytest
from shared import TIMEOUT, rows, submit

from artifex.generative_models.core.errors import DeadlineExceededError, InputError, Overloaded
from artifex.generative_models.inference.batching.scheduler import Scheduler
from artifex.generative_models.inference.batching.stats import BatcherStats

BYTES_PER_ROW = 2 * 3 * 4  # of `double`: three float32 in, three out


def result(future):
    return future.result(TIMEOUT)["y"]


LIMITS = [{"max_queued_rows": 10}, {"max_queued_bytes": 10 * BYTES_PER_ROW}]


@pytest.mark.parametrize("limits", LIMITS, ids=["rows", "bytes"])
def test_a_full_queue_refuses_at_once_and_takes_more_when_there_is_room(held, gate, limits):
    batcher = held(**limits)
    futures = [submit(batcher, 6), submit(batcher, 4)]
    for _ in range(2):
        with pytest.raises(Overloaded, match="no room for 1 rows beside the 10 that wait"):
            submit(batcher, 1)
    assert batcher.stats()["double"].overloaded == 2
    assert futures[1].cancel()
    with pytest.raises(Overloaded, match="5 rows"):
        submit(batcher, 5)
    futures[1] = submit(batcher, 4, 7)
    gate.release()
    np.testing.assert_array_equal(np.concatenate([result(future) for future in futures]), 2 * rows(10))
    np.testing.assert_array_equal(result(submit(batcher, 10)), 2 * rows(10))
    assert batcher.stats()["double"].overloaded == 3


@pytest.mark.parametrize("limits", LIMITS, ids=["rows", "bytes"])
def test_the_limits_are_of_all_endpoints_together(held, limits):
    batcher = held(**limits)
    submit(batcher, 5, endpoint="double")
    submit(batcher, 3, endpoint="double", power=2)
    with pytest.raises(Overloaded):
        submit(batcher, 3, endpoint="scaled")
    assert {name: stats.overloaded for name, stats in batcher.stats().items()} == {"double": 0, "scaled": 1}


@pytest.mark.parametrize("limits", LIMITS, ids=["rows", "bytes"])
def test_more_than_the_queue_ever_holds_is_a_mistake_of_the_caller(open_batcher, limits):
    batcher = open_batcher(**limits)
    with pytest.raises(InputError, match=r"11 rows .* never fit a queue of .*; send it in parts"):
        submit(batcher, 11)
    np.testing.assert_array_equal(result(submit(batcher, 10)), 2 * rows(10))
    assert batcher.stats()["double"].overloaded == 0


@pytest.mark.parametrize("limits", LIMITS, ids=["rows", "bytes"])
def test_rows_under_way_leave_room(held, gate, limits):
    batcher = held(**limits)
    long = submit(batcher, 10)
    gate.release(1)
    gate.wait(2)  # 8 of them are in the second batch
    other = submit(batcher, 8, 11)
    with pytest.raises(Overloaded):
        submit(batcher, 1)
    gate.release()
    np.testing.assert_array_equal(np.concatenate([result(long), result(other)]), 2 * rows(18))


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_deadline_passes_although_the_device_is_held(held, gate, timeout):
    batcher = held()
    kept = submit(batcher, 2, 50)
    late = submit(batcher, 3, timeout=timeout)
    with pytest.raises(DeadlineExceededError, match="double: still queued after") as caught:
        late.result(TIMEOUT)
    assert isinstance(caught.value, TimeoutError)
    assert gate.sizes == [1]
    assert batcher.stats()["double"].queued_rows == 2
    gate.release()
    np.testing.assert_array_equal(result(kept), 2 * rows(2, 50))
    assert gate.batches[1].rows == [50, 51]
    stats = batcher.stats()["double"]
    assert (stats.expired, stats.requests) == (1, 2)


def test_deadlines_pass_in_their_own_order(held, monkeypatch):
    added, add = [], Scheduler.add
    monkeypatch.setattr(Scheduler, "add", lambda self, request: (added.append(request), add(self, request)))
    batcher = held()
    added.clear()
    ended = []
    futures = [submit(batcher, 1, timeout=timeout) for timeout in (0.3, 0.1, 0.2)]
    deadlines = [request.deadline for request in added]
    for future, deadline in zip(futures, deadlines, strict=True):
        future.add_done_callback(lambda _, deadline=deadline: ended.append(deadline))
    assert not wait(futures, TIMEOUT).not_done
    assert ended == sorted(deadlines)


def test_a_request_under_way_is_finished_after_its_deadline(held, gate, monkeypatch):
    batcher = held()
    long = submit(batcher, 12, timeout=600)
    gate.release(1)
    gate.wait(2)  # 8 of its rows are under way; 4 wait
    later = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 1000)
    monkeypatch.setattr("artifex.generative_models.inference.batching.queue.time", later)
    gate.release()  # deadlines are looked at before the next batch is taken
    np.testing.assert_array_equal(result(long), 2 * rows(12))
    assert gate.sizes == [1, 8, 4]


@pytest.mark.parametrize("timeout", [60, 1e10, 1e300, float("inf")])
def test_any_timeout_that_does_not_pass_changes_nothing(open_batcher, timeout):
    batcher = open_batcher(max_in_flight=1)
    for first in range(1, 4):  # the deadline of a request that is answered already hurts no later one either
        answer = submit(batcher, 2, first, timeout=timeout).result(10)["y"]
        np.testing.assert_array_equal(answer, 2 * rows(2, first))


def test_many_deadlines_pass_for_those_alone_that_wait(held, gate):
    batcher = held()
    dropped = [submit(batcher, 1, timeout=600) for _ in range(200)]
    assert all(future.cancel() for future in dropped)
    late = [submit(batcher, 1, timeout=0.05) for _ in range(100)]
    kept = [submit(batcher, 1, first, timeout=600) for first in range(1, 101)]
    for future in late:
        with pytest.raises(DeadlineExceededError):
            future.result(TIMEOUT)
    gate.release()
    np.testing.assert_array_equal(np.concatenate([result(future) for future in kept]), 2 * rows(100))
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.cancelled, stats.expired) == (101, 200, 100)


def test_what_is_cancelled_is_never_computed(held, gate):
    batcher = held()
    futures = [submit(batcher, 1, first) for first in range(1, 7)]
    dropped, kept = futures[::2], futures[1::2]
    assert all(future.cancel() for future in dropped)
    assert all(future.cancelled() and future.done() for future in dropped)
    assert wait(dropped, timeout=0).done == set(dropped)
    assert batcher.stats()["double"].queued_rows == 3
    gate.release()
    assert [result(future)[0, 0] for future in kept] == [4, 8, 12]
    assert gate.batches[1].rows == [2, 4, 6]
    assert batcher.stats()["double"].cancelled == 3
    with pytest.raises(CancelledError):
        dropped[0].result(TIMEOUT)


def test_waiting_for_a_future_ends_when_another_thread_cancels_it(held):
    batcher = held()
    future = submit(batcher, 1)
    waiting = threading.Thread(target=wait, args=[[future]])
    waiting.start()
    future.cancel()
    waiting.join(TIMEOUT)
    assert not waiting.is_alive()


def test_rows_that_are_not_under_way_yet_are_not_computed_after_a_cancel(held, gate):
    batcher = held()
    long = submit(batcher, 30)
    gate.release(1)
    gate.wait(2)
    assert long.cancel()
    after = submit(batcher, 1, 99)
    gate.release()
    assert result(after)[0, 0] == 198
    assert [batch.rows for batch in gate.batches[1:]] == [list(range(1, 9)), [99]]


def test_cancel_says_whether_it_came_in_time(held, gate):
    batcher = held()
    waiting = submit(batcher, 1)
    assert waiting.cancel()
    assert waiting.cancel()  # still cancelled
    gate.release()
    result(batcher.first)
    assert not batcher.first.cancel()
    assert not batcher.first.cancelled()
    late = submit(batcher, 1, timeout=0)
    with pytest.raises(DeadlineExceededError):
        late.result(TIMEOUT)
    assert not late.cancel()
    assert batcher.stats()["double"].cancelled == 1


def test_stats_of_a_known_sequence(held, gate):
    batcher = held(max_queued_rows=16)
    answered = [
        submit(batcher, 10),
        submit(batcher, 2, 50),
        batcher.submit("noise", seed=1, num_rows=3),
    ]
    with pytest.raises(Overloaded):
        submit(batcher, 2)
    submit(batcher, 1).cancel()
    with pytest.raises(DeadlineExceededError):
        submit(batcher, 1, timeout=0).result(TIMEOUT)
    stats = batcher.stats()
    assert (stats["double"].queued_requests, stats["double"].queued_rows) == (2, 12)
    assert (stats["noise"].queued_requests, stats["noise"].queued_rows) == (1, 3)
    assert (stats["double"].rows_in_flight, stats["noise"].rows_in_flight) == (1, 0)
    gate.fault = fail_on(2)
    gate.release()
    with pytest.raises(RuntimeError, match="a fault"):
        answered.pop(0).result(TIMEOUT)
    for future in answered:
        result(future)
    batcher.close()
    stats = batcher.stats()
    for counters in stats.values():
        for name in ("queue", "compute", "request", "input", "infer", "output"):
            assert getattr(counters, f"{name}_seconds") > 0
            setattr(counters, f"{name}_seconds", 0.0)
    # 1, then 6 of the 10 and the 2 beside them, of which the 10 fail.
    assert stats == {
        "double": BatcherStats(requests=2, rows=9, batches=2, failed=1, cancelled=1, expired=1, overloaded=1),
        "noise": BatcherStats(requests=1, rows=3, batches=1),
    }
    assert stats["double"].rows_per_batch == 9 / 2
    assert BatcherStats().rows_per_batch == 0


def fail_on(number):
    def fault(batch):
        if number in batch:
            raise RuntimeError("a fault")

    return fault


def test_stats_are_a_copy(open_batcher):
    batcher = open_batcher()
    assert batcher.stats() == {}
    batcher.submit("double", {"x": rows(1)}).result(TIMEOUT)
    before = batcher.stats()
    before["double"].requests = 99
    assert batcher.stats()["double"].requests == 1


@pytest.mark.parametrize("timeout", [None, 600])
def test_a_batcher_keeps_nothing_of_what_it_did(open_batcher, timeout):
    batcher = open_batcher(max_in_flight=1)
    freed = threading.Event()
    x = rows(12)
    weakref.finalize(x, freed.set)
    future = batcher.submit("double", {"x": x}, timeout=timeout)
    result(future)
    del x, future
    for _ in range(20):  # the thread may be about to wait for more
        gc.collect()
        if freed.wait(0.1):
            break
    assert freed.is_set()


def test_an_earlier_deadline_is_noticed_although_a_later_one_is_watched(held):
    batcher = held()
    kept = [submit(batcher, 1, timeout=600) for _ in range(3)]
    with pytest.raises(DeadlineExceededError):
        submit(batcher, 1, timeout=0.01).result(TIMEOUT)
    kept.append(submit(batcher, 1, timeout=500))
    with pytest.raises(DeadlineExceededError):
        submit(batcher, 1, timeout=0.01).result(TIMEOUT)
    assert not any(future.done() for future in kept)


def test_later_deadlines_pass_after_the_one_that_was_watched(held):
    batcher = held()
    futures = [submit(batcher, 1, timeout=timeout) for timeout in (0.05, 0.1, 0.15)]
    for future in futures:
        with pytest.raises(DeadlineExceededError):
            future.result(TIMEOUT)
    assert batcher.stats()["double"].expired == 3


@pytest.mark.parametrize("given_up", ["cancelled", "under way"])
def test_a_deadline_passes_although_the_one_that_was_watched_is_of_no_use_any_more(held, gate, given_up):
    batcher = held()
    first = submit(batcher, 1, timeout=1)
    if given_up == "cancelled":
        assert first.cancel()
    else:
        gate.release(1)
        gate.wait(2)
    late = submit(batcher, 1, timeout=1.1)
    with pytest.raises(DeadlineExceededError):
        late.result(TIMEOUT)


def test_an_answer_is_seen_when_all_its_batches_are_counted(open_batcher, monkeypatch):
    run_batch, answers = Scheduler._run, Scheduler._answers
    first_filled, second_counted, go_on = (threading.Event() for _ in range(3))

    def filling(self, batch, clock):
        ((_, start, _),) = batch
        if start:
            assert first_filled.wait(TIMEOUT)
            return answers(self, batch, clock)
        found = answers(self, batch, clock)
        first_filled.set()
        assert go_on.wait(TIMEOUT)
        return found

    def counting(self, batch):
        run_batch(self, batch)
        if batch[0][1]:
            second_counted.set()

    monkeypatch.setattr(Scheduler, "_answers", filling)
    monkeypatch.setattr(Scheduler, "_run", counting)
    batcher = open_batcher(max_in_flight=2)
    future = submit(batcher, 12)
    assert second_counted.wait(TIMEOUT)
    assert not future.done()
    go_on.set()
    np.testing.assert_array_equal(result(future), 2 * rows(12))
    stats = batcher.stats()["double"]
    assert (stats.rows, stats.batches, stats.requests) == (12, 2, 1)


def test_stats_add_up_field_by_field():
    names = [field.name for field in dataclasses.fields(BatcherStats)]
    first = BatcherStats(*(2.0**n for n in range(len(names))))
    second = BatcherStats(*(3.0**n for n in range(len(names))))
    total = first + second
    assert {name: getattr(total, name) for name in names} == {
        name: 2.0**n + 3.0**n for n, name in enumerate(names)
    }
    assert total.rows_per_batch == total.rows / total.batches
    assert first + BatcherStats() == first


def test_the_times_of_a_request_are_parts_of_the_whole(open_batcher):
    batcher = open_batcher(max_in_flight=1)
    for n in (1, 8, 3):  # one after another, each in a batch of its own
        submit(batcher, n).result(TIMEOUT)
    batcher.close()
    stats = batcher.stats()["double"]
    parts = stats.input_seconds + stats.infer_seconds + stats.output_seconds
    assert 0 < parts <= stats.compute_seconds
    assert stats.queue_seconds + parts <= stats.request_seconds


def test_a_batch_takes_its_time_from_each_of_its_requests(held, gate):
    batcher = held()
    futures = [submit(batcher, 1) for _ in range(4)]
    gate.release()
    wait(futures, TIMEOUT)
    batcher.close()
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.batches) == (5, 2)
    assert stats.infer_seconds > stats.compute_seconds - stats.input_seconds - stats.output_seconds
