"""How fast every endpoint of a model runs here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from artifex import __version__
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.settings import powers_up_to
from artifex.generative_models.inference.measure.roofline import (
    Ceilings,
    Roofline,
    machine_ceilings,
    roofline,
)
from artifex.generative_models.inference.measure.throughput import (
    Throughput,
    measure_latency,
    measure_throughput,
)
from artifex.generative_models.inference.measure.timing import Timing, check_count

_log = logging.getLogger("artifex")


@dataclass(frozen=True)
class BenchmarkRow:
    """One endpoint at one batch size.

    Args:
        endpoint: Its name.
        batch_size: Rows a batch.
        compile_seconds: That compiling took; 0 where it was compiled before.
        latency: Of one batch alone, from host rows to host results.
        throughput: Of many batches.
        cost: Of one batch, on each device, by the compiler's account.
        roofline: How the throughput stands to the machine's ceilings.
    """

    endpoint: str
    batch_size: int
    compile_seconds: float
    latency: Timing
    throughput: Throughput
    cost: Cost
    roofline: Roofline

    @property
    def noise(self) -> float:
        """That of the latency or of the throughput, whichever is larger."""
        return max(self.latency.noise, self.throughput.rounds.noise)

    @property
    def is_reliable(self) -> bool:
        """Whether latency and throughput both are."""
        return self.latency.is_reliable and self.throughput.rounds.is_reliable

    @property
    def attainable_rows_per_second(self) -> float | None:
        """What the ceilings allow; None where the compiler tells no cost."""
        share = self.roofline.share_of_roofline
        return self.throughput.rows_per_second / share if share else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        low, high = self.throughput.interval
        rows = self.batch_size
        return {
            "endpoint": self.endpoint,
            "batch_size": rows,
            "compile_ms": 1e3 * self.compile_seconds,
            "latency": {k: v for k, v in self.latency.as_dict().items() if k != "compile_ms"},
            "rows_per_second": self.throughput.rows_per_second,
            "rows_per_second_low": low,
            "rows_per_second_high": high,
            "noise": self.noise,
            "is_reliable": self.is_reliable,
            "flops": self.cost.flops,
            "bytes_accessed": self.cost.bytes_accessed,
            "memory_bytes": self.cost.memory_bytes,
            "share_of_matmul": self.roofline.share_of_matmul,
            "share_of_roofline": self.roofline.share_of_roofline,
            "attainable_rows_per_second": self.attainable_rows_per_second,
        }


@dataclass(frozen=True)
class ModelBenchmark:
    """What `benchmark_model` found.

    Args:
        rows: Endpoint by endpoint, batch sizes from small to large.
        ceilings: Of one device.
        device_kind: As JAX names it.
        num_devices: Over how many devices a batch was spread.
        versions: Of the packages that decide the speed.
    """

    rows: tuple[BenchmarkRow, ...]
    ceilings: Ceilings
    device_kind: str
    num_devices: int
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "device_kind": self.device_kind,
            "num_devices": self.num_devices,
            "versions": dict(self.versions),
            "ceilings": asdict(self.ceilings),
            "rows": [row.as_dict() for row in self.rows],
        }


def benchmark_model(
    model: Model | Executor,
    *,
    endpoints: Iterable[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    num_runs: int = 100,
    ceilings: Ceilings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelBenchmark:
    """Measures every endpoint of a model at every batch size, on random rows.

    Args:
        model: A model with endpoints, or an executor: what is compiled there is not compiled again.
        endpoints: Their names; None is all.
        batch_sizes: Rows a batch, each from 1, and among an executor's own; None is all of its own, or the
            powers of two up to 64. Those that do not fit the device are left out, with a warning logged.
        num_runs: Single batches to time at most, from 1; fewer, but 6, where that takes over a second.
        ceilings: Of the machine; None measures them before and after the model, and takes the higher ones.
        progress: Called with what comes next, how many measurements are done, and of how many.

    Raises:
        InputError: An unknown endpoint, a number out of range, or a batch size that the executor lacks.
        OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
    """
    check_count("num_runs", num_runs, 1)
    for size in batch_sizes or ():
        check_count("batch_sizes", size, 1)
    if isinstance(model, Executor):
        executor, wanted = model, batch_sizes
    else:
        executor, wanted = Executor(model, batch_sizes=batch_sizes or powers_up_to(64)), None
    names = list(dict.fromkeys(executor.endpoints if endpoints is None else endpoints))
    for name in names:
        executor.spec(name)
    report = progress or (lambda what, done, total: None)
    total = len(names) * len(executor.batch_sizes)
    report("ceilings", 0, total)
    before = ceilings or machine_ceilings()
    cases: list[tuple[str, int, float]] = []
    for name in names:
        report(f"compiling {name}", 0, total)
        compiled = executor.warmup([name])[name]
        sizes = sorted(set(wanted or compiled))
        if unknown := [size for size in sizes if size not in compiled]:
            raise InputError(f"{name}: batch_sizes: {unknown} are not among the executor's {tuple(compiled)}")
        cases += [(name, size, compiled[size]) for size in sizes]
    measured = []
    for done, (name, size, compile_seconds) in enumerate(cases):
        report(f"{name}, {size} row{'' if size == 1 else 's'}", done, len(cases))
        latency = measure_latency(executor, name, size, num_runs)
        throughput = measure_throughput(executor, name, size, batch_seconds=latency.median)
        if size in executor.warmup([name])[name]:
            measured.append((name, size, compile_seconds, latency, throughput))
        else:
            _log.warning("%s: %d rows do not fit the device's memory and are left out", name, size)
    report("ceilings", len(cases), len(cases))
    ceilings = ceilings or before.highest(machine_ceilings())
    return ModelBenchmark(
        tuple(_row(executor, ceilings, *figures) for figures in measured),
        ceilings,
        DeviceManager().default_device.device_kind,
        1 if executor.mesh is None else executor.mesh.size,
        {"artifex": __version__, **{name: version(name) for name in ("jax", "jaxlib", "flax")}},
    )


def _row(
    executor: Executor,
    ceilings: Ceilings,
    endpoint: str,
    batch_size: int,
    compile_seconds: float,
    latency: Timing,
    throughput: Throughput,
) -> BenchmarkRow:
    cost = executor.cost(endpoint, batch_size)
    # Several CPU devices are one machine's cores under several names, and the ceilings are the machine's.
    on_cpu = DeviceManager().default_device.platform == "cpu"
    num_devices = executor.mesh.size if executor.mesh is not None and on_cpu else 1
    whole = Cost(cost.flops * num_devices, cost.bytes_accessed * num_devices, cost.memory_bytes)
    limits = roofline(whole, batch_size / throughput.rows_per_second, ceilings)
    return BenchmarkRow(endpoint, batch_size, compile_seconds, latency, throughput, cost, limits)
