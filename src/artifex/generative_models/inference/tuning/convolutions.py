"""Which forms of convolutions are the fastest, one shape at a time, and how far they are off together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.convolutions import (
    PLAIN,
    ConvShape,
    filters_of,
    formed,
    forms_for,
)
from artifex.generative_models.inference.executor.settings import Forms

MAX_ERROR = 1e-4  # of a whole network, over the deviation of what it gives
_TURNS = 5
_TURN_SECONDS = 0.004
_FASTER = 0.95  # of the plain form's time, which another form must stay under to be taken
# Of the filters, that are used in turns, as those of a network's other layers push them out of caches.
_COPIES, _COPIES_BYTES = 8, 64 << 20


@dataclass(frozen=True)
class Work:
    """How an executor runs a network with the layers.

    Args:
        at_once: Executions that compute at the same time.
        keeps_filters: Whether filters are made once for many calls of a layer, outside a loop.
    """

    at_once: int
    keeps_filters: bool


def fastest_forms(shapes: Iterable[ConvShape], sizes: Iterable[int], work: Work) -> dict[int, Forms]:
    """The forms that take the least time, by batch size; layers whose plain form does are left out.

    Args:
        shapes: Of the layers.
        sizes: Rows of a batch. A form that does not pay for many is not tried for fewer.
        work: How they are run.
    """
    found = {}
    left = sorted(shapes)
    for size in sorted(sizes, reverse=True):
        times = {shape: _times(shape, size, work) for shape in left}
        best = {shape: min(seconds, key=seconds.__getitem__) for shape, seconds in times.items()}
        pays = {s: form for s, form in best.items() if times[s][form] < _FASTER * times[s][PLAIN]}
        if not pays:
            break
        found[size] = tuple(pays.items())
        left = [*pays]
    return found


def largest_error(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest error of any output's rows, over the deviation of the output; infinite for a NaN."""
    errors = []
    for name, value in wanted.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            continue
        wide, other = np.asarray(value, np.float32), np.asarray(found[name], np.float32)
        deviation = float(wide.std())
        error = float(np.abs(other - wide).max(initial=0))
        errors.append(error / deviation if deviation else error)
    return max((error if error == error else np.inf for error in errors), default=0.0)


def _times(shape: ConvShape, num_rows: int, work: Work) -> dict[int, float]:
    """Seconds that each form takes, all in turns."""
    random = np.random.default_rng(0)
    scale = 1 + shape.doubles
    pictures = (num_rows, shape.height // scale, shape.width // scale, shape.in_features)
    x = jnp.asarray(random.standard_normal(pictures, np.float32))
    kernel = jnp.asarray(random.standard_normal((3, 3, *shape[2:4]), np.float32))
    with ThreadPoolExecutor(work.at_once) as pool:
        calls = {form: _call(shape, form, x, kernel, work, pool) for form in forms_for(shape)}
        once = {form: _seconds(call) for form, call in calls.items()}
        counts = {form: max(1, round(_TURN_SECONDS / seconds)) for form, seconds in once.items()}
        times: dict[int, list[float]] = {form: [] for form in calls}
        for _ in range(_TURNS):
            for form, call in calls.items():
                times[form].append(_seconds(call, counts[form]))
    return {form: statistics.median(seconds) for form, seconds in times.items()}


def _call(
    shape: ConvShape, form: int, x: jax.Array, kernel: jax.Array, work: Work, pool: ThreadPoolExecutor
) -> Callable[[], None]:
    """Runs a layer so often at once as an executor would, with each copy of the filters in turn."""
    is_made = form == PLAIN or not work.keeps_filters
    filters = kernel if is_made else filters_of(kernel, shape.doubles, form)

    def run(x: jax.Array, filters: jax.Array) -> jax.Array:
        made = filters_of(filters, shape.doubles, form) if is_made and form != PLAIN else filters
        return formed(x, made, shape.doubles, form)

    executable = jax.jit(run).lower(x, filters).compile()
    largest = kernel.nbytes * 4  # F(4×4) makes 36 numbers of 9; each form has as many copies
    num_copies = max(1, min(_COPIES, _COPIES_BYTES // largest))
    copies = [filters.copy() for _ in range(num_copies)]

    def all_copies(_: int) -> None:
        for copy in copies:
            jax.block_until_ready(executable(x, copy))

    def call() -> None:
        for _ in pool.map(all_copies, range(work.at_once)):
            pass

    call()
    return call


def _seconds(call: Callable[[], None], count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
