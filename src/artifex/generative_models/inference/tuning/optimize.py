"""The fastest way to run an endpoint on this machine, found by measuring."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Endpoint, Model, sample_key
from artifex.generative_models.core.errors import CacheError, InputError, OutOfDeviceMemoryError
from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.executor.executor import (
    Executor,
    cpu_options,
    forget_executors,
    is_out_of_memory,
    powers_up_to,
)
from artifex.generative_models.inference.executor.settings import Setting, Tuned, save_tuned
from artifex.generative_models.inference.measure.throughput import (
    batch_stream,
    measure_latency,
    measure_throughput,
    random_rows,
)
from artifex.generative_models.inference.measure.timing import check_count
from artifex.generative_models.inference.tuning.search import Candidate, Space, search

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_GLANCE_SECONDS = 0.05
_GLANCES = 3
_TURN_SECONDS = 0.1
_TURNS = 7
_FINALISTS = 5
_AS_FAST = 0.98  # a smaller batch that reaches this share of the highest rate is as good, and answers sooner


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
            "executions_in_flight": self.candidate.executions_in_flight,
            "compile_ms": 1e3 * self.compile_seconds,
            "memory_bytes": self.memory_bytes,
            "latency_ms": 1e3 * self.latency_seconds,
            "rows_per_second": self.rows_per_second,
            "rows_per_second_low": min(self.rates),
            "rows_per_second_high": max(self.rates),
        }


@dataclass(frozen=True)
class DtypeTrial:
    """What computing in another dtype would give; tuning never chooses it, since it changes results.

    Args:
        dtype: Its name.
        rows_per_second: At the chosen setting.
        max_difference: The largest absolute difference of an output from the model's own dtype, over one
            batch of random rows.
    """

    dtype: str
    rows_per_second: float
    max_difference: float


@dataclass(frozen=True)
class TuningReport:
    """What `tune` found.

    Args:
        endpoint: Name of the endpoint.
        device_kind: As JAX names it.
        jaxlib: Its version.
        trials: All that was measured, by batch size.
        chosen: The best of them.
        dtypes: Other dtypes at the chosen setting.
        too_large: The smallest batch size that was left out, since it needs more memory than there is, if
            any was.
        seconds: That tuning took.
        not_stored: Why the result is not kept for later; None where it is.
    """

    endpoint: str
    device_kind: str
    jaxlib: str
    trials: tuple[Trial, ...]
    chosen: Trial
    dtypes: tuple[DtypeTrial, ...]
    too_large: int | None
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
            "dtypes": [asdict(trial) for trial in self.dtypes],
            "too_large": self.too_large,
            "seconds": self.seconds,
            "not_stored": self.not_stored,
        }


def tune(
    model: Model | Any,
    endpoint: str = "generate",
    *,
    endpoints: Mapping[str, Endpoint] | None = None,
    batch_sizes: Sequence[int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike | None = None,
    dtypes: Sequence[DTypeLike] = ("bfloat16",),
    max_memory: int | None = None,
    exhaustive: bool = False,
    store: bool = True,
    progress: Callable[[Trial], None] | None = None,
) -> TuningReport:
    """Finds the batch size and the way to compile and overlap batches that give the most rows a second.

    Executors made from then on use the result, in this process and in later ones, for models of the same
    shapes on the same kind of device and version of jaxlib. `search` says what is tried, in which order, and
    when that ends; the best few are then measured again in turns. Among those that are as fast within 2 %
    the smallest batch is chosen.

    Args:
        model: As for `Executor`.
        endpoint: Name of the endpoint; its options stay at their defaults.
        endpoints: As for `Executor`.
        batch_sizes: Rows a batch to choose from; None is the powers of two up to 256.
        mesh: As for `Executor`.
        dtype: As for `Executor`.
        dtypes: Floating-point dtypes whose speed and differences to report beside it.
        max_memory: Bytes of each device that batches may take; None is what is free. A batch size whose
            executions the compiler says need more is never run.
        exhaustive: Whether to try every combination instead.
        store: Whether to keep the result.
        progress: Called with each trial.

    Raises:
        InputError: An unknown endpoint; no batch size, or one below 1.
        OutOfDeviceMemoryError: There is no memory for even the smallest batch size.
    """
    start = time.perf_counter()
    bench = _Bench(model, endpoint, endpoints, mesh, dtype, max_memory, progress)
    space = bench.space(powers_up_to(256) if batch_sizes is None else batch_sizes)
    with _frozen_heap():
        if exhaustive:
            for candidate in space:
                bench.measure(candidate)
        else:
            search(space, bench.measure)
        if not bench.trials:
            raise OutOfDeviceMemoryError(
                f"{endpoint}: no memory for a batch of {space.batch_sizes[0]}, the smallest of all"
            )
        chosen = bench.best()
        others = tuple(bench.measure_dtype(chosen.candidate, other) for other in dtypes)
    report = TuningReport(
        endpoint,
        DeviceManager().default_device.device_kind,
        version("jaxlib"),
        tuple(sorted(bench.trials.values(), key=lambda trial: trial.candidate.batch_size)),
        chosen,
        others,
        bench.too_large,
        time.perf_counter() - start,
        None if store else "not asked for",
    )
    if store:
        try:
            save_tuned(bench.executor(chosen.candidate).tuning_name(endpoint), report.tuned)
        except CacheError as error:
            return replace(report, not_stored=str(error))
        if isinstance(model, Model):
            forget_executors(model)
    return report


def optimize_batch_size(
    model: Model,
    max_batch_size: int = 256,
    step: int = 16,
    *,
    endpoint: str = "generate",
    max_memory: int | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> int:
    """The batch size of the most rows a second among `step`, 2 `step`, … up to `max_batch_size`.

    Nothing is kept; `tune` keeps what it finds.

    Args:
        model: A model with endpoints.
        max_batch_size: The largest to consider, from 1.
        step: Distance between those considered, from 1.
        endpoint: Name of the endpoint.
        max_memory: As for `tune`.
        progress: As for `tune`.

    Raises:
        InputError: A number below 1, a step above the maximum, or an unknown endpoint.
        OutOfDeviceMemoryError: There is no memory for even `step` rows.
    """
    check_count("max_batch_size", max_batch_size, 1)
    check_count("step", step, 1)
    if step > max_batch_size:
        raise InputError(f"step: expected at most max_batch_size, {max_batch_size}, got {step}")
    report = tune(
        model,
        endpoint,
        batch_sizes=range(step, max_batch_size + 1, step),
        dtypes=(),
        max_memory=max_memory,
        store=False,
        progress=progress,
    )
    return report.chosen.candidate.batch_size


class _Bench:
    """Measures candidates for one endpoint, and keeps the trials."""

    def __init__(
        self,
        model: Any,
        endpoint: str,
        endpoints: Mapping[str, Endpoint] | None,
        mesh: jax.sharding.Mesh | None,
        dtype: DTypeLike | None,
        max_memory: int | None,
        progress: Callable[[Trial], None] | None,
    ):
        self._model = model
        self._endpoint = endpoint
        self._endpoints = endpoints
        self._mesh = mesh
        self._dtype = dtype
        self._max_memory = max_memory
        self._progress = progress
        self._executors: dict[tuple[int, Setting, DTypeLike | None], Executor] = {}
        self.trials: dict[Candidate, Trial] = {}
        self.too_large: int | None = None

    def space(self, batch_sizes: Sequence[int]) -> Space:
        """What may be tried on the devices at hand."""
        for size in batch_sizes:
            check_count("batch_sizes", size, 1)
        plain = Executor(
            self._model,
            self._endpoints,
            mesh=self._mesh,
            batch_sizes=batch_sizes,
            dtype=self._dtype,
            tuned=False,
        )
        plain.spec(self._endpoint)  # raises where there is none
        usual = plain.executions_in_flight
        on_cpu = DeviceManager().default_device.platform == "cpu"
        return Space(
            plain.batch_sizes,
            fusion=(False, True) if on_cpu and cpu_options() else (False,),
            executions_in_flight=(usual, *(count for count in range(usual + 1, 0, -1) if count != usual)),
        )

    def executor(self, candidate: Candidate, dtype: DTypeLike | None = None) -> Executor:
        """Runs a candidate and no other batch size; compiled once for any number of executions in flight."""
        size, setting = candidate.batch_size, candidate.setting
        tuned = {self._endpoint: Tuned(size, candidate.executions_in_flight, {size: setting})}
        identity = size, setting, dtype
        if identity not in self._executors:
            self._executors[identity] = Executor(
                self._model,
                self._endpoints,
                mesh=self._mesh,
                batch_sizes=(size,),
                dtype=dtype or self._dtype,
                tuned=tuned,
            )
        self._executors[identity].tuned = tuned
        return self._executors[identity]

    def measure(self, candidate: Candidate) -> float | None:
        """Rows a second of a candidate at a glance; None where it does not fit the device."""
        size = candidate.batch_size
        executor = self.executor(candidate)
        try:
            compile_seconds = executor.warmup([self._endpoint])[self._endpoint][size]
            cost = executor.cost(self._endpoint, size)
            memory = self._memory(candidate, cost)
            latency = measure_latency(executor, self._endpoint, size, 10, warmup_runs=1).median
            rates = self._rates(executor, candidate, latency)
        except (OutOfDeviceMemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.too_large = size if self.too_large is None else min(size, self.too_large)
            return None
        trial = Trial(candidate, compile_seconds, cost, memory, latency, rates)
        self.trials[candidate] = trial
        if self._progress is not None:
            self._progress(trial)
        return trial.rows_per_second

    def best(self) -> Trial:
        """Measures the fastest few again, in turns, and chooses one."""
        fastest: dict[tuple[int, Setting], Candidate] = {}  # with the best number of executions in flight
        for trial in sorted(self.trials.values(), key=lambda trial: -trial.rows_per_second):
            candidate = trial.candidate
            fastest.setdefault((candidate.batch_size, candidate.setting), candidate)
        finalists = list(fastest.values())[:_FINALISTS]
        rates: dict[Candidate, list[float]] = {candidate: [] for candidate in finalists}
        streams = {
            candidate: batch_stream(
                self.executor(candidate),
                self._endpoint,
                candidate.batch_size,
                min_seconds=_TURN_SECONDS,
                batch_seconds=self.trials[candidate].latency_seconds,
            )
            for candidate in finalists
        }
        for _ in range(_TURNS):
            for candidate, (run, num_rows) in streams.items():
                self.executor(candidate)  # with its number of executions in flight
                start = time.perf_counter()
                run()
                rates[candidate].append(num_rows / (time.perf_counter() - start))
        for candidate in finalists:
            self.trials[candidate] = replace(self.trials[candidate], rates=tuple(rates[candidate]))
        again = [self.trials[candidate] for candidate in finalists]
        highest = max(trial.rows_per_second for trial in again)
        as_fast = [trial for trial in again if trial.rows_per_second >= _AS_FAST * highest]
        return min(as_fast, key=lambda trial: (trial.candidate.batch_size, -trial.rows_per_second))

    def measure_dtype(self, candidate: Candidate, dtype: DTypeLike) -> DtypeTrial:
        """Speed and differences of a candidate in another dtype."""
        own, other = self.executor(candidate), self.executor(candidate, dtype)
        rates = self._rates(other, candidate, self.trials[candidate].latency_seconds)
        rows = random_rows(own.spec(self._endpoint)[0], candidate.batch_size)
        results = [
            executor(self._endpoint, rows, key=sample_key(0), num_rows=candidate.batch_size)
            for executor in (own, other)
        ]
        differences = [
            np.max(
                np.abs(np.asarray(value, np.float64) - np.asarray(results[1][name], np.float64)), initial=0
            )
            for name, value in results[0].items()
        ]
        return DtypeTrial(str(jnp.dtype(dtype)), float(np.median(rates)), float(max(differences)))

    def _memory(self, candidate: Candidate, cost: Cost) -> int:
        """Bytes that a candidate's executions need by the compiler's account, if so many are free."""
        needed = (cost.memory_bytes - cost.weight_bytes) * candidate.executions_in_flight
        free = DeviceManager().free_memory() if self._max_memory is None else self._max_memory
        if free is not None and needed > free:
            raise OutOfDeviceMemoryError(
                f"{self._endpoint}: {candidate.batch_size} rows need {needed:,} bytes, and {free:,} are free"
            )
        return needed

    def _rates(self, executor: Executor, candidate: Candidate, batch_seconds: float) -> tuple[float, ...]:
        """Rows a second of a few short rounds: enough to drop what is clearly slower."""
        throughput = measure_throughput(
            executor,
            self._endpoint,
            candidate.batch_size,
            min_seconds=_GLANCE_SECONDS,
            num_rounds=_GLANCES,
            batch_seconds=batch_seconds,
        )
        return tuple(throughput.rows / seconds for seconds in throughput.rounds.seconds)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Leaves what lives already out of garbage collections, which each measurement starts with."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
