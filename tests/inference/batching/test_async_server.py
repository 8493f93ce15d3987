"""Requests of coroutines: several event loops, cancelled tasks, and the server over them."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, TOLERANCE, batcher_threads, rows

from artifex.generative_models.core.errors import ClosedError, DeadlineExceededError, InputError
from artifex.generative_models.inference import (
    AsyncInferenceServer,
    Batcher,
    batch_encode_images,
    batch_generate_samples,
)
from artifex.generative_models.inference.batching.futures import LoopFuture


def run(main):
    """Runs a coroutine, which leaves no task behind."""

    async def bounded():
        answer = await asyncio.wait_for(main, TIMEOUT)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return answer

    return asyncio.run(bounded())


async def by_thread(batcher, *arguments, **keywords):
    return await batcher.submit(*arguments, **keywords)


async def by_loop(batcher, *arguments, **keywords):
    return await batcher.submit_async(*arguments, **keywords)


both = pytest.mark.parametrize("call", [by_thread, by_loop], ids=["submit", "submit_async"])


@both
def test_coroutines_get_each_their_own(open_batcher, call):
    batcher = open_batcher()

    async def main():
        calls = [call(batcher, "double", {"x": rows(1 + i % 12, i)}) for i in range(100)]
        return await asyncio.gather(*calls)

    for i, answer in enumerate(run(main())):
        np.testing.assert_array_equal(answer["y"], 2 * rows(1 + i % 12, i))


@both
def test_errors_and_deadlines_are_raised_where_it_is_awaited(held, gate, call):
    batcher = held()

    async def main():
        with pytest.raises(DeadlineExceededError):
            await call(batcher, "double", {"x": rows(1)}, timeout=0.01)
        gate.release()
        return await call(batcher, "double", {"x": rows(1)})

    np.testing.assert_array_equal(run(main())["y"], 2 * rows(1))


@both
def test_a_cancelled_task_drops_its_request_and_no_other(held, gate, call):
    batcher = held()

    async def main():
        tasks = [asyncio.ensure_future(call(batcher, "double", {"x": rows(1, i)})) for i in range(1, 7)]
        while batcher.stats()["double"].queued_rows < 6:
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        while batcher.stats()["double"].cancelled < 3:
            await asyncio.sleep(0)
        assert batcher.stats()["double"].queued_rows == 3
        gate.release()
        return await asyncio.gather(*tasks[1::2])

    assert [answer["y"][0, 0] for answer in run(main())] == [4, 8, 12]
    assert gate.batches[1].rows == [2, 4, 6]


@both
def test_giving_up_after_a_while_drops_the_request(held, gate, call):
    batcher = held()

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(batcher, "double", {"x": rows(2)}), 0.05)
        while not batcher.stats()["double"].cancelled:
            await asyncio.sleep(0)

    run(main())
    gate.release()
    batcher.close()
    assert gate.sizes == [1]


def test_loops_and_threads_share_one_batcher(open_batcher, gate):
    batcher = open_batcher(max_in_flight=2)
    start = threading.Barrier(6)

    async def coroutine(call, first):
        answers = await asyncio.gather(
            *[call(batcher, "double", {"x": rows(1 + i % 10, first + i)}) for i in range(50)]
        )
        return [answer["y"] for answer in answers]

    def loop(first, call):
        start.wait(TIMEOUT)
        return run(coroutine(call, first))

    def thread(first, _):
        start.wait(TIMEOUT)
        futures = [batcher.submit("double", {"x": rows(1 + i % 10, first + i)}) for i in range(50)]
        return [future.result(TIMEOUT)["y"] for future in futures]

    kinds = [(loop, by_loop), (loop, by_thread), (thread, None)] * 2
    with ThreadPoolExecutor(len(kinds)) as pool:
        jobs = [pool.submit(kind, 1000 * n, call) for n, (kind, call) in enumerate(kinds)]
        for n, job in enumerate(jobs):
            for i, answer in enumerate(job.result(TIMEOUT)):
                np.testing.assert_array_equal(answer, 2 * rows(1 + i % 10, 1000 * n + i))
    assert sum(gate.sizes) == 6 * sum(1 + i % 10 for i in range(50))


def test_a_loop_that_closes_while_its_request_is_under_way_harms_nobody(open_batcher, gate):
    batcher = open_batcher(max_in_flight=1)
    gate.hold()

    async def leave():
        batcher.submit_async("double", {"x": rows(1)})
        await asyncio.to_thread(gate.wait, 1)
        batcher.submit_async("double", {"x": rows(1, 2)})

    asyncio.run(leave())
    future = batcher.submit("double", {"x": rows(2, 3)})
    gate.release()
    np.testing.assert_array_equal(future.result(TIMEOUT)["y"], 2 * rows(2, 3))
    np.testing.assert_array_equal(run(by_loop(batcher, "double", {"x": rows(3)}))["y"], 2 * rows(3))
    assert all(thread.is_alive() for thread in batcher._scheduler._threads)


def test_64_digits_at_once_are_encoded_as_alone(executor, pictures):
    expected = np.asarray(executor("encode", {"x": pictures[:64]})["mean"])

    async def main():
        calls = [by_loop(batcher, "encode", {"x": picture[None]}) for picture in pictures[:64]]
        return await asyncio.gather(*calls)

    with Batcher(executor) as batcher:
        answers = run(main())
    means = np.concatenate([answer["mean"] for answer in answers])
    np.testing.assert_allclose(means, expected, **TOLERANCE)
    assert batcher.stats()["encode"].batches < 64


def test_nothing_is_left_of_coroutines(held, gate):
    before = batcher_threads()
    batcher = held()

    async def main():
        tasks = [asyncio.ensure_future(by_loop(batcher, "double", {"x": rows(2)})) for _ in range(9)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        gate.release()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())
    batcher.close()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, LoopFuture)]
    assert batcher_threads() <= before


def test_a_server_answers_as_the_batch_functions(mnist_vae, executor, pictures):
    z = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)

    async def main():
        async with AsyncInferenceServer(executor) as server:
            return await asyncio.gather(
                server.encode_async(pictures[:20]),
                server.encode_async(jnp.asarray(pictures[20:23])),
                server.decode_async(z),
                server.reconstruct_async(pictures[:3]),
                server.generate_async(6, nnx.Rngs(3)),
                server.generate_async(6, nnx.Rngs(3), temperature=0.5),
            )

    expected = [
        batch_encode_images(mnist_vae, pictures[:20]),
        batch_encode_images(mnist_vae, pictures[20:23]),
        executor("decode", {"z": z})["x"],
        executor("reconstruct", {"x": pictures[:3]})["x"],
        batch_generate_samples(mnist_vae, 6, rngs=nnx.Rngs(3)),
        batch_generate_samples(mnist_vae, 6, rngs=nnx.Rngs(3), temperature=0.5),
    ]
    for answer, alone in zip(run(main()), expected, strict=True):
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(answer, alone, **TOLERANCE)


def test_calls_with_shared_generators_draw_one_key_each_in_order(mnist_vae, executor):
    async def main():
        rngs = nnx.Rngs(5)
        async with AsyncInferenceServer(executor) as server:
            return await asyncio.gather(*[server.generate_async(3, rngs) for _ in range(3)])

    rngs = nnx.Rngs(5)
    for samples in run(main()):
        np.testing.assert_allclose(samples, batch_generate_samples(mnist_vae, 3, rngs=rngs), **TOLERANCE)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("encode_async", [np.full((1, 28, 28, 1), np.nan, np.float32)], "encode: x: row 0 has a NaN"),
        ("encode_async", [np.zeros((1, 28, 28, 1), np.uint8)], "scale pictures first"),
        ("decode_async", [np.zeros((2, 31), np.float32)], "decode: z: expected float32"),
        ("reconstruct_async", [np.zeros((0, 28, 28, 1), np.float32)], "at least one row"),
        ("generate_async", [0, nnx.Rngs(0)], "num_samples: expected at least 1"),
        ("generate_async", [1, nnx.Rngs(0), -1.0], "temperature: expected a finite number from 0"),
    ],
)
def test_mistakes_are_raised_when_awaited(executor, pictures, method, arguments, message):
    keywords = {"temperature": arguments[2]} if len(arguments) == 3 else {}

    async def main():
        async with AsyncInferenceServer(executor) as server:
            bad = getattr(server, method)(*arguments[:2], **keywords)
            good = server.encode_async(pictures[:1])
            return await asyncio.gather(bad, good, return_exceptions=True)

    bad, good = run(main())
    with pytest.raises(InputError, match=message):
        raise bad
    np.testing.assert_allclose(good, executor("encode", {"x": pictures[:1]})["mean"], **TOLERANCE)


@pytest.mark.parametrize("max_workers", [1, 3])
def test_max_workers_is_how_many_batches_are_under_way(plain, gate, max_workers):
    async def main():
        async with AsyncInferenceServer(plain, max_workers) as server:
            gate.hold()
            futures = [server.batcher.submit_async("double", {"x": rows(8, i)}) for i in range(6)]
            await asyncio.to_thread(gate.wait, max_workers)
            with pytest.raises(DeadlineExceededError):  # a thread looked, and took nothing more
                await server.batcher.submit_async("double", {"x": rows(1)}, timeout=0)
            assert len(gate.batches) == max_workers
            gate.release()
            return await asyncio.gather(*futures)

    for i, answer in enumerate(run(main())):
        np.testing.assert_array_equal(answer["y"], 2 * rows(8, i))


def test_no_workers_are_refused(plain):
    with pytest.raises(InputError, match="max_in_flight"):
        AsyncInferenceServer(plain, max_workers=0)


def test_a_server_that_is_shut_down_refuses_what_is_new(executor, pictures):
    async def main():
        server = AsyncInferenceServer(executor)
        waiting = asyncio.ensure_future(server.encode_async(pictures[:3]))
        await asyncio.sleep(0)
        server.shutdown()
        server.shutdown()
        with pytest.raises(ClosedError):
            await server.encode_async(pictures[:3])
        return await waiting

    expected = executor("encode", {"x": pictures[:3]})["mean"]
    np.testing.assert_allclose(run(main()), expected, **TOLERANCE)


def test_an_error_in_the_block_drops_what_waits_and_leaves(plain, gate):
    async def main():
        async with AsyncInferenceServer(plain, 1) as server:
            gate.hold()
            futures.append(server.batcher.submit_async("double", {"x": rows(8)}))
            await asyncio.to_thread(gate.wait, 1)
            futures.append(server.batcher.submit_async("double", {"x": rows(8)}))
            futures[1].add_done_callback(lambda _: gate.release())
            raise OSError("the disk went away")

    async def outer():
        with pytest.raises(OSError, match="the disk went away"):
            await main()
        return await asyncio.gather(*futures, return_exceptions=True)

    futures = []
    under_way, waiting = run(outer())
    np.testing.assert_array_equal(under_way["y"], 2 * rows(8))
    assert isinstance(waiting, ClosedError)
