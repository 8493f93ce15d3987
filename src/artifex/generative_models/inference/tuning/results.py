"""What tuning measured, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.executor.settings import Forms, Setting, Tuned
from artifex.generative_models.inference.tuning.search import Candidate


@dataclass(frozen=True)
class Trial:
    """One way to run an endpoint, measured.

    Args:
        candidate: Batch size, how it is compiled, and executions in flight.
        compile_seconds: That compiling took.
        cost: Of one execution, on each device, by the compiler's account.
        memory_bytes: Device memory of all executions in flight, by the compiler's account.
        latency_seconds: Of one batch alone, from host rows to host results, the median.
        rates: Rows a second of each round of a stream of batches.
    """

    candidate: Candidate
    compile_seconds: float
    cost: Cost
    memory_bytes: int
    latency_seconds: float
    rates: tuple[float, ...]

    @property
    def rows_per_second(self) -> float:
        """Of the median round."""
        return float(np.median(self.rates))

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "batch_size": self.candidate.batch_size,
            "fusion": self.candidate.setting.fusion,
            "convolutions": _as_dicts(self.candidate.setting.convolutions),
            "executions_in_flight": self.candidate.executions_in_flight,
            "compile_ms": 1e3 * self.compile_seconds,
            "memory_bytes": self.memory_bytes,
            "latency_ms": 1e3 * self.latency_seconds,
            "rows_per_second": self.rows_per_second,
            "rows_per_second_low": min(self.rates),
            "rows_per_second_high": max(self.rates),
        }


@dataclass(frozen=True)
class TuningReport:
    """What `tune` found.

    Args:
        endpoint: Name of the endpoint.
        device_kind: As JAX names it.
        jaxlib: Its version.
        trials: All that was measured, by batch size.
        chosen: The best of them.
        too_large: The smallest batch size that was left out, since it needs more memory than there is, if
            any was.
        convolutions: Forms of 3×3 convolutions, by batch size, where others than the plain one are faster.
        seconds: That tuning took.
        not_stored: Why the result is not kept for later; None where it is.
    """

    endpoint: str
    device_kind: str
    jaxlib: str
    trials: tuple[Trial, ...]
    chosen: Trial
    too_large: int | None
    convolutions: Mapping[int, Forms]
    seconds: float
    not_stored: str | None

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other beats in both latency and throughput, by latency."""
        front: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (t.latency_seconds, -t.rows_per_second)):
            if not front or trial.rows_per_second > front[-1].rows_per_second:
                front.append(trial)
        return tuple(front)

    @property
    def tuned(self) -> Tuned:
        """What an executor takes: the chosen setting, and for smaller batches the one of least latency."""
        chosen = self.chosen.candidate
        settings = {}
        for trial in sorted(self.trials, key=lambda t: -t.latency_seconds):
            if trial.candidate.batch_size < chosen.batch_size:
                settings[trial.candidate.batch_size] = trial.candidate.setting
        settings[chosen.batch_size] = chosen.setting
        for size, forms in self.convolutions.items():
            settings[size] = replace(settings.get(size, Setting()), convolutions=forms)
        return Tuned(chosen.batch_size, chosen.executions_in_flight, settings)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        front = self.pareto
        return {
            "endpoint": self.endpoint,
            "device_kind": self.device_kind,
            "jaxlib": self.jaxlib,
            "chosen": self.chosen.as_dict(),
            "trials": [{**trial.as_dict(), "pareto": trial in front} for trial in self.trials],
            "too_large": self.too_large,
            "convolutions": {size: _as_dicts(forms) for size, forms in self.convolutions.items()},
            "seconds": self.seconds,
            "not_stored": self.not_stored,
        }


def _as_dicts(forms: Forms) -> list[dict[str, int]]:
    return [{**shape._asdict(), "form": form} for shape, form in forms]
