"""What the benchmarks share: the machine, a clock that takes turns, tables and results."""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from artifex import __version__

Row = list[object]  # of a table
Facts = dict[str, object]  # of the JSON line


def machine() -> dict[str, object]:
    """The device and the versions that a result belongs to."""
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax")},
        "artifex": __version__,
    }


def digits(count: int) -> np.ndarray:
    """Real MNIST test digits in [0, 1], float32 [count, 28, 28, 1]: those that ship, over and over."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        images = archive["images"].astype(np.float32) / 255
    return np.resize(images, (count, 28, 28, 1))


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call, its results awaited, the garbage collector kept out."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start
    finally:
        gc.enable()


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in rounds of random order, so that a machine that drifts is unfair to none."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample([*calls], len(calls)):
            times[name].append(seconds(calls[name]))
    return times


def ratio(times: Mapping[str, list[float]], baseline: str, ours: str) -> float:
    """How many times faster `ours` is: the median over rounds of the ratio within a round."""
    return statistics.median(b / o for b, o in zip(times[baseline], times[ours], strict=True))


def matmul_flops(side: int = 2048, dtype: DTypeLike = jnp.float32) -> float:
    """The machine's matrix-multiplication rate in operations a second, best of several."""
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    product(a).block_until_ready()
    return 2 * side**3 / min(seconds(lambda: product(a)) for _ in range(10))


def report(
    name: str,
    columns: list[str],
    rows: list[Row],
    facts: Mapping[str, object],
    justify: Literal["left", "right"] = "right",
) -> None:
    """Prints a table for people, then one JSON line that holds it as well; the first column stays left."""
    table = Table(title=name, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else justify)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=110).print(table)
    cells = [columns, *([str(cell) for cell in row] for row in rows)]
    print(json.dumps({"benchmark": name, **facts, "table": cells, "machine": machine()}), flush=True)
