"""What Artifex is measured against: the bare compiled executable, and loops written by hand around a jit."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import numpy as np
from common import seconds
from flax import nnx

Loop = Callable[[], np.ndarray]
BringHome = Callable[[Iterable[jax.Array]], np.ndarray]


def bare_executable(model: nnx.Module, method: Callable, *inputs) -> Callable:
    """`method(model, *inputs)` compiled alone; its weights are flat arguments, on the device already."""
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    leaves = [jax.device_put(leaf) for leaf in leaves]

    def run(*arguments):
        weights, given = arguments[: len(leaves)], arguments[len(leaves) :]
        return method(nnx.merge(graphdef, jax.tree.unflatten(treedef, weights)), *given)

    return partial(jax.jit(run).lower(*leaves, *inputs).compile(), *leaves)


def microseconds(call: Callable[[], object], num_calls: int, pause: float = 0.0) -> float:
    """Median latency of a call, its results awaited, with so many seconds of other work before it."""
    times = []
    for _ in range(num_calls):
        ready = time.perf_counter() + pause
        while pause and time.perf_counter() < ready:
            pass
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def to_numpy(outputs: Iterable[jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(output) for output in outputs])


def copied_at_once(outputs: Iterable[jax.Array]) -> np.ndarray:
    return np.concatenate(jax.device_get(list(outputs)))


def copied_behind(outputs: Iterable[jax.Array]) -> np.ndarray:
    """Copies a batch while the device computes the next two."""
    arrays: list[np.ndarray] = []
    window: deque[jax.Array] = deque()
    for output in outputs:
        output.copy_to_host_async()
        window.append(output)
        if len(window) > 2:
            arrays.append(np.asarray(window.popleft()))
    return np.concatenate([*arrays, *map(np.asarray, window)])


HOMES: Mapping[str, BringHome] = {"batch by batch": to_numpy, "at the end": copied_at_once}


def jit_loops(
    run: Callable[[int, int], jax.Array],
    num_rows: int,
    batch_sizes: Iterable[int],
    homes: Mapping[str, BringHome] = HOMES,
) -> dict[str, Loop]:
    """`run(start, stop)` dispatches a batch; one loop for each batch size and way home."""

    def loop(size: int, bring: BringHome) -> np.ndarray:
        return bring(run(start, min(start + size, num_rows)) for start in range(0, num_rows, size))

    return {
        f"batch {size}, {home}": partial(loop, size, bring)
        for size in batch_sizes
        for home, bring in homes.items()
    }


def fastest(loops: Mapping[str, Callable[[], object]]) -> tuple[str, dict[str, float]]:
    """The label of the fastest loop, and the seconds of each; a first call, which compiles, is not timed."""
    for loop in loops.values():
        loop()
    trial = {label: min(seconds(loop) for _ in range(2)) for label, loop in loops.items()}
    return min(trial, key=trial.get), trial
