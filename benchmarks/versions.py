"""Another version of Artifex and this one: both loaded and served all the while, each measured in turns.

`ARTIFEX_BENCHMARK_VERSION=PYTHON python benchmarks/run.py versions` names the interpreter that has the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from clients import clients
from common import Row, digits, report, seconds
from flax import nnx

from artifex.generative_models.inference import (
    AsyncInferenceServer,
    Executor,
    StreamingGenerator,
    batch_encode_images,
    batch_generate_samples,
    load_exported_model,
)
from artifex.generative_models.inference.pipeline import load_pipeline

sys.path.insert(0, str(Path(__file__).parent / "servers"))

from contenders import CONTENDERS, OURS, Server, running  # the folder above is not a package
from load import bodies, load

ROUNDS = 81  # short, and many: what disturbs a shared machine comes and goes within seconds
SERVER_ROUNDS = 21
CALLS = 50
ROWS = 4096
CLIENT_SECONDS = 0.2

Measure = Callable[[], float]


def workloads() -> dict[str, Measure]:
    """What is measured in a version's own process, by name: seconds a row."""
    model, _, _ = load_exported_model("mnist-vae")
    executor = Executor(model)
    pipeline = load_pipeline("mnist-vae")
    server = AsyncInferenceServer(executor)
    images = digits(ROWS)
    pictures = np.round(images * 255).astype(np.uint8)

    def calls(call: Callable[[], object]) -> Measure:
        return lambda: seconds(lambda: [np.asarray(call()) for _ in range(CALLS)][-1]) / CALLS

    def rows(call: Callable[[], object], count: int = ROWS) -> Measure:
        return lambda: seconds(call) / count

    def load_of(num_rows: int, num_clients: int) -> Measure:
        requests = [images[i : i + num_rows] for i in range(0, ROWS, num_rows)]
        return lambda: (
            1 / asyncio.run(clients(server.encode_async, requests, num_clients, CLIENT_SECONDS)).rate
        )

    seeds = itertools.count()

    def stream(count: int) -> None:
        with StreamingGenerator(executor, next(seeds)) as samples:
            for _ in range(count):
                next(samples)

    row, key, latent = images[:1], jax.random.key(0), np.ones((1, model.latent_dim), np.float32)
    return {
        "encode, one row": calls(lambda: executor("encode", {"x": row})["mean"]),
        "decode, one row": calls(lambda: executor("decode", {"z": latent})["x"]),
        "generate, one row": calls(
            lambda: executor("generate", {"temperature": 1.0}, key=key, num_rows=1)["x"]
        ),
        "encode float32": rows(lambda: batch_encode_images(executor, images)),
        "encode uint8 pictures": rows(lambda: pipeline.encode(pictures)),
        "generate": rows(lambda: batch_generate_samples(executor, ROWS, rngs=nnx.Rngs(0))),
        "64 clients": load_of(1, 64),
        "256 clients": load_of(1, 256),
        "64 clients, 8 digits a request": load_of(8, 64),
        "stream": rows(lambda: stream(ROWS), ROWS),
        "stream, first sample": rows(lambda: stream(1), 1),
    }


def work() -> None:
    """Measures what each line of the input names."""
    measures = workloads()
    gc.freeze()  # else each turn begins with a collection of all that JAX is made of
    print(*measures, sep="\t", flush=True)
    for line in sys.stdin:
        print(measures[line.strip()](), flush=True)


@contextlib.contextmanager
def working(python: str, cache: str) -> Iterator[dict[str, Measure]]:
    """The workloads in a process of another interpreter."""
    process = subprocess.Popen(
        [python, __file__, "--work"],
        env={**os.environ, "ARTIFEX_CACHE_DIR": cache},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(name: str) -> float:
            print(name, file=stdin, flush=True)
            return float(stdout.readline())

        yield {name: lambda name=name: ask(name) for name in stdout.readline().strip().split("\t")}
        stdin.close()


def served(server: Server) -> dict[str, Measure]:
    """Seconds a request of 64 connections, by protocol and endpoint."""

    def measure(protocol: str, endpoint: str) -> Measure:
        requests = bodies(protocol, endpoint)
        return lambda: 1 / load(server.endpoint_url(endpoint), requests, 64, 1).requests_per_second

    return {
        f"HTTP, {protocol}: {endpoint}": measure(protocol, endpoint)
        for protocol in ("v2-json", "v2-binary")
        for endpoint in ("encode", "generate")
    }


def compare(measures: list[Mapping[str, Measure]], rounds: int) -> Iterator[tuple[str, list[list[float]]]]:
    """The seconds of both in each round, which they begin by turns."""
    for name in measures[0]:
        for measure in measures:
            measure[name]()  # compiles, and warms up
        times: list[list[float]] = []
        for number in range(rounds):
            pair = [(i, measures[i][name]()) for i in ((0, 1) if number % 2 else (1, 0))]
            times.append([value for _, value in sorted(pair)])
        yield name, times


def row_of(name: str, times: list[list[float]]) -> Row:
    """Rates, the median of the ratios of all rounds, and its standard error by their quartiles."""
    other, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    error = 1.25 * 0.74 * (high - low) / len(ratios) ** 0.5
    middle = statistics.median(ratios)
    return [name, f"{1 / other:,.0f}", f"{1 / ours:,.0f}", f"{middle:.3f}", f"{error:.3f}"]


def version_of(python: str) -> str:
    """The version that an interpreter has, and its commit where that can be told."""
    code = "import artifex; print(artifex.__file__, artifex.__version__)"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    file, number = done.stdout.split()
    command = ["git", "-C", str(Path(file).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True)
    return f"{number} ({commit.stdout.strip()})" if commit.returncode == 0 else number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().work:
        work()
        return
    pythons = [os.environ["ARTIFEX_BENCHMARK_VERSION"], sys.executable]
    results: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        caches = [str(Path(scratch, str(number))) for number in range(2)]
        workers = [stack.enter_context(working(*pair)) for pair in zip(pythons, caches, strict=True)]
        results.update(compare(workers, ROUNDS))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(CONTENDERS[OURS], python=python)) for python in pythons]
        results.update(compare([served(server) for server in servers], SERVER_ROUNDS))
    rows = [row_of(name, times) for name, times in results.items()]
    columns = ["rows/s", *map(version_of, pythons), "second over first", "standard error"]
    report("versions", columns, rows, {})


if __name__ == "__main__":
    main()
