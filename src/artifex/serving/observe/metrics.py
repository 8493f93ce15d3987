"""Counters for Prometheus, read when they are asked for, so that requests pay nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from artifex.generative_models.inference.batching.stats import BatcherStats

_LABELS = ("model", "version", "cause")
_PROCESS = ProcessCollector(registry=None)

_Table = dict[str, tuple[str, Callable[[BatcherStats], float]]]
# What Triton's dashboards ask for.
_COUNTERS: _Table = {
    "nv_inference_request_success": ("Requests answered", lambda s: s.requests),
    "nv_inference_count": ("Rows computed", lambda s: s.rows),
    "nv_inference_exec_count": ("Batches run", lambda s: s.batches),
    "nv_inference_request_failure": (
        "Requests that ended with an error",
        lambda s: s.failed + s.expired + s.overloaded,
    ),
    "artifex_requests_cancelled": ("Requests that their clients gave up", lambda s: s.cancelled),
    "artifex_requests_expired": ("Requests that waited too long", lambda s: s.expired),
    "artifex_steps": ("Steps that batches took", lambda s: s.steps),
    "artifex_row_steps": ("Steps that rows of batches took", lambda s: s.row_steps),
    "artifex_requests_overloaded": ("Requests that a full queue refused", lambda s: s.overloaded),
}
# Seconds, which are microseconds there.
_DURATIONS: _Table = {
    "request": ("Time from the queue to the answer", lambda s: s.request_seconds),
    "queue": ("Time in the queue", lambda s: s.queue_seconds),
    "compute_input": ("Time to put batches together", lambda s: s.input_seconds),
    "compute_infer": ("Time to execute batches", lambda s: s.infer_seconds),
    "compute_output": ("Time to share out what batches gave", lambda s: s.output_seconds),
}
_GAUGES: _Table = {
    "nv_inference_pending_request_count": ("Requests that wait", lambda s: s.queued_requests),
    "artifex_queue_rows": ("Rows that wait", lambda s: s.queued_rows),
    "artifex_places": ("Places for rows in running batches", lambda s: s.places),
    "artifex_rows_in_flight": ("Rows that are computed now", lambda s: s.rows_in_flight),
}


_EVICTED: dict[str, Callable[[BatcherStats], float]] = {
    "cancelled": lambda s: s.cancelled_rows,
    "expired": lambda s: s.expired_rows,
    "failed": lambda s: s.failed_rows,
}


@dataclass(frozen=True)
class ModelCounters:
    """What a server counts of one model.

    Args:
        stats: What it did, by version and endpoint.
        version: The version that is loaded; None where none is.
        compile_count: Executables that were compiled for what is loaded.
    """

    name: str
    stats: Mapping[str, Mapping[str, BatcherStats]]
    version: str | None
    compile_count: int


def prometheus_text(models: Sequence[ModelCounters]) -> bytes:
    """Counters of models and of the process, as they are now, in Prometheus's text format."""
    text = generate_latest(_Counters(models))
    # It would add `_total` to the names of counters, which Triton's dashboards do not know.
    return text.replace(b" untyped\n", b" counter\n")


class _Counters(Collector):
    def __init__(self, models: Sequence[ModelCounters]):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """The counters of each endpoint of each model and version, then those of the process."""
        found = [
            ((f"{model.name}.{endpoint}", version), stats)
            for model in self._models
            for version, by_endpoint in model.stats.items()
            for endpoint, stats in by_endpoint.items()
        ]
        for name, (doc, seconds) in _DURATIONS.items():
            times = [(labels, 1e6 * seconds(stats)) for labels, stats in found]
            yield _metric(f"nv_inference_{name}_duration_us", doc, times)
        for kind, table in (("unknown", _COUNTERS), ("gauge", _GAUGES)):
            for name, (doc, value) in table.items():
                yield _metric(name, doc, [(labels, value(stats)) for labels, stats in found], kind)
        per_batch = SummaryMetricFamily("artifex_rows_per_batch", "Rows of a batch", labels=_LABELS[:2])
        for labels, stats in found:
            per_batch.add_metric(labels, count_value=stats.batches, sum_value=stats.rows)
        yield per_batch
        previews = SummaryMetricFamily(
            "artifex_first_preview_seconds", "Time from a request to its first preview", labels=_LABELS[:2]
        )
        for labels, stats in found:
            previews.add_metric(labels, count_value=stats.previewed, sum_value=stats.preview_seconds)
        yield previews
        evicted = [
            ((*labels, cause), value(stats)) for labels, stats in found for cause, value in _EVICTED.items()
        ]
        yield _metric("artifex_rows_evicted", "Rows that left a batch before they were done", evicted)
        ready = [((model.name,), float(model.version is not None)) for model in self._models]
        yield _metric("artifex_model_ready", "Whether a model is loaded", ready, "gauge")
        compiles = [
            ((model.name, model.version), float(model.compile_count))
            for model in self._models
            if model.version is not None
        ]
        yield _metric("artifex_compiles", "Executables compiled", compiles)
        yield from _PROCESS.collect()


def _metric(
    name: str, doc: str, values: Iterable[tuple[tuple[str, ...], float]], kind: str = "unknown"
) -> Metric:
    """Values by their labels; those of an unknown kind are counters."""
    metric = Metric(name, doc, kind)
    for labels, value in values:
        metric.add_sample(name, dict(zip(_LABELS, labels, strict=False)), value)
    return metric
