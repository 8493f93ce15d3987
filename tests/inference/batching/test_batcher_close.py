"""How a batcher ends: closed, dropped, or with its process."""

import gc
import threading
import weakref
from concurrent.futures import wait

import forked
import numpy as np
import pytest
from shared import TIMEOUT, batcher_threads, rows, submit

from artifex.generative_models.core.errors import ClosedError
from artifex.generative_models.inference.batching.batcher import Batcher, OutputsFuture


def threads(batcher):
    return list(batcher._scheduler._threads)


def in_thread(function, *arguments, **keywords):
    thread = threading.Thread(target=function, args=arguments, kwargs=keywords, daemon=True)
    thread.start()
    return thread


def wait_until_closed(batcher):
    while True:
        try:
            submit(batcher, 1).cancel()
        except ClosedError:
            return True


def test_close_finishes_what_waits(held, gate):
    batcher = held()
    futures = [submit(batcher, n, n) for n in (3, 20, 5)] + [submit(batcher, 3, 3, "scaled")]
    closing = in_thread(batcher.close)
    assert wait_until_closed(batcher)
    assert not any(future.done() for future in futures)
    gate.release()
    closing.join(TIMEOUT)
    assert not closing.is_alive()
    for future, n in zip(futures[:3], (3, 20, 5), strict=True):
        np.testing.assert_array_equal(future.result(0)["y"], 2 * rows(n, n))
    np.testing.assert_array_equal(futures[3].result(0)["y"], rows(3, 3))
    assert not any(thread.is_alive() for thread in threads(batcher))


def test_close_without_drain_fails_what_waits_and_finishes_what_is_under_way(held, gate):
    batcher = held()
    futures = [submit(batcher, 3), submit(batcher, 20), submit(batcher, 3, endpoint="scaled")]
    cancelled = submit(batcher, 1)
    cancelled.cancel()
    closing = in_thread(batcher.close, drain=False)
    assert not wait(futures, TIMEOUT).not_done  # although the device is held
    assert all(isinstance(future.exception(), ClosedError) for future in futures)
    assert not batcher.first.done()
    assert closing.is_alive()
    gate.release()
    closing.join(TIMEOUT)
    np.testing.assert_array_equal(batcher.first.result(0)["y"], np.zeros((1, 3)))
    assert gate.sizes == [1]
    stats = batcher.stats()
    assert (stats["double"].cancelled, stats["scaled"].cancelled, stats["double"].requests) == (3, 1, 1)


def test_close_without_drain_fails_a_request_of_which_rows_are_under_way(held, gate):
    batcher = held()
    long = submit(batcher, 20)
    gate.release(1)
    gate.wait(2)
    closing = in_thread(batcher.close, drain=False)
    assert isinstance(long.exception(TIMEOUT), ClosedError)
    gate.release()
    closing.join(TIMEOUT)
    assert gate.sizes == [1, 8]
    stats = batcher.stats()["double"]
    assert (stats.requests, stats.cancelled, stats.failed, stats.rows_in_flight) == (1, 1, 0, 0)


def test_a_second_close_stops_the_draining_of_the_first(held, gate):
    batcher = held()
    waiting = submit(batcher, 3)
    closings = [in_thread(batcher.close), in_thread(batcher.close, drain=False)]
    assert isinstance(waiting.exception(TIMEOUT), ClosedError)
    gate.release()
    for closing in closings:
        closing.join(TIMEOUT)
        assert not closing.is_alive()


def test_closing_twice_does_nothing_more(open_batcher):
    batcher = open_batcher()
    future = submit(batcher, 3)
    for drain in (True, True, False):
        batcher.close(drain=drain)
    np.testing.assert_array_equal(future.result(0)["y"], 2 * rows(3))


def test_a_with_block_finishes_what_waits(plain):
    with Batcher(plain) as batcher:
        futures = [submit(batcher, n) for n in (3, 20)]
    assert [len(future.result(0)["y"]) for future in futures] == [3, 20]
    assert not any(thread.is_alive() for thread in threads(batcher))


def test_a_with_block_that_fails_drops_what_waits(plain, gate):
    gate.hold()

    def fail():
        with Batcher(plain, max_in_flight=1) as batcher:
            futures.extend([submit(batcher, 8), submit(batcher, 8)])
            gate.wait(1)
            futures[1].add_done_callback(lambda _: gate.release())
            raise OSError("the disk went away")

    futures = []
    with pytest.raises(OSError, match="the disk went away"):
        fail()
    np.testing.assert_array_equal(futures[0].result(0)["y"], 2 * rows(8))
    assert isinstance(futures[1].exception(0), ClosedError)


def test_a_done_callback_may_submit_more(open_batcher):
    batcher = open_batcher(max_in_flight=1)
    second = []
    done = threading.Event()

    def more(first):
        second.append(batcher.submit("double", {"x": first.result()["y"]}))
        done.set()

    submit(batcher, 3).add_done_callback(more)
    assert done.wait(TIMEOUT)
    np.testing.assert_array_equal(second[0].result(TIMEOUT)["y"], 4 * rows(3))


def test_a_batcher_that_is_dropped_finishes_what_waits_and_ends_its_threads(plain, gate):
    batcher = Batcher(plain, max_in_flight=1)
    gate.hold()
    under_way = submit(batcher, 1)
    gate.wait(1)
    waiting = submit(batcher, 2)
    its_threads, gone = threads(batcher), weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    gate.release()
    for thread in its_threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    np.testing.assert_array_equal(waiting.result(0)["y"], 2 * rows(2))
    np.testing.assert_array_equal(under_way.result(0)["y"], 2 * rows(1))


def test_nothing_is_left_after_close(plain, gate):
    before = batcher_threads()
    batcher = Batcher(plain)
    gate.fault = fail_on_fives
    gone = []
    for number in range(30):
        future = submit(batcher, 1 + number % 20, number, timeout=(None, 0, 60)[number % 3])
        if number % 4 == 0:
            future.cancel()
        gone.append(weakref.ref(future))
    del future
    batcher.close()
    gc.collect()
    assert [reference() for reference in gone] == [None] * 30
    assert batcher_threads() <= before
    assert not [thing for thing in gc.get_objects() if isinstance(thing, OutputsFuture)]


def fail_on_fives(batch):
    if any(row % 5 == 0 for row in batch):
        raise RuntimeError("a fault")


SLOW = """
import sys, threading, time
import jax.numpy as jnp, numpy as np
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Batcher, Executor

endpoint = Endpoint(lambda model, keys, inputs: {"y": 2 * inputs["x"]}, {"x": TensorSpec((3,), jnp.float32)})
executor = Executor(None, {"double": endpoint}, batch_sizes=(1, 2))
executor.warmup()
run, started = executor.run, threading.Semaphore(0)

def slow(job):
    started.release()
    time.sleep(0.5)
    return run(job)

executor.run = slow
batcher = Batcher(executor, max_in_flight=2)
futures = [batcher.submit("double", {"x": np.ones((2, 3), np.float32)}) for _ in range(200)]
futures[0].add_done_callback(lambda future: print("under way:", future.result()["y"][0, 0], flush=True))
futures[-1].add_done_callback(lambda future: print("waiting:", type(future.exception()).__name__, flush=True))
started.acquire()
started.acquire()
"""

# In a process of its own, since a deadlock would never let this one end.
CALLBACKS = """
import itertools, threading
import jax.numpy as jnp, numpy as np
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Batcher, Executor

endpoint = Endpoint(lambda model, keys, inputs: {"y": 2 * inputs["x"]}, {"x": TensorSpec((3,), jnp.float32)})
executor = Executor(None, {"double": endpoint}, batch_sizes=(1, 2))
executor.warmup()
run, start = executor.run, None
executor.run = lambda job: start.wait() and run(job)

for drain, max_in_flight in itertools.product((True, False), (1, 2, 3)):
    start = threading.Event()
    batcher = Batcher(executor, max_in_flight=max_in_flight)
    futures = [batcher.submit("double", {"x": np.ones((2, 3), np.float32)}) for _ in range(8)]
    for future in futures:
        future.add_done_callback(lambda future: batcher.close(drain=drain))
    start.set()
    futures[0].result()
    for thread in batcher._scheduler._threads:
        thread.join()
    assert all(future.done() for future in futures)
    assert not drain or all((future.result()["y"] == 2).all() for future in futures)
print("done")
"""


def run_script(script, timeout=90):
    return forked.run(["-W", "error", "-c", script], timeout=timeout)


def test_done_callbacks_may_close():
    run = run_script(CALLBACKS, timeout=40)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("del batcher", 0), ("batcher.close(drain=False)", 0)],
    ids=["end", "exit", "drop", "close"],
)
def test_an_interpreter_ends_with_what_is_under_way(ending, code):
    run = run_script(SLOW + ending)
    assert (run.returncode, run.stderr) == (code, "")
    assert sorted(run.stdout.splitlines()) == ["under way: 2.0", "waiting: ClosedError"]
