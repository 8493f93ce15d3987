"""Rows that join and leave running batches, beside batches that run from their first step to their last.

Requests for one digit of `mnist-diffusion` each, whose steps are drawn from 10, 20 and 50. All sides are a
`Batcher` of the same executor, warm, and take turns; one of them merges only requests of as many steps.
Saturated means that 64 clients ask again as soon as they are answered.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
from common import Row, report

import artifex
from artifex.generative_models.inference import Batcher
from artifex.generative_models.inference.offline.sampling import Sampling, sampling

MIX = (10, 20, 50)
CLIENTS, REQUESTS, ROUNDS = 64, 192, 3
LOAD = 0.6  # of what slots can do
SLOTS, WHOLE, LINES = "slots", "whole batches", "a line per number of steps"
ONE_WIDTH = "slots of one width"

executor = artifex.load("mnist-diffusion").executor
HOW: Mapping[int, Sampling] = {
    steps: sampling(executor, None, 1.0, {"num_steps": steps, "label": 3}) for steps in MIX
}


class Side:
    """A way to run requests: by one batcher, or by one for each number of steps."""

    def __init__(self, *, slots: bool, apart: bool = False, deterministic: bool = False):
        self._batchers = [
            Batcher(executor, slots=slots, deterministic=deterministic) for _ in (MIX if apart else MIX[:1])
        ]
        self._batchers[0].warmup(["generate"])
        for batcher in self._batchers[1:]:
            batcher.warmup(["generate"])

    def submit(self, steps: int, seed: int, num_rows: int = 1, **settings: Any) -> Future:
        """A request for so many digits."""
        batcher = self._batchers[MIX.index(steps) % len(self._batchers)]
        how = HOW[steps]
        return batcher.submit("generate", how.rows(0, num_rows), seed=seed, **how.options, **settings)

    def close(self) -> None:
        """Ends the batchers."""
        for batcher in self._batchers:
            batcher.close()


def steps_of(count: int, mix: tuple[int, ...], seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).choice(mix, count).tolist()


def saturated(side: Side, steps: list[int], cancelled: float = 0.0) -> float:
    """Requests a second that were answered, of those that came between the first and the last clients'.

    Args:
        side: What runs them.
        steps: Of each request.
        cancelled: The share of requests that are cancelled when half of their steps are taken.
    """
    free = threading.Semaphore(CLIENTS)
    ends: list[float] = []
    chosen = np.random.default_rng(1).random(len(steps)) < cancelled

    def ended(future: Future) -> None:
        if not future.cancelled():
            ends.append(time.perf_counter())
        free.release()

    futures = []
    start = time.perf_counter()
    for seed, count in enumerate(steps):
        free.acquire()
        cell: list[Future] = []
        settings = {}
        if chosen[seed]:
            half = count // 2
            settings = {"on_preview": lambda _, cell=cell: cell and cell[0].cancel(), "every": half}
        future = side.submit(count, seed, **settings)
        cell.append(future)
        future.add_done_callback(ended)
        futures.append(future)
    last = time.perf_counter()  # from here on there are fewer clients
    for future in futures:
        with contextlib.suppress(CancelledError):
            future.result()
    return sum(end <= last for end in ends) / (last - start)


def latencies(side: Side, rate: float, steps: list[int]) -> list[float]:
    """Seconds of each request, which come at random, so many a second."""
    gaps = np.random.default_rng(2).exponential(1 / rate, len(steps))
    due = time.perf_counter()
    waiting: list[tuple[float, Future]] = []
    found: list[float] = []
    for seed, (count, gap) in enumerate(zip(steps, gaps, strict=True)):
        due += gap
        time.sleep(max(0.0, due - time.perf_counter()))
        future = side.submit(count, seed)
        future.add_done_callback(lambda _, came=due: found.append(time.perf_counter() - came))
        waiting.append((due, future))
    for _, future in waiting:
        future.result()
    return found


def beside_many(side: Side) -> tuple[float, float, float]:
    """Seconds of one request alone, the same beside one for 4,096, and until its first preview there."""

    def one() -> tuple[float, float]:
        shown: list[float] = []
        start = time.perf_counter()
        note = lambda _: shown.append(time.perf_counter() - start)  # noqa: E731
        side.submit(50, 1, on_preview=note).result()
        return time.perf_counter() - start, shown[0]

    alone = statistics.median(one()[0] for _ in range(3))
    large = side.submit(50, 2, num_rows=4096)
    time.sleep(2.0)
    found = [one() for _ in range(3)]
    large.cancel()
    return alone, statistics.median(t for t, _ in found), statistics.median(s for _, s in found)


def main() -> None:
    sides = {
        SLOTS: Side(slots=True),
        WHOLE: Side(slots=False),
        LINES: Side(slots=False, apart=True),
        ONE_WIDTH: Side(slots=True, deterministic=True),
    }
    rows: list[Row] = []
    facts: dict[str, object] = {}

    def over(name: str, values: Mapping[str, list[float]], base: str, *, inverse: bool = False) -> float:
        ratios = [s / b for s, b in zip(values[SLOTS], values[base], strict=True)]
        return round(statistics.median(1 / r if inverse else r for r in ratios), 3)

    mixed: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(ROUNDS):
        for name, side in sides.items():
            mixed[name].append(saturated(side, steps_of(REQUESTS, MIX, round_)))
    rows += [
        [
            f"10, 20 or 50 steps, saturated: {n}",
            f"{statistics.median(v):.1f}/s",
            f"{over(SLOTS, mixed, n):.2f}",
        ]
        for n, v in mixed.items()
    ]
    facts |= {f"throughput over {name}": over(SLOTS, mixed, name) for name in (WHOLE, LINES, ONE_WIDTH)}
    alone = {name: statistics.median(latencies(sides[name], 0.5, [20] * 5)) for name in (SLOTS, ONE_WIDTH)}
    of_one = alone[ONE_WIDTH] / alone[SLOTS]
    rows.append([f"20 steps alone: {ONE_WIDTH}", f"{alone[ONE_WIDTH]:.2f} s", f"{1 / of_one:.2f}"])
    facts["one width, alone"] = round(of_one, 3)

    rate = LOAD * statistics.median(mixed[SLOTS])
    for mix, title, pace in ((MIX, "10, 20 or 50 steps", rate), ((20,), "20 steps", 0.0)):
        if not pace:
            equal = {
                n: [saturated(sides[n], steps_of(REQUESTS, mix)) for _ in range(ROUNDS)]
                for n in (SLOTS, WHOLE)
            }
            rows += [
                [f"{title}, saturated: {n}", f"{statistics.median(v):.1f}/s", f"{over(SLOTS, equal, n):.2f}"]
                for n, v in equal.items()
            ]
            facts["equal steps, throughput"] = over(SLOTS, equal, WHOLE)
            pace = LOAD * statistics.median(equal[SLOTS])
        found = {n: latencies(sides[n], pace, steps_of(REQUESTS, mix)) for n in (SLOTS, WHOLE)}
        for what, of in (("mean", statistics.mean), ("p99", lambda v: float(np.quantile(v, 0.99)))):
            ratio = of(found[SLOTS]) / of(found[WHOLE])
            rows += [
                [
                    f"{title}, at {LOAD:.0%} of that, {what} latency: {n}",
                    f"{of(v):.2f} s",
                    f"{ratio:.2f}" if n == SLOTS else "",
                ]
                for n, v in found.items()
            ]
            facts[f"{title}, {what} latency"] = round(ratio, 3)

    kept = {False: [], True: []}
    for round_ in range(ROUNDS):
        for cancel in kept:
            kept[cancel].append(
                saturated(sides[SLOTS], steps_of(REQUESTS, MIX, round_), 0.3 if cancel else 0.0)
            )
    gained = statistics.median(a / b for a, b in zip(kept[True], kept[False], strict=True))
    # Of the requests that are counted with cancelling, 7 in 10 stay.
    rows.append(
        ["30 % cancelled half-way, answers a second over 7 in 10 of those without", "", f"{gained / 0.7:.2f}"]
    )
    facts["cancelled"] = round(gained / 0.7, 3)

    by_itself, beside, shown = beside_many(sides[SLOTS])
    rows.append(
        [
            "50 steps beside a request of 4,096 rows, over alone",
            f"{beside:.2f} s",
            f"{beside / by_itself:.2f}",
        ]
    )
    rows.append(["… until the first preview", f"{shown:.2f} s", ""])
    facts |= {"beside 4,096": round(beside / by_itself, 3), "first preview": round(shown, 3)}
    for side in sides.values():
        side.close()
    report("slots", ["requests for one digit", "", "slots over it"], rows, facts)


if __name__ == "__main__":
    main()
