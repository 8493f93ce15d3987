"""Measuring one way after another to run an endpoint."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import OutOfDeviceMemoryError
from artifex.generative_models.inference.executor.cost import Cost
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.program import cpu_options
from artifex.generative_models.inference.executor.runner import is_out_of_memory
from artifex.generative_models.inference.executor.settings import Setting, Tuned
from artifex.generative_models.inference.measure.throughput import (
    batch_stream,
    measure_latency,
    measure_throughput,
)
from artifex.generative_models.inference.measure.timing import check_count
from artifex.generative_models.inference.tuning.results import Trial
from artifex.generative_models.inference.tuning.search import Candidate, Space

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_GLANCE_SECONDS = 0.05
_GLANCES = 3
_TURN_SECONDS = 0.1
_TURNS = 7
_FINALISTS = 5
_AS_FAST = 0.98  # a smaller batch that reaches this share of the highest rate is as good, and answers sooner


class Bench:
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
        self._executors: dict[tuple[int, Setting], Executor] = {}
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

    def executor(self, candidate: Candidate) -> Executor:
        """Runs a candidate and no other batch size; compiled once for any number of executions in flight."""
        size, setting = candidate.batch_size, candidate.setting
        tuned = {self._endpoint: Tuned(size, candidate.executions_in_flight, {size: setting})}
        identity = size, setting
        if identity not in self._executors:
            self._executors[identity] = Executor(
                self._model,
                self._endpoints,
                mesh=self._mesh,
                batch_sizes=(size,),
                dtype=self._dtype,
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
def frozen_heap() -> Iterator[None]:
    """Leaves what lives already out of garbage collections, which each measurement starts with."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
