"""Measures as users do, but in rounds so short that their figures mean nothing."""

from collections.abc import Callable
from functools import partial

from artifex.generative_models.inference.measure import endpoints, roofline
from artifex.generative_models.inference.measure.throughput import measure_throughput
from artifex.generative_models.inference.tuning import bench


def measure_briefly(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Has this process do so; pytest's `monkeypatch.setattr` ends it with the test."""
    replace(bench, "_GLANCE_SECONDS", 1e-3)
    replace(bench, "_TURN_SECONDS", 1e-3)
    replace(endpoints, "measure_throughput", partial(measure_throughput, min_seconds=1e-3, num_rounds=6))
    replace(roofline, "_ROUNDS", 1)
