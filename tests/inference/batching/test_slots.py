"""Rows of loops that join and leave running batches: each gives what it gives alone."""

import asyncio
import itertools
import threading
import time
import types

import jax
import numpy as np
import pytest
from shared import TIMEOUT
from walks import StepGate, walking

from artifex.generative_models.core import Endpoint
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import (
    ClosedError,
    DeadlineExceededError,
    InputError,
    NonFiniteError,
    OutOfDeviceMemoryError,
)
from artifex.generative_models.inference import AsyncInferenceServer, Batcher, Executor
from artifex.generative_models.inference.batching import places, slots
from artifex.generative_models.inference.executor.jobs import Late
from artifex.generative_models.inference.executor.slot_batch import SlotBatch

WEIGHTS = {"scale": np.float32(0.9) * np.ones((), np.float32)}
WIDTHS = (1, 2, 4, 8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def one_pass(model, keys, inputs):
    return {"y": inputs["number"] + 1}


@pytest.fixture(scope="module")
def compiled():
    endpoints = {"walk": walking(), "plain": Endpoint(one_pass, {"number": walking().inputs["number"]})}
    executor = Executor(WEIGHTS, endpoints, batch_sizes=WIDTHS)
    with Batcher(executor) as batcher:
        batcher.warmup()
    executor.warmup()
    return executor


@pytest.fixture
def executor(compiled, monkeypatch):
    """One lane, whatever the machine."""
    monkeypatch.setattr(compiled._runner, "threaded", False)
    return compiled


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.setattr(places, "_PATIENCE_SECONDS", float("inf"))  # a test may hold it for long
    return StepGate(monkeypatch)


@pytest.fixture
def equal_turns(monkeypatch):
    """A clock by which all turns take the same time, which lanes share."""
    monkeypatch.setattr(slots, "time", types.SimpleNamespace(perf_counter=itertools.count().__next__))


@pytest.fixture
def open_batcher(executor):
    """Makes batchers that are warm, and end with the test."""
    batchers = []

    def make(**settings):
        batchers.append(Batcher(executor, **settings))
        batchers[-1].warmup()
        return batchers[-1]

    yield make
    for batcher in batchers:
        batcher.close(drain=False)


def rows(*num_steps, **others):
    return {"num_steps": np.array(num_steps, np.int32)} | {
        name: np.array(value, np.int32) for name, value in others.items()
    }


def alone(executor, inputs, seed):
    """What a call gives of rows with a seed, in batches that run from their first step to their last."""
    num_rows = len(inputs["num_steps"])
    found = []
    for start in range(0, num_rows, WIDTHS[-1]):
        part = {name: value[start : start + WIDTHS[-1]] for name, value in inputs.items()}
        job = executor.check("walk", part, seed=seed, first_row=start)
        found.append(executor.run(job)["y"][: job.num_rows])
    return np.concatenate(found)


def test_a_row_gives_what_it_gives_alone(executor, open_batcher):
    batcher = open_batcher()
    requests = [rows(*np.random.default_rng(i).integers(1, 30, 1 + i % 5)) for i in range(40)]
    futures = [batcher.submit("walk", inputs, seed=i) for i, inputs in enumerate(requests)]
    large = rows(*np.random.default_rng(7).integers(1, 30, 100))
    futures.append(batcher.submit("walk", large, seed=99))
    for i, (inputs, future) in enumerate(zip([*requests, large], futures, strict=True)):
        seed = i if i < len(requests) else 99
        wanted = alone(executor, inputs, seed)
        np.testing.assert_allclose(future.result(TIMEOUT)["y"], wanted, **CLOSE)
    stats = batcher.stats()["walk"]
    assert (stats.requests, stats.rows) == (41, sum(len(r["num_steps"]) for r in [*requests, large]))
    assert stats.row_steps == sum(int(r["num_steps"].sum()) for r in [*requests, large])
    assert stats.row_steps > 4 * stats.steps  # in batches
    assert (stats.rows_in_flight, stats.queued_rows, stats.places) == (0, 0, 0)


def test_nothing_is_compiled_after_warming_up(open_batcher, compilations):
    batcher = open_batcher()
    compilations.clear()
    futures = [batcher.submit("walk", rows(*range(1, 1 + n)), seed=n) for n in range(1, 14)]
    futures += [batcher.submit("walk", rows(5), seed=1, on_preview=lambda preview: None)]
    for future in futures:
        future.result(TIMEOUT)
    assert compilations == []


def test_short_ones_overtake_long_ones(open_batcher, gate):
    batcher = open_batcher()
    gate.hold()
    long = [batcher.submit("walk", rows(100), seed=i) for i in range(2)]
    gate.wait(1)
    short = batcher.submit("walk", rows(3), seed=7)
    gate.release(40)
    assert len(short.result(TIMEOUT)["y"]) == 1
    assert not any(future.done() for future in long)
    gate.release()
    for future in long:
        future.result(TIMEOUT)
    assert gate.seen.count((4, 3)) == 3
    assert gate.seen.index((4, 3)) >= 32  # once the long ones have taken so many steps
    assert (2, 2) in gate.seen[-2:]  # and fewer places when they were two again


@pytest.mark.parametrize(
    ("on_cpu", "num_rows", "at_once"), [(True, 2, 2), (True, 7, 2), (True, 8, 8), (False, 7, 7)]
)
def test_a_core_runs_few_rows_at_once_unless_many_wait(
    executor, open_batcher, gate, monkeypatch, on_cpu, num_rows, at_once
):
    monkeypatch.setattr(executor._place, "on_cpu", on_cpu)
    batcher = open_batcher()
    gate.hold()
    futures = [batcher.submit("walk", rows(9), seed=0)]
    gate.wait(1)
    futures += [batcher.submit("walk", rows(9), seed=i) for i in range(1, num_rows)]
    gate.release()
    for i, future in enumerate(futures):
        np.testing.assert_allclose(future.result(TIMEOUT)["y"], alone(executor, rows(9), i), **CLOSE)
    assert max(num_seated for _, num_seated in gate.seen) == at_once


def test_one_width_is_filled(executor):
    wide = Executor(WEIGHTS, executor.endpoints, batch_sizes=WIDTHS[-1:])
    (program,) = wide.programs("walk")
    assert [wide.rows_at_once(program, num_rows) for num_rows in (1, 5, 99)] == [1, 5, 8]


def test_one_row_does_not_wait_for_thousands(open_batcher, gate, equal_turns):
    batcher = open_batcher()
    gate.hold()
    large = batcher.submit("walk", rows(*[30] * 1000), seed=1)
    gate.wait(1)
    batcher.submit("walk", rows(*[30] * 500), seed=1)
    shown = threading.Event()
    one = batcher.submit("walk", rows(4), seed=2, on_preview=lambda preview: shown.set())
    gate.release(2)
    assert shown.wait(TIMEOUT)  # after two times at most
    gate.release(8)  # its other three, in turns with two others
    one.result(TIMEOUT)
    assert not large.done()
    assert large.cancel()


def test_large_requests_share(open_batcher, gate, equal_turns):
    batcher = open_batcher()
    gate.hold()
    first = batcher.submit("walk", rows(*[2] * 60), seed=1)
    gate.wait(1)
    second = batcher.submit("walk", rows(*[2] * 60), seed=2)
    gate.release(14)
    gate.wait(15)
    taken = [future._request.num_taken for future in (first, second)]
    assert abs(taken[0] - taken[1]) <= 8
    gate.release()
    for future in (first, second):
        future.result(TIMEOUT)


def test_previews(executor, open_batcher):
    batcher = open_batcher()
    seen = []
    future = batcher.submit("walk", rows(12, 7, 1), seed=3, on_preview=seen.append, every=3)
    future.result(TIMEOUT)
    by_row = {row: [] for row in range(3)}
    for preview in seen:
        assert preview.outputs["y"].shape == (len(preview.rows), 3)
        for row, steps in zip(preview.rows, preview.steps, strict=True):
            by_row[row].append(int(steps))
    assert all(steps == sorted(set(steps)) for steps in by_row.values())
    assert set(by_row[0]) <= {3, 6, 9}
    assert set(by_row[1]) <= {3, 6}
    assert by_row[2] == []
    number = len(seen)
    time.sleep(0.05)
    assert len(seen) == number  # none after the end


def test_previews_are_what_looks_at_the_same_rows_see(executor, open_batcher, gate):
    batcher = open_batcher()
    gate.hold()
    seen, told = [], threading.Event()
    future = batcher.submit(
        "walk", rows(4, 4), seed=3, on_preview=lambda preview: (seen.append(preview), told.set()), every=2
    )
    gate.release(2)
    assert told.wait(TIMEOUT)
    gate.release()
    job = executor.check("walk", rows(4, 4), seed=3)
    looks = list(executor.iterate("walk", rows(4, 4), keys=jax.random.wrap_key_data(_folded(job)), every=2))
    np.testing.assert_allclose(seen[0].outputs["y"], looks[0].outputs["y"], **CLOSE)
    np.testing.assert_allclose(future.result(TIMEOUT)["y"], looks[1].outputs["y"], **CLOSE)


def _folded(job):
    key = jax.random.wrap_key_data(job.keys.words)
    return np.stack([jax.random.key_data(jax.random.fold_in(key, row)) for row in range(job.num_rows)])


def test_who_is_slow_is_shown_the_newest_and_holds_nothing_up(open_batcher, gate):
    batcher = open_batcher()
    seen, looks, may_go_on = [], threading.Event(), threading.Event()

    def slow(preview):
        seen.append(int(preview.steps[0]))
        looks.set()
        may_go_on.wait(TIMEOUT)

    gate.hold()
    future = batcher.submit("walk", rows(200), seed=3, on_preview=slow, every=1)
    gate.release(1)
    assert looks.wait(TIMEOUT)
    gate.release()
    others = [batcher.submit("walk", rows(5), seed=i) for i in range(5)]
    for other in [future, *others]:
        other.result(TIMEOUT)
    assert len(seen) == 1
    may_go_on.set()


def test_previews_of_rows_that_are_done_are_dropped(open_batcher, gate):
    batcher = open_batcher()
    looks, may_go_on, seen = threading.Event(), threading.Event(), []

    def slow(preview):
        seen.append(preview.rows.tolist())
        looks.set()
        may_go_on.wait(TIMEOUT)

    gate.hold()
    future = batcher.submit("walk", rows(*[5] * 30, 500), seed=3, on_preview=slow)
    gate.release(1)
    assert looks.wait(TIMEOUT)
    gate.release(40)  # until the last is left, and is far from done
    while future._request.num_missing > 1:
        time.sleep(0.001)
    gate.release(5)
    may_go_on.set()
    while len(seen) < 2:
        gate.release(1)
        time.sleep(0.001)
    assert seen[1] == [30]
    gate.release()
    future.result(TIMEOUT)


def test_a_callback_that_raises_gets_no_more(open_batcher, gate, caplog):
    batcher = open_batcher()
    seen, looked = [], threading.Event()

    def fails(preview):
        seen.append(preview)
        looked.set()
        raise ValueError("a screen came loose")

    gate.hold()
    future = batcher.submit("walk", rows(20), seed=3, on_preview=fails)
    gate.release(1)
    assert looked.wait(TIMEOUT)
    while "a callback for previews failed" not in caplog.text:
        time.sleep(0.001)
    gate.release()
    assert future.result(TIMEOUT)["y"].shape == (1, 3)
    assert len(seen) == 1


def test_coroutines_have_previews_in_their_loop(open_batcher, gate):
    batcher = open_batcher()
    gate.hold()

    async def main():
        threads = []

        def note(preview):
            threads.append(threading.current_thread())
            gate.release()

        future = batcher.submit_async("walk", rows(40), seed=3, on_preview=note, every=5)
        gate.release(5)
        return (await future)["y"].shape, set(threads) == {threading.current_thread()}

    assert asyncio.run(main()) == ((1, 3), True)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_every_is_a_number_of_steps(open_batcher, every):
    with pytest.raises(InputError, match="every: expected a number of steps from 1"):
        open_batcher().submit("walk", rows(4), seed=0, on_preview=print, every=every)


@pytest.mark.parametrize("widths", [(), (0,), (-4, 8), (1.5,), (True, 2), (2**31,), (1, 2**40)])
def test_widths_are_numbers_of_rows(widths):
    with pytest.raises(InputError, match="batch_sizes: expected"):
        Executor(WEIGHTS, {"walk": walking()}, batch_sizes=widths)


def test_nobody_waits_long_for_slow_steps(open_batcher, gate, monkeypatch):
    monkeypatch.setattr(places, "_PATIENCE_SECONDS", 0.0)
    batcher = open_batcher()
    gate.hold()
    futures = [batcher.submit("walk", rows(40), seed=i) for i in range(4)]
    gate.wait(1)
    gate.release(6)
    gate.wait(7)
    assert gate.seen[-1] == (4, 4)  # where they came at the same time, long before 32 steps
    gate.release()
    for future in futures:
        future.result(TIMEOUT)


def test_what_takes_no_steps_has_no_previews(open_batcher):
    with pytest.raises(InputError, match="plain: it takes no steps, so it has no previews"):
        open_batcher().submit("plain", {"number": np.zeros(1, np.int32)}, on_preview=print)


def test_a_cancelled_row_leaves_its_place_at_once(open_batcher, gate):
    batcher = open_batcher()
    gate.hold()
    future = batcher.submit("walk", rows(50), seed=1)
    other = batcher.submit("walk", rows(5), seed=2)
    gate.wait(1)
    assert future.cancel()
    gate.release()
    other.result(TIMEOUT)
    batcher.close()
    stats = batcher.stats()["walk"]
    assert (stats.cancelled, stats.cancelled_rows, stats.requests) == (1, 1, 1)
    assert stats.row_steps < 10


def test_a_row_that_is_late_leaves_while_it_is_under_way(open_batcher, gate):
    batcher = open_batcher()
    gate.hold()
    future = batcher.submit("walk", rows(50), seed=1, timeout=0.05)
    gate.wait(1)
    time.sleep(0.06)
    gate.release()
    with pytest.raises(DeadlineExceededError, match="walk: not done after 0"):
        future.result(TIMEOUT)
    stats = batcher.stats()["walk"]
    assert (stats.expired, stats.failed) == (1, 0)


def test_a_time_to_wait_is_no_time_to_take(executor, open_batcher, gate):
    batcher = open_batcher()
    gate.hold()

    async def main():
        job = executor.check("walk", rows(5), seed=1)
        future = batcher.submit_job(job, timeout=0.05, only_waits=True)
        await asyncio.to_thread(gate.wait, 1)
        await asyncio.sleep(0.06)
        gate.release()
        return await future

    np.testing.assert_allclose(asyncio.run(main())["y"], alone(executor, rows(5), 1), **CLOSE)


def test_a_row_that_waits_is_late_too(open_batcher, gate):
    batcher = open_batcher()
    gate.hold()
    first = batcher.submit("walk", rows(2), seed=1)
    gate.wait(1)
    future = batcher.submit("walk", rows(2), seed=1, timeout=0.02)
    with pytest.raises(DeadlineExceededError, match="walk: still queued"):
        future.result(TIMEOUT)
    gate.release()
    first.result(TIMEOUT)


def test_only_the_request_fails_whose_row_breaks(executor, open_batcher):
    batcher = open_batcher()
    broken = batcher.submit("walk", rows(20, 20, 20, breaks=[0, 0, 7]), seed=1)
    others = [batcher.submit("walk", rows(20), seed=i) for i in range(5)]
    with pytest.raises(NonFiniteError, match="walk: row 2 came out NaN or infinite at step 7"):
        broken.result(TIMEOUT)
    for i, other in enumerate(others):
        np.testing.assert_allclose(other.result(TIMEOUT)["y"], alone(executor, rows(20), i), **CLOSE)


def test_only_the_request_fails_whose_rows_cannot_be_made(executor, open_batcher):
    batcher = open_batcher()

    def made(start, stop):
        raise InputError("no tokens for row 0")

    job = executor.check("walk", rows(3), seed=1, late=Late(("number",), made))
    good = batcher.submit("walk", rows(9), seed=4)

    async def main():
        return await batcher.submit_job(job)

    with pytest.raises(InputError, match="no tokens for row 0"):
        asyncio.run(main())
    np.testing.assert_allclose(good.result(TIMEOUT)["y"], alone(executor, rows(9), 4), **CLOSE)


def test_only_the_request_fails_whose_beginning_raises():
    """On the device, where the executions of all rows beside it fail too."""

    def checks(numbers):
        if 13 in numbers:
            raise ValueError("an unlucky number")
        return np.float32(0)

    executor = Executor(WEIGHTS, {"walk": walking(checks)}, batch_sizes=(1, 2, 4))
    with Batcher(executor) as batcher:
        futures = [batcher.submit("walk", rows(9, number=[i]), seed=i) for i in range(10, 16)]
        for number, future in zip(range(10, 16), futures, strict=True):
            if number == 13:
                with pytest.raises(jax.errors.JaxRuntimeError, match="an unlucky number"):
                    future.result(TIMEOUT)
            else:
                assert future.result(TIMEOUT)["number"].tolist() == [number]
        assert batcher.stats()["walk"].failed == 1


def test_memory_that_is_too_small_for_a_width_loses_nothing(monkeypatch):
    advance = SlotBatch.advance

    def limited(batch, most, is_held, **settings):
        if batch.width > 2:
            batch._held = None  # as an execution that fails leaves it
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(batch, most, is_held, **settings)

    monkeypatch.setattr(SlotBatch, "advance", limited)
    executor = Executor(WEIGHTS, {"walk": walking()}, batch_sizes=WIDTHS)
    with Batcher(executor) as batcher:
        batcher.warmup()
        futures = [batcher.submit("walk", rows(9, 9, 9, 9, 9), seed=i) for i in range(6)]
        found = [future.result(TIMEOUT)["y"] for future in futures]
    assert executor.batch_sizes_of("walk") == (1, 2)
    for i, y in enumerate(found):
        np.testing.assert_allclose(y[:2], alone(executor, rows(9, 9), i), **CLOSE)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_width_whose_state_memory_cannot_hold_is_left_out(monkeypatch, missing):
    executor = Executor(WEIGHTS, {"walk": walking()}, batch_sizes=(1, 2))
    (program,) = executor.programs("walk")
    memory = executor._current.opened.part(program, 2, "steps").memory_analysis()
    state = 2 * 4 * (3 + 1)  # bytes of two rows' x and step
    assert memory.alias_size_in_bytes >= state
    needed = memory.temp_size_in_bytes + memory.alias_size_in_bytes + 2 * program.bytes_per_row
    free = executor.executions_in_flight * needed - missing
    monkeypatch.setattr(DeviceManager, "free_memory", lambda self: free)
    assert executor.prepare_slots(program, 2, [1]) == (not missing)
    assert executor.batch_sizes_of("walk") == ((1,) if missing else (1, 2))


def test_no_memory_even_for_the_smallest_is_an_error(monkeypatch):
    def limited(batch, most, is_held, **settings):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(SlotBatch, "advance", limited)
    executor = Executor(WEIGHTS, {"walk": walking()}, batch_sizes=(1, 2))
    with Batcher(executor) as batcher:
        batcher.warmup()
        futures = [batcher.submit("walk", rows(9, 9), seed=i) for i in range(3)]
        for future in futures:
            with pytest.raises(OutOfDeviceMemoryError, match="out of device memory at 1 rows"):
                future.result(TIMEOUT)


def test_weights_that_are_replaced_are_those_of_rows_that_begin_later(open_batcher, executor, gate):
    batcher = open_batcher()
    gate.hold()
    before = batcher.submit("walk", rows(6), seed=1)
    gate.wait(1)
    old = alone(executor, rows(6), 1)
    executor.swap({"scale": np.float32(0.5) * np.ones((), np.float32)})
    try:
        after = batcher.submit("walk", rows(6), seed=1)
        gate.release()
        np.testing.assert_allclose(before.result(TIMEOUT)["y"], old, **CLOSE)
        new = alone(executor, rows(6), 1)
        assert np.abs(new - old).max() > 0.01
        np.testing.assert_allclose(after.result(TIMEOUT)["y"], new, **CLOSE)
    finally:
        executor.swap(WEIGHTS)


def test_compiling_holds_nobody_up(executor, monkeypatch):
    may_compile = threading.Event()
    prepare = executor.prepare_slots

    def slow(program, width, ready):
        assert may_compile.wait(TIMEOUT)
        return prepare(program, width, ready)

    with Batcher(executor) as batcher:
        batcher.warmup(batch_sizes=[1])
        monkeypatch.setattr(executor, "prepare_slots", slow)
        wide = [
            batcher.submit("walk", rows(9), seed=i) for i in range(4)
        ]  # a width is missing that fits them
        for i, future in enumerate(wide):
            np.testing.assert_allclose(future.result(TIMEOUT)["y"], alone(executor, rows(9), i), **CLOSE)
        assert not may_compile.is_set()
        may_compile.set()


def test_one_width_gives_the_same_bits_under_any_load(executor):
    with Batcher(executor, deterministic=True) as batcher:
        batcher.warmup()
        assert batcher.executor.batch_sizes == (8,)
        (quiet,) = [batcher.submit("walk", rows(9), seed=1).result(TIMEOUT)["y"]]
        futures = [batcher.submit("walk", rows(*range(1, 9)), seed=i) for i in range(20)]
        futures.insert(9, batcher.submit("walk", rows(9), seed=1))
        np.testing.assert_array_equal(futures[9].result(TIMEOUT)["y"], quiet)
        for future in futures:
            future.result(TIMEOUT)


def test_whole_batches_are_there_for_whoever_wants_them(executor):
    with Batcher(executor, slots=False) as batcher:
        found = batcher.submit("walk", rows(9, 3), seed=1).result(TIMEOUT)["y"]
        np.testing.assert_allclose(found, alone(executor, rows(9, 3), 1), **CLOSE)
        assert batcher.stats()["walk"].steps == 0


@pytest.mark.parametrize("drain", [True, False])
def test_closing(open_batcher, gate, drain):
    batcher = open_batcher()
    gate.hold()
    under_way = batcher.submit("walk", rows(6), seed=1)
    gate.wait(1)
    waits = batcher.submit("walk", rows(*[6] * 30), seed=1)
    closing = threading.Thread(target=batcher.close, kwargs={"drain": drain})
    closing.start()
    while not batcher._scheduler._closed:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        batcher.submit("walk", rows(1), seed=1)
    gate.release()
    closing.join(TIMEOUT)
    assert not closing.is_alive()
    for future in (under_way, waits):
        if drain:
            assert future.result(0)["y"].shape[1:] == (3,)
        else:
            with pytest.raises(ClosedError):
                future.result(0)


def test_fields_are_said_as_they_are_to_a_pipeline(drawer):
    said = {"label": [0, 1, 2], "num_steps": [2, 5, 3], "sampler": "ddim"}
    wanted = drawer.call("generate", num_rows=3, rngs=4, **said)["x"]
    with Batcher(drawer.executor) as batcher:
        found = batcher.submit("generate", seed=4, num_rows=3, **said).result(TIMEOUT)["x"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        two = batcher.submit("generate", seed=[1, 2]).result(TIMEOUT)["x"]
        one = batcher.submit("generate", seed=2, num_rows=1).result(TIMEOUT)["x"]
        np.testing.assert_allclose(two[1:], one, rtol=1e-4, atol=1e-4)
        assert len(batcher.submit("generate", seed=1, label=[1, 2, 0]).result(TIMEOUT)["x"]) == 3
        for wrong, words in (
            ({"label": 99}, "label: expected"),
            ({"sampler": "magic"}, "sampler: expected one of"),
            ({"strength": 3}, "unknown option 'strength'"),
        ):
            with pytest.raises(InputError, match=words):
                batcher.submit("generate", seed=4, num_rows=1, **wrong)


def test_coroutines_draw_with_previews(drawer, gate):
    gate.hold()

    async def main():
        seen = []

        def note(preview):
            seen.append(preview)
            gate.release()

        async with AsyncInferenceServer(drawer.executor) as server:
            drawn = server.generate_async(2, 4, num_steps=30, on_preview=note, every=3)
            gate.release(6)  # three steps of each sample, or of both at once
            samples = await drawn
        return samples, seen

    samples, seen = asyncio.run(main())
    assert seen
    assert {preview.outputs["x"].shape[1:] for preview in seen} == {samples.shape[1:]}


def test_on_accelerators_too_what_a_row_gives_is_looked_at(executor, monkeypatch):
    """Where the device has not: it looks at the states, of which an infinite value can be made."""
    job = executor.check("walk", rows(3), seed=1)
    monkeypatch.setattr(executor._place, "on_cpu", False)
    found = {"y": np.full((1, 3), np.nan, np.float32), "number": np.zeros(1, np.int32)}
    with pytest.raises(NonFiniteError, match="walk: row 0 came out NaN"):
        job.check_results(0, 1, found)
