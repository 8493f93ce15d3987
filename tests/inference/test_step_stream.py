"""Samples with what they look like between the steps."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from shared import TIMEOUT, batcher_threads
from walks import StepGate

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import (
    Batcher,
    Executor,
    StepStream,
    batch_generate_samples,
    stream_samples,
)
from artifex.generative_models.inference.offline.sampling import sampling

SAID = {"label": 1, "num_steps": 6}
ROW = TensorSpec((), np.float32, default=1.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def compiled(drawer):
    with Batcher(drawer.executor) as batcher:
        batcher.warmup(["generate"])
    return drawer.executor


@pytest.fixture
def executor(compiled, monkeypatch):
    """One lane, whatever the machine."""
    monkeypatch.setattr(compiled._runner, "threaded", False)
    return compiled


@pytest.fixture
def gate(monkeypatch):
    gate = StepGate(monkeypatch)
    yield gate
    gate.release()


def looks(executor, num_samples, seed):
    """All that there is to see: by steps, arrays [samples, ...]."""
    how = sampling(executor, num_samples, 1.0, SAID)
    given = {"inputs": how.rows(0, num_samples), "key": sample_key(seed), **how.options}
    return [progress.outputs["x"] for progress in executor.iterate("generate", **given)]


def test_a_reader_that_keeps_up_sees_all(executor, gate):
    gate.hold()
    wanted = looks(executor, 1, 3)
    gate.release(2)
    seen = []
    for step in StepStream(executor, seed=3, every=2, **SAID):
        assert step.index == 0
        seen.append((step.step, step.sample))
        gate.release(2)
    assert [steps for steps, _ in seen] == [2, 4, None]
    for steps, sample in seen:
        np.testing.assert_allclose(sample, wanted[(steps or 6) - 1][0], **CLOSE)


def test_samples_are_those_of_a_batch(executor):
    steps = list(StepStream(executor, 3, seed=7, start=5, every=4, **SAID))
    done = [step for step in steps if step.step is None]
    assert [step.index for step in done] == [5, 6, 7]
    assert all(step.step == 4 for step in steps[:-3])
    wanted = np.asarray(batch_generate_samples(executor, 8, rngs=7, **SAID))[5:]
    np.testing.assert_allclose([step.sample for step in done], wanted, **CLOSE)


def test_async_for(executor, gate):
    async def read():
        async with StepStream(executor, 2, seed=7, every=1, **SAID) as stream:
            return [step async for step in stream]

    steps = asyncio.run(read())
    done = [step.sample for step in steps if step.step is None]
    np.testing.assert_allclose(done, np.asarray(batch_generate_samples(executor, 2, rngs=7, **SAID)), **CLOSE)
    assert len(steps) > 2


def test_who_is_slow_is_given_the_newest(executor, gate):
    gate.hold()
    with StepStream(executor, seed=3, num_steps=20) as stream:
        gate.release(1)
        assert next(stream).step == 1
        gate.release(15)
        gate.wait(17)
        seen = [next(stream).step]
        while seen[-1] < 16:  # the newest may still be on its way
            seen.append(next(stream).step)
        assert len(seen) <= 3
        gate.release()
        assert [step.step for step in stream][-1] is None


def test_a_stream_that_is_not_read_or_is_left_draws_nothing_more(executor, gate):
    stream = StepStream(executor, 2, num_steps=50)
    stream.close()
    assert not gate.seen
    assert list(stream) == []
    gate.hold()
    batcher = Batcher(executor)
    for leave in (StepStream.close, None):
        stream = StepStream(batcher, 2, num_steps=50)
        seen = len(gate.seen)
        gate.release(1)
        next(stream)
        gate.wait(seen + 2)
        if leave is None:
            del stream
            gc.collect()
        else:
            leave(stream)
        gate.release(1)
    gate.release()
    batcher.close()
    assert batcher.stats()["generate"].cancelled == 2
    assert batcher.stats()["generate"].row_steps < 20


def test_closing_from_another_thread_ends_a_reader(executor, gate):
    gate.hold()
    stream = StepStream(executor, num_steps=50)
    found = []
    reader = threading.Thread(target=lambda: found.append(list(stream)))
    reader.start()
    gate.wait(1)
    stream.close()
    reader.join(TIMEOUT)
    assert found == [[]]


def test_an_ended_stream_lets_go_of_its_batcher(executor):
    before = batcher_threads()
    stream = StepStream(executor, num_steps=2)
    next(stream)
    threads = batcher_threads() - before
    assert threads
    list(stream)
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_streams_of_samples_join_the_same_batches(executor, gate):
    samples = list(stream_samples(executor, 3, seed=7, **SAID))
    assert gate.seen
    np.testing.assert_allclose(
        samples, np.asarray(batch_generate_samples(executor, 3, rngs=7, **SAID)), **CLOSE
    )


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"every": 0}, InputError, "every: expected a number of steps from 1, got 0"),
        ({"every": True}, InputError, "every: expected"),
        ({"every": 1.5}, InputError, "every: expected"),
        ({"start": -1}, InputError, "start"),
        ({"num_samples": 0}, InputError, "num_samples"),
        ({"seed": "a"}, InputTypeError, "seed"),
        ({"temperature": 2.0}, InputError, "temperature is not taken"),
        ({"sampler": "fast"}, InputError, "sampler"),
    ],
)
def test_bad_input(executor, settings, error, words):
    with pytest.raises(error, match=words):
        StepStream(executor, **settings)


def test_a_model_that_takes_no_steps():
    plain = Executor(None, {"generate": Endpoint(lambda model, keys, inputs: dict(inputs), {"x": ROW})})
    with pytest.raises(InputError, match="it takes no steps"):
        StepStream(plain)
