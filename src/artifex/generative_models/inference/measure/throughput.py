"""How fast an executor runs one endpoint at one batch size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.fields import Said, checked_fields
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.measure.timing import Timing, time_calls

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POOL_BYTES = 32 << 20  # of host rows, so that they come from memory and not from a cache
_MAX_LATENCY_SECONDS = 1.0


@dataclass(frozen=True)
class Throughput:
    """Rows a second, from host rows to host results, with as many executions under way as the executor has.

    Args:
        rows: Rows of one round.
        rounds: Seconds of the rounds.
    """

    rows: int
    rounds: Timing

    @property
    def rows_per_second(self) -> float:
        """Of the median round."""
        return self.rows / self.rounds.median

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % confidence interval of it."""
        low, high = self.rounds.interval
        return self.rows / high, self.rows / low


def measure_latency(
    executor: Executor,
    endpoint: str,
    batch_size: int,
    num_runs: int = 100,
    *,
    warmup_runs: int = 3,
    said: Mapping[str, Any] | None = None,
) -> Timing:
    """Times one batch alone, from host rows to host results.

    Args:
        executor: Runs it.
        endpoint: Name of the endpoint.
        batch_size: Rows a batch, one of the executor's.
        num_runs: Batches to time at most, from 1; fewer, but 6, where that takes over a second.
        warmup_runs: As for `time_calls`.
        said: As for `example_rows`.
    """
    chunk = example_rows(executor, endpoint, batch_size, said) or batch_size
    key = sample_key(0)
    return time_calls(
        lambda: next(executor.map(endpoint, [chunk], key=key)),
        num_runs,
        warmup_runs=warmup_runs,
        max_seconds=_MAX_LATENCY_SECONDS,
    )


def measure_throughput(
    executor: Executor,
    endpoint: str,
    batch_size: int,
    *,
    min_seconds: float = 0.12,
    num_rounds: int = 20,
    batch_seconds: float | None = None,
    said: Mapping[str, Any] | None = None,
) -> Throughput:
    """Times streams of batches, from host rows to host results.

    Args:
        executor: Runs them, with as many executions under way as it has.
        endpoint: Name of the endpoint.
        batch_size: Rows a batch, one of the executor's.
        min_seconds: About how long a round lasts at least; at least two batches for each execution under
            way.
        num_rounds: Rounds at most, from 1; fewer, but 6, where they take four times as long as they should.
            It takes 6 to say how reliable the median is.
        batch_seconds: What one batch alone takes, where that is known.
        said: As for `example_rows`.
    """
    if batch_seconds is None:
        batch_seconds = measure_latency(executor, endpoint, batch_size, 1, said=said).median
    run, num_rows = batch_stream(
        executor, endpoint, batch_size, min_seconds=min_seconds, batch_seconds=batch_seconds, said=said
    )
    limit = 4 * num_rounds * min_seconds
    rounds = time_calls(run, num_rounds, warmup_runs=0, settle_seconds=0, max_seconds=limit)
    return Throughput(num_rows, rounds)


def batch_stream(
    executor: Executor,
    endpoint: str,
    batch_size: int,
    *,
    min_seconds: float,
    batch_seconds: float,
    said: Mapping[str, Any] | None = None,
) -> tuple[Callable[[], NDArray[Any]], int]:
    """A function that runs what `measure_throughput` times, and the number of its rows.

    Its arguments are those of `measure_throughput`.
    """
    specs = executor.spec(endpoint)[0]
    at_once = executor.parallel_executions
    num_batches = max(math.ceil(at_once * min_seconds / batch_seconds), 2 * executor.executions_in_flight)
    row_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs.values())
    num_different = min(num_batches, max(_POOL_BYTES // max(row_bytes * batch_size, 1), 1))
    pool = example_rows(executor, endpoint, num_different * batch_size, said)
    batches = [
        {name: rows[start : start + batch_size] for name, rows in pool.items()} or batch_size
        for start in range(0, num_different * batch_size, batch_size)
    ]
    key = sample_key(0)

    def run() -> NDArray[Any]:
        chunks = itertools.islice(itertools.cycle(batches), num_batches)
        for outputs in executor.map(endpoint, chunks, key=key):
            last = outputs
        return next(iter(last.values()))

    return run, num_batches * batch_size


def example_rows(
    executor: Executor, endpoint: str, num_rows: int, said: Mapping[str, Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Valid host rows of an endpoint: random inputs, and those that are made of fields.

    Args:
        executor: Has the endpoint.
        endpoint: Its name.
        num_rows: How many.
        said: Fields that do not take their default.

    Returns:
        Arrays [rows, ...] by name.
    """
    made, specs = executor.endpoints[endpoint], executor.spec(endpoint)[0]
    rows = random_rows({name: specs[name] for name in made.given}, num_rows)
    if made.says is None:
        return rows
    fields = Said(made.says, checked_fields(endpoint, made.says.fields, said or {}, num_rows))
    return {**rows, **fields.rows(0, num_rows)}


def random_rows(specs: Mapping[str, TensorSpec], num_rows: int) -> dict[str, NDArray[Any]]:
    """Valid host rows of any endpoint's inputs, the same each time.

    Returns:
        Arrays [rows, ...] by name: defaults where there are any, else numbers from 0 to 1 for floating-point
        inputs, any integers of a range that is stated, and zeros for others.
    """
    generator = np.random.default_rng(0)
    rows: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        shape = (num_rows, *spec.shape)
        if spec.default is not None:
            rows[name] = np.full(shape, spec.default, spec.dtype)
        elif jnp.issubdtype(spec.dtype, jnp.floating):
            rows[name] = generator.random(shape, np.float32).astype(spec.dtype)
        elif spec.minimum is not None or spec.maximum is not None:
            rows[name] = generator.integers(*spec.limits, shape, spec.dtype, endpoint=True)
        else:
            rows[name] = np.zeros(shape, spec.dtype)
    return rows
