"""Many clients for a while, of whose requests some are cancelled and some malformed."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from pathlib import Path

import numpy as np
from clients import now, percentiles
from common import Facts, Row

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import AsyncInferenceServer, Executor


class Tally:
    """What came back in a soak, in memory that does not grow."""

    def __init__(self, expected: np.ndarray, capacity: int):
        self.expected = expected
        self.sent = self.queued = self.answered = self.cancelled = self.refused = 0
        self.not_refused = self.wrong = 0
        self.latencies = np.ones(capacity, np.float32)  # ones, so that its pages are there
        self._answers = np.ones((4096, expected.shape[1]), np.float32)
        self._which = np.ones(4096, np.int64)

    def take(self, which: int, answer: np.ndarray, seconds: float) -> None:
        """Keeps an answer; they are compared in blocks, to stay out of the clients' way."""
        self.latencies[self.answered % len(self.latencies)] = seconds
        position = self.answered % len(self._which)
        if answer.shape == (1, self.expected.shape[1]):
            self._answers[position] = answer[0]
        else:
            self._answers[position] = np.nan
        self._which[position] = which
        self.answered += 1
        if position + 1 == len(self._which):
            self.compare(len(self._which))

    def compare(self, count: int) -> None:
        """Counts those of the kept answers that are not the expected ones."""
        close = np.isclose(self._answers[:count], self.expected[self._which[:count]], 1e-3, 1e-4)
        self.wrong += count - int(np.count_nonzero(close.all(axis=1)))

    def finish(self) -> None:
        """Compares what is left."""
        self.compare(self.answered % len(self._which))


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(executor: Executor, images: np.ndarray, seconds: float, patience: float) -> tuple[list[Row], Facts]:
    """256 clients, of whose requests 10 % are cancelled within so many seconds and 1 % are malformed."""
    server = AsyncInferenceServer(executor)
    tally = Tally(np.asarray(executor("encode", {"x": images})["mean"]), capacity=int(20_000 * seconds) + 1)
    singles = [images[i : i + 1] for i in range(len(images))]
    broken = [np.full((1, 28, 28, 1), np.nan, np.float32), images[0], images[:1, :27], images[:0]]
    resident: list[float] = []
    end = now() + seconds

    async def send(x) -> np.ndarray:
        tally.queued += 1
        return await server.encode_async(x)

    async def client(number: int) -> None:
        chance = random.Random(number)
        loop = asyncio.get_running_loop()
        while (sent := now()) < end:
            fate = chance.random()
            tally.sent += 1
            if fate < 0.01:
                x = chance.choice(broken)
                tally.queued += x is broken[0]  # the others are refused before they wait
                try:
                    await server.encode_async(x)
                    tally.not_refused += 1
                except InputError:
                    tally.refused += 1
                continue
            which = chance.randrange(len(images))
            if fate < 0.11:
                task = loop.create_task(send(singles[which]))
                cancel = loop.call_later(chance.uniform(0, patience), task.cancel)
                try:
                    answer = await task
                except asyncio.CancelledError:
                    tally.cancelled += 1
                    continue
                finally:
                    cancel.cancel()
            else:
                answer = await send(singles[which])
            tally.take(which, answer, now() - sent)

    async def watch() -> None:
        for moment in (seconds / 4, seconds):
            await asyncio.sleep(end - seconds + moment - now())
            resident.append(resident_megabytes())

    async def everything() -> None:
        await asyncio.gather(watch(), *map(client, range(256)))

    gc.collect()
    gc.freeze()
    asyncio.run(everything())
    gc.unfreeze()
    tally.finish()
    server.shutdown()
    stats = server.batcher.stats()["encode"]
    took = percentiles(tally.latencies[: tally.answered])
    growth = resident[1] - resident[0]
    spread = took["p99"] / took["p50"]
    checks = {
        "answers that are wrong": tally.wrong,
        "malformed requests that were answered": tally.not_refused,
        "requests that were not answered": tally.sent - tally.answered - tally.cancelled - tally.refused,
        "requests that did not end once": tally.queued - stats.requests - stats.cancelled - stats.failed,
        "rows left over": stats.queued_rows + stats.rows_in_flight,
    }
    wrong = {what: count for what, count in checks.items() if count}
    if wrong:
        raise SystemExit(f"soak: {wrong}")
    counts = {name: getattr(tally, name) for name in ("sent", "answered", "cancelled", "refused", "wrong")}
    facts: Facts = {
        "seconds": seconds,
        **counts,
        "milliseconds": took,
        "p99_over_p50": round(spread, 2),
        "rows_per_batch": round(stats.rows_per_batch, 1),
        "resident_megabytes": [round(value, 1) for value in resident],
        "growth_megabytes": round(growth, 1),
    }
    notes = f"{tally.answered:,} of {tally.sent:,} answered, the rest dropped"
    return [
        [f"soak: {seconds:g} s, 256 clients", f"{tally.wrong} wrong", "0", notes],
        ["soak: p99 / p50", f"{spread:.2f}", "3", f"p50 {took['p50']:.1f}, p99 {took['p99']:.1f} ms"],
        ["soak: growth of memory", f"{growth:+.1f} MB", "20 MB", f"{resident[1]:.0f} MB at the end"],
    ], facts
