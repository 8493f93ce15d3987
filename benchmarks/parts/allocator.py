"""A batch that the device's memory does not hold, given to the allocator that the device really has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from parts.bench import Bench, Finding, NotApplicableError, Step, on_cpu

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Batcher, Executor

BATCH_SIZES = (64, 256, 1024)
OVER_LIMIT = 1.4  # bytes of the largest batch's temporary array, in limits
GROUP = 32  # numbers that are sorted together: few, so that sorting is one pass over memory

Run = Callable[[Executor, np.ndarray], np.ndarray]


def hungry(weights, keys, inputs):
    """A row of x times all weights, sorted in groups: an array that XLA cannot do without."""
    products = inputs["x"][:, None, None] * weights["scale"][None]
    return {"y": (jnp.sort(products, axis=-1) * weights["share"][None]).sum(axis=(1, 2))}


ENDPOINTS = {"hungry": Endpoint(hungry, {"x": TensorSpec((), jnp.float32)})}


def hungry_weights(bytes_per_row: int) -> dict[str, np.ndarray]:
    generator, shape = np.random.default_rng(0), (max(bytes_per_row // (4 * GROUP), 1), GROUP)
    scale = generator.random(shape, np.float32) + 0.5
    return {"scale": scale, "share": np.full(shape, 1 / scale.size, np.float32)}


def by_call(executor: Executor, x: np.ndarray) -> np.ndarray:
    return np.asarray(executor("hungry", {"x": x})["y"])


def by_map(executor: Executor, x: np.ndarray) -> np.ndarray:
    chunks = ({"x": part} for part in np.array_split(x, 3))
    return np.concatenate([outputs["y"] for outputs in executor.map("hungry", chunks)])


def by_batcher(executor: Executor, x: np.ndarray) -> np.ndarray:
    # It waits for whole batches: whoever takes what is there at once may take few rows.
    with Batcher(executor, max_delay=10.0) as batcher:
        futures = [batcher.submit("hungry", {"x": part}) for part in np.array_split(x, 2)]
        return np.concatenate([future.result()["y"] for future in futures])


WAYS: dict[str, tuple[Run, int]] = {
    "call of one batch": (by_call, BATCH_SIZES[-1]),
    "call of more": (by_call, 5 * BATCH_SIZES[-1] // 2),
    "map": (by_map, 4 * BATCH_SIZES[-1]),
    "batcher": (by_batcher, 2 * BATCH_SIZES[-1]),
}


def halving(bench: Bench) -> Iterator[Step]:
    """Runs what does not fit in smaller batches, whoever asks for it, and goes on."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if on_cpu() or limit is None:
        raise NotApplicableError(
            f"not applicable on {jax.default_backend()}: no limit of its allocator's own"
        )
    return within(int(limit))


def within(bytes_limit: int) -> Iterator[Step]:
    """What a device does that is said to have so many bytes."""
    weights = hungry_weights(int(OVER_LIMIT * bytes_limit / BATCH_SIZES[-1]))
    for way, (run, num_rows) in WAYS.items():
        yield Step(way, partial(halved, weights, run, num_rows))
    yield Step("the process goes on", goes_on)


def halved(weights: dict[str, np.ndarray], run: Run, num_rows: int) -> Finding:
    """Whether results are right and the largest batch size is given up."""
    executor = Executor(weights, ENDPOINTS, batch_sizes=BATCH_SIZES, tuned=False)
    x = np.linspace(1, 2, num_rows, dtype=np.float32)
    expected = x * float(np.mean(weights["scale"], dtype=np.float64))
    right = np.allclose(run(executor, x), expected, rtol=1e-4)
    largest = executor.batch_sizes_of("hungry")[-1]
    broken = [] if right else ["wrong results"]
    if largest == BATCH_SIZES[-1]:
        broken.append(f"{largest} rows ran, which were to need {OVER_LIMIT} times the memory there is")
    return Finding(
        {"rows": num_rows, "largest_batch_after": largest, "right": right},
        f"{BATCH_SIZES[-1]} rows became {largest}, results {'right' if right else 'wrong'}",
        broken,
    )


def goes_on() -> Finding:
    right = float(jnp.ones(1000).sum()) == 1000
    return Finding({"goes_on": right}, str(right), [] if right else ["it does not"])
