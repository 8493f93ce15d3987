"""Many callers at once: Artifex's queue beside the executor alone and beside one jitted call a request.

The offline rate is the executor's own, called with 20,000 rows at once. The specification's server is a
pool of four threads that run one jitted call a request, with the weights closed over; its results are
brought to the host as ours are, by its threads or by the client, whichever is faster here. The clients are
coroutines of one event loop in this process, each with one request out at a time, so that what they cost
counts. Everything that is compared takes turns. The garbage collector is off while the clock runs, except
in the soak, where only what was there before is exempt from it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from clients import (
    RAMP_SECONDS,
    Asyncio,
    SpecificationServer,
    Turn,
    clients,
    no_collector,
    now,
    percentiles,
)
from common import Facts, Row, digits, ratio, report
from soak import soak
from streams import streams

from artifex.generative_models.inference import AsyncInferenceServer, Executor, load_exported_model
from artifex.generative_models.inference.executor.shared import executor_for

ROWS = 20_000
ROUNDS = 5
TURN_SECONDS = {"offline": 1.0, "Artifex": 2.0, "specification": 2.0}  # of those that a bar is set for
OTHER_TURN_SECONDS = 0.6
THREAD_ROWS = 32
ONE_CLIENT_CALLS = 2500


def offline(executor: Executor, images: np.ndarray, seconds: float) -> Turn:
    """Calls with all rows at once, one after another."""
    start = now()
    for calls in itertools.count(1):
        jax.block_until_ready(executor("encode", {"x": images}))
        if (took := now() - start) >= seconds:
            return Turn(calls * len(images) / took, [], calls * len(images))
    raise AssertionError


def bare_threads(executor: Executor, images: np.ndarray, seconds: float) -> Turn:
    """A thread a core that merges and runs, without a queue: what a queue could reach at best."""
    starts = range(0, len(images) - THREAD_ROWS + 1, THREAD_ROWS)
    jobs = [executor.check("encode", {"x": images[i : i + THREAD_ROWS]}, values=False) for i in starts]
    begin = now() + RAMP_SECONDS
    end = begin + seconds

    def work(number: int) -> tuple[list[float], int]:
        latencies: list[float] = []
        for count, job in enumerate(itertools.cycle(jobs[number :: executor.parallel_executions])):
            sent = now()
            if sent >= end:
                return latencies, count
            executor.run(job)
            answered = now()
            if begin <= answered < end:
                latencies.append(answered - sent)
        raise AssertionError

    with ThreadPoolExecutor(executor.parallel_executions) as threads:
        lists, counts = zip(*threads.map(work, range(executor.parallel_executions)), strict=True)
    latencies = list(itertools.chain(*lists))
    return Turn(len(latencies) * THREAD_ROWS / seconds, latencies, sum(counts) * THREAD_ROWS)


def without_computing(model) -> Executor:
    """An executor that has zeros ready for every batch."""
    executor = Executor(model)
    size = executor.batch_sizes[-1]
    _, outputs = executor.spec("encode")
    zeros = {name: np.zeros((size, *spec.shape), spec.dtype) for name, spec in outputs.items()}
    executor.run = lambda job: zeros
    return executor


def under_load(model, executor: Executor, images: np.ndarray) -> tuple[list[Row], Facts]:
    singles = [images[i : i + 1] for i in range(ROWS)]
    eights = [images[i : i + 8] for i in range(0, ROWS, 8)]
    specification = SpecificationServer(model)
    servers = {
        "Artifex": AsyncInferenceServer(executor),
        "256 clients": AsyncInferenceServer(executor),
        "8 digits a request": AsyncInferenceServer(executor),
        "nothing computed": AsyncInferenceServer(without_computing(model)),
    }
    load = {name: (server.encode_async, singles, 64) for name, server in servers.items()}
    load["asyncio alone"] = Asyncio().encode_async, singles, 64
    load["256 clients"] = servers["256 clients"].encode_async, singles, 256
    load["8 digits a request"] = servers["8 digits a request"].encode_async, eights, 64

    cpu: dict[str, list[float]] = {}  # seconds a row, of all threads

    def turn(name: str, length: float) -> Turn:
        with no_collector():
            start = time.process_time()
            if name == "offline":
                result = offline(executor, images, length)
            elif name == "threads, no queue":
                result = bare_threads(executor, images, length)
            else:
                result = asyncio.run(clients(*load[name], length))
            cpu.setdefault(name, []).append((time.process_time() - start) / result.num_rows)
            return result

    ways = {"by its threads": specification.by_threads, "by the client": specification.by_client}
    trial = {}
    for name, call in ways.items():
        load[name] = call, singles, 64
        asyncio.run(call(singles[0]))  # compiles
        trial[name] = statistics.median(turn(name, OTHER_TURN_SECONDS).rate for _ in range(3))
    way = max(trial, key=lambda name: trial[name])
    load["specification"] = load[way]

    names = ["offline", "Artifex", "specification", "threads, no queue", *list(servers)[1:], "asyncio alone"]
    times: dict[str, list[float]] = {name: [] for name in names}
    latencies: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        turn(name, RAMP_SECONDS)
    counted = {name: server.batcher.stats()["encode"] for name, server in servers.items()}
    for _ in range(ROUNDS):
        for name in names:
            result = turn(name, TURN_SECONDS.get(name, OTHER_TURN_SECONDS))
            times[name].append(1 / result.rate)
            latencies[name] += result.latencies

    facts: Facts = {}
    rows: list[Row] = []
    for name in names:
        rate = 1 / statistics.median(times[name])
        microseconds = 1e6 * statistics.median(cpu[name][1:])
        entry: dict[str, object] = {
            "rows_per_second": round(rate),
            "cpu_microseconds_per_row": round(microseconds, 1),
        }
        notes = []
        if name not in ("nothing computed", "asyncio alone"):
            entry["over_offline"] = round(ratio(times, "offline", name), 3)
        if latencies[name]:
            entry["milliseconds"] = took = percentiles(latencies[name])
            notes.append(f"p50 {took['p50']:.1f}, p99 {took['p99']:.1f} ms")
        if name in servers:
            stats = servers[name].batcher.stats()["encode"]
            batches = stats.batches - counted[name].batches
            entry["rows_per_batch"] = round((stats.rows - counted[name].rows) / batches, 1)
            notes.append(f"{entry['rows_per_batch']} a batch")
        if name == "specification":
            notes.append(f"copied {way}")
        facts[name] = entry
        bar = "0.75" if name == "Artifex" else ""
        beside = f"{entry['over_offline']:.2f} of offline" if "over_offline" in entry else ""
        rows.append(
            [
                f"load: {name}",
                beside,
                bar,
                "; ".join([f"{rate:,.0f} rows/s, {microseconds:.0f} µs CPU each", *notes]),
            ]
        )
    over = ratio(times, "specification", "Artifex")
    within = [s / o for s, o in zip(times["offline"], times["Artifex"], strict=True)]
    facts["artifex_over_specification"] = round(over, 3)
    facts["artifex_over_offline_by_round"] = [round(value, 3) for value in within]
    facts["specification_ways_rows_per_second"] = {name: round(rate) for name, rate in trial.items()}
    rows.insert(3, ["load: Artifex over specification", f"{over:.2f}", "3", ""])
    for server in servers.values():
        server.shutdown()
    specification.threads.shutdown()
    return rows, facts


def one_client(executor: Executor, images: np.ndarray) -> tuple[list[Row], Facts]:
    """Median latencies of one row, directly and through the queue, call by call in all orders in turn."""
    server = AsyncInferenceServer(executor)

    async def directly(x) -> object:
        return np.asarray(executor("encode", {"x": x})["mean"])

    async def from_thread(x) -> object:
        return server.batcher.submit("encode", {"x": x}).result()["mean"]

    calls = {"direct": directly, "encode_async": server.encode_async, "submit": from_thread}
    orders = itertools.cycle(itertools.permutations(calls))
    times: dict[str, list[float]] = {name: [] for name in calls}

    async def measure() -> None:
        for i in range(ONE_CLIENT_CALLS):
            x = images[i : i + 1]
            for name in next(orders):
                start = now()
                await calls[name](x)
                times[name].append(now() - start)

    with no_collector():
        asyncio.run(measure())
    server.shutdown()
    median = {name: 1e6 * statistics.median(values[100:]) for name, values in times.items()}
    rows: list[Row] = []
    facts: Facts = {"microseconds": {name: round(value, 1) for name, value in median.items()}}
    for name in ("encode_async", "submit"):
        added = median[name] - median["direct"]
        facts[f"{name}_added_microseconds"] = round(added, 1)
        bar = "200 µs" if name == "encode_async" else ""
        direct = f"a direct call takes {median['direct']:.0f} µs"
        rows.append([f"one client: {name} adds", f"{added:.0f} µs", bar, direct])
    return rows, facts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the soak")
    seconds = parser.parse_args().seconds
    model, _, _ = load_exported_model("mnist-vae")
    executor = executor_for(model)
    executor.warmup(["encode", "generate"])
    images = digits(ROWS)
    load_rows, load = under_load(model, executor, images)
    one_rows, one = one_client(executor, images)
    stream_rows, stream = streams(executor)
    patience = load["256 clients"]["milliseconds"]["p50"] / 1e3
    soak_rows, soaked = soak(executor, images, seconds, patience)
    report(
        "concurrency",
        ["concurrency", "measured", "bar", ""],
        [*load_rows, *one_rows, *soak_rows, *stream_rows],
        {"load": load, "one_client": one, "soak": soaked, "stream": stream},
    )


if __name__ == "__main__":
    main()
