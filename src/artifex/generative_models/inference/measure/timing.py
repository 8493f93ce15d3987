"""Times of calls, and whether they tell anything."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

MAX_NOISE = 0.05
MIN_RUNS = 6  # with fewer there is no 95 % interval of the median
_WINDOW = 5  # calls
_RESOLUTION = time.get_clock_info("perf_counter").resolution
_MAX_MORE_WARMUP_RUNS = 50


@dataclass(frozen=True)
class Timing:
    """Seconds of calls that were timed one by one.

    Args:
        seconds: Of each call, in order.
        first_seconds: Of the very first call, which compiles what is not compiled yet.
        warmup_runs: How many calls were made between the first one and those timed.
    """

    seconds: Float[ndarray, " runs"]
    first_seconds: float
    warmup_runs: int

    @property
    def median(self) -> float:
        """Seconds of the median call."""
        return float(np.median(self.seconds))

    def percentile(self, percent: float) -> float:
        """Seconds below which so many percent of the calls stayed."""
        return float(np.percentile(self.seconds, percent))

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % confidence interval of the median, in seconds, whatever the distribution.

        Its ends are two of the times in order of length, those of rank (n ∓ 1.96 √n) / 2.

        References:
            Hoefler and Belli, *Scientific Benchmarking of Parallel Computing Systems*, 2015, section 3.1.3.
            https://doi.org/10.1145/2807591.2807644
        """
        ordered = np.sort(self.seconds)
        low = max(math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2) - 1, 0)
        return float(ordered[low]), float(ordered[-1 - low])

    @property
    def noise(self) -> float:
        """How far off the median may be, relative to itself.

        Half the width of its confidence interval or, where that is more, half the difference of the medians
        of the first and the second half of the calls: a machine that drifts is not seen by the interval,
        which takes calls for independent.
        """
        low, high = self.interval
        early, late = np.array_split(self.seconds, 2)
        drift = abs(float(np.median(early) - np.median(late))) if len(late) else 0.0
        return max(high - low, drift) / 2 / self.median

    @property
    def is_reliable(self) -> bool:
        """Whether there are 6 calls or more, and the noise is at most 5 %."""
        return len(self.seconds) >= MIN_RUNS and self.noise <= MAX_NOISE

    def as_dict(self) -> dict[str, float]:
        """As JSON takes it; `benchmark_inference` says what is what."""
        milliseconds = 1e3 * self.seconds
        return {
            "mean_ms": float(milliseconds.mean()),
            "std_ms": float(milliseconds.std()),
            "min_ms": float(milliseconds.min()),
            "max_ms": float(milliseconds.max()),
            "median_ms": 1e3 * self.median,
            **{f"p{percent}_ms": 1e3 * self.percentile(percent) for percent in (5, 95, 99)},
            "compile_ms": 1e3 * self.first_seconds,
            "num_runs": len(self.seconds),
            "warmup_runs": self.warmup_runs,
            "noise": self.noise,
            "is_reliable": self.is_reliable,
        }


def time_calls(
    fn: Callable[[], Any],
    num_runs: int,
    *,
    warmup_runs: int = 10,
    settle_seconds: float = 1.0,
    max_seconds: float = math.inf,
) -> Timing:
    """Times calls of a function one by one, each until all its results are there.

    One call comes first and apart. Then the function is warmed up: `warmup_runs` calls, and more of them
    until there are 10 and the fastest of the last 5 was not over 5 % faster than all before; but at most 50
    more, and none after `settle_seconds` of them. The garbage collector is kept out of all that.

    Args:
        fn: What to call. It returns a pytree with a JAX or NumPy array in it: nothing else tells when the
            work is done.
        num_runs: Calls to time, from 1.
        warmup_runs: Calls before them, from 0.
        settle_seconds: Time for the calls that warm up beyond `warmup_runs`.
        max_seconds: Past this time of timed calls only the first 6 are still made.

    Raises:
        InputError: A number of runs out of range.
        InputTypeError: `fn` is not callable, or returns no array.
    """
    if not callable(fn):
        raise InputTypeError(f"inference_fn: expected a function without arguments, got {fn!r}")
    check_count("num_runs", num_runs, 1)
    check_count("warmup_runs", warmup_runs, 0)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        first_seconds, _ = _timed(lambda: _checked(fn()), "the first call")
        warmed = _warm_up(fn, warmup_runs, settle_seconds)
        seconds: list[float] = []
        while len(seconds) < num_runs and (len(seconds) < MIN_RUNS or sum(seconds) < max_seconds):
            seconds.append(_timed(fn, f"run {len(seconds) + 1} of {num_runs}")[0])
    finally:
        if collects:
            gc.enable()
    return Timing(np.array(seconds), first_seconds, warmed)


def check_count(name: str, value: int, minimum: int) -> None:
    """Raises `InputError` where an argument is too small, `InputTypeError` where it is no integer."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InputTypeError(f"{name}: expected an integer, got {value!r}")
    if value < minimum:
        raise InputError(f"{name}: expected at least {minimum}, got {value}")


def _warm_up(fn: Callable[[], Any], warmup_runs: int, settle_seconds: float) -> int:
    """Calls a function until it gets no faster; returns how many calls that were."""
    seconds: list[float] = []
    while len(seconds) < warmup_runs or (
        not _is_stable(seconds)
        and len(seconds) < warmup_runs + _MAX_MORE_WARMUP_RUNS
        and sum(seconds[warmup_runs:]) < settle_seconds
    ):
        seconds.append(_timed(fn, f"warm-up run {len(seconds) + 1}")[0])
    return len(seconds)


def _is_stable(seconds: list[float]) -> bool:
    earlier, last = seconds[:-_WINDOW], seconds[-_WINDOW:]
    return len(earlier) >= _WINDOW and min(last) > (1 - MAX_NOISE) * min(earlier)


def _timed(fn: Callable[[], Any], when: str) -> tuple[float, Any]:
    """Seconds of a call until its results are there, and the results: dropping them is not timed."""
    try:
        start = time.perf_counter()
        result = jax.block_until_ready(fn())
        return max(time.perf_counter() - start, _RESOLUTION), result
    except Exception as error:  # whatever it is, it is raised again with a note
        error.add_note(f"raised in {when}")
        raise


def _checked(result: Any) -> Any:
    if isinstance(result, Iterator) or not any(
        isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(result)
    ):
        text = repr(result)
        raise InputTypeError(
            "inference_fn: expected it to return a JAX or NumPy array, or a pytree with one, since nothing "
            f"else tells when the work is done; got {text if len(text) <= 60 else type(result).__name__}"
        )
    return result
