import asyncio
import gc
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import batcher_threads

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import ClosedError, InputError, InputTypeError
from artifex.generative_models.inference import (
    Batcher,
    Executor,
    StreamingGenerator,
    batch_generate_samples,
    stream_samples,
)

LARGEST = 8


def draw(model, keys, inputs):
    whole = jax.vmap(lambda key: jax.random.randint(key, (3,), -1000, 1000))(keys)
    return {"x": whole.astype(jnp.float32) * inputs["temperature"][:, None]}  # the same in any batch size


GENERATE = Endpoint(draw, {"temperature": TensorSpec((), jnp.float32, default=1.0)})


@pytest.fixture
def executor():
    executor = Executor(None, {"generate": GENERATE}, batch_sizes=(1, 2, 4, LARGEST))
    executor.rows_run = 0
    run = executor.run

    def counting(job):
        executor.rows_run += job.num_rows
        return run(job)

    executor.run = counting
    return executor


def reference(executor, count, seed=42, temperature=1.0):
    return np.asarray(batch_generate_samples(executor, count, rngs=nnx.Rngs(seed), temperature=temperature))


def ahead(executor):
    """The most rows of one block."""
    return LARGEST * executor.parallel_executions


def test_sample_i_is_row_i(executor):
    samples = list(itertools.islice(StreamingGenerator(executor, seed=7), 100))
    np.testing.assert_array_equal(samples, reference(executor, 100, seed=7))


def test_samples_of_the_trained_model_are_those_of_a_batch(mnist_vae):
    samples = list(stream_samples(mnist_vae, 30, seed=3))
    expected = batch_generate_samples(mnist_vae, 30, rngs=nnx.Rngs(3))
    np.testing.assert_allclose(samples, expected, rtol=1e-4, atol=1e-5)  # batch sizes differ


@pytest.mark.parametrize("start", [0, 1, 37])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_a_stream_starts_and_ends_where_it_is_told(executor, start, count):
    samples = list(stream_samples(executor, count, seed=1, start=start))
    assert len(samples) == count
    if count:
        np.testing.assert_array_equal(samples, reference(executor, start + count, seed=1)[start:])


def test_an_asynchronous_stream_is_the_same(executor):
    async def collect():
        return [sample async for sample in stream_samples(executor, 40, seed=5)]

    np.testing.assert_array_equal(asyncio.run(collect()), reference(executor, 40, seed=5))


def test_one_stream_may_be_read_both_ways_and_from_several_loops(executor):
    stream = stream_samples(executor, 12, seed=5)
    samples = [next(stream), *(asyncio.run(anext(stream)) for _ in range(6)), *stream]
    np.testing.assert_array_equal(samples, reference(executor, 12, seed=5))


def test_the_first_sample_is_drawn_alone_and_blocks_then_grow(executor):
    sizes = []
    with Batcher(executor) as batcher:
        submit = batcher.submit

        def recording(*arguments, **keywords):
            sizes.append(keywords["num_rows"])
            return submit(*arguments, **keywords)

        batcher.submit = recording
        stream = StreamingGenerator(batcher)
        assert sizes == []
        next(stream)
        assert executor.rows_run in (1, 5)  # whether the block after it was through already
        assert sizes == [4]
        list(itertools.islice(stream, 500))
        assert sizes == sorted(sizes)
        assert sizes[-1] == ahead(executor)
        sizes.clear()
        asyncio.run(anext(StreamingGenerator(batcher)))
        assert sizes == [1, 4]


def test_an_unread_stream_computes_one_block_ahead_and_no_more(executor):
    with Batcher(executor) as batcher:
        stream = StreamingGenerator(batcher)
        read = len(list(itertools.islice(stream, 300)))
        while stream._samples:  # to the end of a block
            next(stream)
            read += 1
        stream._blocks[-1].result(30)
    assert len(stream._blocks) == 1
    assert executor.rows_run - read == ahead(executor)


def test_a_stream_that_is_never_read_computes_nothing(executor):
    stream = StreamingGenerator(executor)
    stream.close()
    assert executor.rows_run == 0


def test_a_kept_sample_keeps_no_block(executor):
    sample = list(stream_samples(executor, 20))[-1]
    assert sample.base is None
    assert sample.flags.writeable


def test_closing_ends_the_stream_and_its_threads(executor):
    before = batcher_threads()
    stream = StreamingGenerator(executor)
    next(stream)
    threads = batcher_threads() - before
    assert threads
    stream.close()
    stream.close()
    assert list(stream) == []
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_stream_that_is_dropped_ends_its_threads(executor):
    def read_a_few():
        for i, _ in enumerate(StreamingGenerator(executor)):
            if i == 3:
                break

    before = batcher_threads()
    read_a_few()
    gc.collect()
    for thread in batcher_threads() - before:
        thread.join(30)
    assert batcher_threads() <= before


def test_with_blocks(executor):
    with StreamingGenerator(executor) as stream:
        next(stream)
    assert next(stream, None) is None

    async def read():
        async with StreamingGenerator(executor) as stream:
            await anext(stream)
        return [sample async for sample in stream]

    assert asyncio.run(read()) == []


def test_closing_from_another_thread_ends_a_consumer_that_waits(executor):
    held, release, run = threading.Event(), threading.Event(), executor.run

    def gated(job):
        held.set()
        assert release.wait(30)
        return run(job)

    stream = StreamingGenerator(executor)
    list(itertools.islice(stream, 1 + 4))
    stream._blocks[0].result(30)
    executor.run = gated
    consumer = threading.Thread(target=lambda: result.extend(stream))
    result: list = []
    consumer.start()
    assert held.wait(30)
    stream.close()
    consumer.join(30)
    release.set()
    assert not consumer.is_alive()
    assert len(result) <= ahead(executor)


def test_a_cancelled_consumer_comes_back_for_the_same_sample(executor):
    held, release, run = threading.Event(), threading.Event(), executor.run

    def gated(job):
        held.set()
        assert release.wait(30)
        return run(job)

    executor.run = gated

    async def read():
        stream = StreamingGenerator(executor, seed=9)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(held.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        return [await anext(stream) for _ in range(5)]

    np.testing.assert_array_equal(asyncio.run(read()), reference(executor, 5, seed=9))


def test_streams_over_one_model_share_a_batcher(mnist_vae):
    streams = [stream_samples(mnist_vae, 25, seed=seed) for seed in range(4)]
    assert len({id(stream._batcher) for stream in streams}) == 1
    for seed, samples in enumerate(map(list, zip(*zip(*streams, strict=True), strict=True))):
        expected = batch_generate_samples(mnist_vae, 25, rngs=nnx.Rngs(seed))
        np.testing.assert_allclose(samples, expected, rtol=1e-4, atol=1e-5)


def test_temperature(executor):
    samples = list(stream_samples(executor, 20, temperature=0.5))
    np.testing.assert_array_equal(samples, reference(executor, 20, temperature=0.5))


def test_a_failure_reaches_the_consumer(executor):
    def broken(job):
        raise OSError("the device went away")

    executor.run = broken
    stream = StreamingGenerator(executor)
    with pytest.raises(OSError, match="the device went away"):
        next(stream)
    assert list(stream) == []

    async def read():
        stream = StreamingGenerator(executor)
        with pytest.raises(OSError, match="the device went away"):
            await anext(stream)
        return [sample async for sample in stream]

    assert asyncio.run(read()) == []


def test_a_batcher_that_was_closed(executor):
    batcher = Batcher(executor)
    stream = StreamingGenerator(batcher)
    next(stream)
    batcher.close()
    with pytest.raises(ClosedError):
        list(stream)


BAD = {
    "negative start": ({"start": -1}, InputError, "start"),
    "negative count": ({"num_samples": -1}, InputError, "num_samples"),
    "negative temperature": ({"temperature": -0.1}, InputError, "temperature"),
    "a temperature that is not finite": ({"temperature": float("nan")}, InputError, "temperature"),
    "a seed that is no integer": ({"seed": 1.5}, InputTypeError, "seed"),
}


@pytest.mark.parametrize(("keywords", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(executor, keywords, error, message):
    with pytest.raises(error, match=message):
        StreamingGenerator(executor, **keywords)


def test_a_model_that_does_not_generate():
    double = Endpoint(
        lambda model, keys, inputs: {"y": 2 * inputs["x"]}, {"x": TensorSpec((3,), jnp.float32)}
    )
    with pytest.raises(InputError, match="generate"):
        StreamingGenerator(Executor(None, {"double": double}))
