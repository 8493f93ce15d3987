"""Coroutines that each have one request out at a time, and two servers to compare with."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

RAMP_SECONDS = 0.2  # from the first request of a turn until the clock starts

now = time.perf_counter


class Turn(NamedTuple):
    """Rows/s while the clock ran, the latencies of those requests, and all rows from start to end."""

    rate: float
    latencies: list[float]
    num_rows: int


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def percentiles(seconds) -> dict[str, float]:
    """Milliseconds."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


class SpecificationServer:
    """One jitted call a request on a pool of threads, and both ways to bring its result to the host."""

    def __init__(self, model, max_workers: int = 4):
        self.threads = ThreadPoolExecutor(max_workers)
        self.encode = jax.jit(lambda x: model.encode(x)["mean"])

    async def by_client(self, images: np.ndarray) -> np.ndarray:
        """Awaits the result and copies it in the event loop's thread."""
        loop = asyncio.get_running_loop()
        return np.asarray(await loop.run_in_executor(self.threads, self.encode, images))

    async def by_threads(self, images: np.ndarray) -> np.ndarray:
        """Has the pool's thread copy the result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, lambda: np.asarray(self.encode(images)))


class Asyncio:
    """Answers all who wait at once, without a queue, a thread or a check: what the clients cost alone."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def encode_async(self, images: np.ndarray) -> None:
        """Waits for one turn of the event loop."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self.waiting:
            loop.call_soon(self.answer)
        self.waiting.append(future)
        await future

    def answer(self) -> None:
        """Wakes the clients."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            future.set_result(None)


async def clients(
    call: Callable[[np.ndarray], Awaitable[object]],
    requests: list[np.ndarray],
    num_clients: int,
    seconds: float,
) -> Turn:
    """So many clients that each have one request out at a time."""
    num_requests = 0
    latencies: list[float] = []
    begin = now() + RAMP_SECONDS
    end = begin + seconds

    async def client(number: int) -> None:
        nonlocal num_requests
        for request in itertools.cycle(requests[number::num_clients]):
            sent = now()
            if sent >= end:
                return
            await call(request)
            answered = now()
            num_requests += 1
            if begin <= answered < end:
                latencies.append(answered - sent)

    await asyncio.gather(*map(client, range(num_clients)))
    num_rows = len(requests[0])
    return Turn(len(latencies) * num_rows / seconds, latencies, num_requests * num_rows)
