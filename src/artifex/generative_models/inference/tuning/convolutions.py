"""Which forms of convolutions are the fastest, one shape at a time, and how far they are off together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from jax.typing import DTypeLike

MAX_ERROR = 1e-4  # of a whole network, over the deviation of what it gives
_TURNS = 9
_TURN_SECONDS = 0.004
_FASTER = 0.97  # of the plain form's time, which another form must stay under to be taken


def fastest_forms(shapes: Iterable[ConvShape], num_rows: int, dtype: DTypeLike) -> dict[ConvShape, int]:
    """The form of each shape that takes the least time; shapes for which that is the plain one are left out.

    Args:
        shapes: Of the layers.
        num_rows: Rows of a batch.
        dtype: Of the pictures and the kernels.
    """
    found = {}
    for shape in sorted(shapes):
        times = _times(shape, num_rows, dtype)
        form = min(times, key=lambda form: times[form])
        if form != PLAIN and times[form] < _FASTER * times[PLAIN]:
            found[shape] = form
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


def _times(shape: ConvShape, num_rows: int, dtype: DTypeLike) -> dict[int, float]:
    """Seconds that each form takes, all in turns."""
    random = np.random.default_rng(0)
    scale = 1 + shape.doubles
    pictures = (num_rows, shape.height // scale, shape.width // scale, shape.in_features)
    x = jnp.asarray(random.standard_normal(pictures, np.float32), dtype)
    kernel = jnp.asarray(random.standard_normal((3, 3, *shape[2:4]), np.float32), dtype)
    calls: dict[int, Callable[[], Any]] = {}
    for form in forms_for(shape):
        filters = kernel if form == PLAIN else filters_of(kernel, shape.doubles, form)
        calls[form] = _compiled(shape, form, x, filters)
    once = {form: _seconds(call) for form, call in calls.items()}
    counts = {form: max(1, round(_TURN_SECONDS / seconds)) for form, seconds in once.items()}
    times: dict[int, list[float]] = {form: [] for form in calls}
    for _ in range(_TURNS):
        for form, call in calls.items():
            times[form].append(_seconds(call, counts[form]))
    return {form: statistics.median(seconds) for form, seconds in times.items()}


def _compiled(shape: ConvShape, form: int, x: jax.Array, filters: jax.Array) -> Callable[[], jax.Array]:
    def run(x: jax.Array, filters: jax.Array) -> jax.Array:
        return formed(x, filters, shape.doubles, form)

    executable = jax.jit(run).lower(x, filters).compile()
    jax.block_until_ready(executable(x, filters))
    return lambda: executable(x, filters)


def _seconds(call: Callable[[], Any], count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / count
