"""Streams of samples: until the first, and how fast they then go."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from clients import no_collector, now
from common import Facts, Row, ratio
from flax import nnx

from artifex.generative_models.inference import Executor, StreamingGenerator, batch_generate_samples
from artifex.generative_models.inference.batching.batcher import batcher_for

ROWS = 20_000
ROUNDS = 5
FIRST_SAMPLES = 300
GROWN = 1024  # samples of a stream until its blocks have their full size


def streams(executor: Executor) -> tuple[list[Row], Facts]:
    batcher = batcher_for(executor)  # held, so that its threads are there whatever stream ends
    key = jax.random.key(0)
    inputs = {"temperature": 1.0}

    def idle() -> None:
        while any(stats.rows_in_flight or stats.queued_rows for stats in batcher.stats().values()):
            time.sleep(1e-4)
        time.sleep(1e-3)

    loop = asyncio.new_event_loop()
    calls = {
        "first, async for": lambda new, known, seed: loop.run_until_complete(anext(new)),
        "first, new seed": lambda new, known, seed: next(new),
        "first, known seed": lambda new, known, seed: next(known),
        "one row with a key": lambda new, known, seed: np.asarray(
            executor("generate", inputs, key=key, num_rows=1)["x"]
        ),
        "one row from a seed": lambda new, known, seed: np.asarray(
            batch_generate_samples(executor, 1, rngs=nnx.Rngs(seed))
        ),
    }
    orders = itertools.cycle(itertools.permutations(calls))
    times: dict[str, list[float]] = {name: [] for name in calls}
    with no_collector():
        for seed in range(1000, 1000 + FIRST_SAMPLES):
            for name in next(orders):
                with StreamingGenerator(executor, seed) as new, StreamingGenerator(executor, 0) as known:
                    idle()
                    start = now()
                    calls[name](new, known, seed)
                    times[name].append(now() - start)
    first = {name: 1e6 * statistics.median(values[20:]) for name, values in times.items()}
    over_key = first["first, new seed"] / first["one row with a key"]
    over_seed = first["first, new seed"] / first["one row from a seed"]
    loop.close()
    async_over_key = first["first, async for"] / first["one row with a key"]
    known_over_key = first["first, known seed"] / first["one row with a key"]

    def drop(samples) -> None:
        deque(samples, maxlen=0)

    def at_once() -> float:
        start = now()
        jax.block_until_ready(executor("generate", inputs, key=key, num_rows=ROWS))
        return now() - start

    def sync() -> float:
        with StreamingGenerator(executor) as stream:
            drop(itertools.islice(stream, GROWN))
            start = now()
            for _ in itertools.islice(stream, ROWS):
                pass
            return now() - start

    async def read_async() -> float:
        async with StreamingGenerator(executor, num_samples=GROWN + ROWS) as stream:
            for _ in range(GROWN):
                await anext(stream)
            start = now()
            async for _ in stream:
                pass
            return now() - start

    def two() -> float:
        together = threading.Barrier(2)

        def read(seed: int) -> tuple[float, float]:
            with StreamingGenerator(executor, seed) as stream:
                drop(itertools.islice(stream, GROWN))
                together.wait()
                start = now()
                drop(itertools.islice(stream, ROWS // 2))
                return start, now()

        with ThreadPoolExecutor(2) as threads:
            starts, ends = zip(*threads.map(read, (1, 2)), strict=True)
        return max(ends) - min(starts)

    reads: dict[str, Callable[[], float]] = {
        "offline": at_once,
        "for": sync,
        "async for": lambda: asyncio.run(read_async()),
        "two": two,
    }
    steady: dict[str, list[float]] = {name: [] for name in reads}
    for read in reads.values():
        read()
    for _ in range(ROUNDS):
        for name, read in reads.items():
            with no_collector():
                steady[name].append(read())
    rate = {name: ROWS / statistics.median(values) for name, values in steady.items()}
    over = {name: ratio(steady, "offline", name) for name in ("for", "async for", "two")}
    two_over_one = ratio(steady, "for", "two")
    facts: Facts = {
        "first_microseconds": {name: round(value, 1) for name, value in first.items()},
        "first_over_row_with_key": round(over_key, 3),
        "first_over_row_from_seed": round(over_seed, 3),
        "first_by_async_for_over_row_with_key": round(async_over_key, 3),
        "first_of_known_seed_over_row_with_key": round(known_over_key, 3),
        "samples_per_second": {name: round(value) for name, value in rate.items()},
        "over_offline": {name: round(value, 3) for name, value in over.items()},
        "for_over_offline_by_round": [
            round(a / b, 3) for a, b in zip(steady["offline"], steady["for"], strict=True)
        ],
        "two_over_one": round(two_over_one, 3),
    }
    took = {name: f"{value:.0f} µs" for name, value in first.items()}
    beside = {name: f"{value:.2f} of offline" for name, value in over.items()}
    per_second = {name: f"{value:,.0f} rows/s" for name, value in rate.items()}
    with_key = f"{took['first, new seed']} over {took['one row with a key']}"
    from_seed = f"{took['first, new seed']} over {took['one row from a seed']}"
    return [
        ["stream: first over a row with a key", f"{over_key:.2f}", "1.5", with_key],
        ["stream: first, by async for", f"{async_over_key:.2f}", "1.5", took["first, async for"]],
        ["stream: first, of a seed used before", f"{known_over_key:.2f}", "", took["first, known seed"]],
        ["stream: first over a row from a seed", f"{over_seed:.2f}", "1.5", from_seed],
        ["stream: offline", "", "", per_second["offline"]],
        ["stream: for", beside["for"], "0.9", per_second["for"]],
        ["stream: async for", beside["async for"], "", per_second["async for"]],
        ["stream: two at once, over one", f"{two_over_one:.2f}", "", per_second["two"]],
    ], facts
