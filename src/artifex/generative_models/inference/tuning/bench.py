"""Candidates for one endpoint, measured: each at a glance, and the best again in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import OutOfDeviceMemoryError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.core.sampling.loop import Loop
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.overlap import is_out_of_memory
from artifex.generative_models.inference.executor.program import cpu_options
from artifex.generative_models.inference.executor.settings import (
    Forms,
    Setting,
    Tuned,
    powers_up_to,
)
from artifex.generative_models.inference.measure.throughput import (
    batch_stream,
    example_rows,
    measure_latency,
    measure_throughput,
)
from artifex.generative_models.inference.measure.timing import check_count
from artifex.generative_models.inference.tuning.convolutions import (
    MAX_ERROR,
    Work,
    fastest_forms,
    largest_error,
)
from artifex.generative_models.inference.tuning.results import Trial
from artifex.generative_models.inference.tuning.search import Candidate, Space

_GLANCE_SECONDS = 0.05
_GLANCES = 3
_TURN_SECONDS = 0.1
_TURNS = 7
_SLOW_SECONDS = 0.1  # of a batch, from which on one run averages over what disturbs others
_SLOW_TURNS = 3
_STEPS = 10  # of a loop
_FINALISTS = 5
_AS_FAST = 0.98  # a smaller batch that reaches this share of the highest rate is as good, and answers sooner
_SURELY = 0.95  # and this share in all turns but one


@dataclass
class Bench:
    """Measures candidates for one endpoint, and keeps the trials."""

    endpoint: str
    make: Callable[..., Executor]  # makes executors of the model, given what candidates differ in
    max_memory: int | None
    progress: Callable[[Trial], None] | None
    executors: dict[tuple[int, Setting], Executor] = field(default_factory=dict)
    trials: dict[Candidate, Trial] = field(default_factory=dict)
    too_large: int | None = None
    batch_sizes: Sequence[int] = ()  # that come into question, ascending
    said: dict[str, int] = field(default_factory=dict)  # fields that do not take their default

    def space(self, batch_sizes: Sequence[int]) -> Space:
        """What may be tried on the devices at hand."""
        for size in batch_sizes:
            check_count("batch_sizes", size, 1)
        plain = self.make(batch_sizes=batch_sizes, tuned=False)
        plain.spec(self.endpoint)  # raises where there is none
        says = plain.endpoints[self.endpoint].says
        steps = None if says is None else says.fields.get("num_steps")
        if steps is not None and isinstance(steps.default, int):
            few = max(_STEPS, math.ceil(steps.minimum or 0))
            self.said["num_steps"] = min(few, steps.default)
        usual = plain.executions_in_flight
        self.batch_sizes = plain.batch_sizes
        on_cpu = DeviceManager().default_device.platform == "cpu"
        return Space(
            plain.batch_sizes,
            fusion=(False, True) if on_cpu and cpu_options() else (False,),
            executions_in_flight=(usual, *(count for count in range(usual + 1, 0, -1) if count != usual)),
        )

    def executor(self, candidate: Candidate) -> Executor:
        """Runs a candidate and no other batch size; compiled once for any number of executions in flight."""
        size, setting = candidate.batch_size, candidate.setting
        tuned = {self.endpoint: Tuned(size, candidate.executions_in_flight, {size: setting})}
        if (size, setting) not in self.executors:
            self.executors[size, setting] = self.make(batch_sizes=(size,), tuned=tuned)
        self.executors[size, setting].tuned.update(tuned)
        return self.executors[size, setting]

    def measure(self, candidate: Candidate) -> float | None:
        """Rows a second of a candidate at a glance; None where it does not fit the device."""
        size = candidate.batch_size
        executor = self.executor(candidate)
        try:
            compile_seconds = executor.warmup([self.endpoint])[self.endpoint][size]
            cost = executor.cost(self.endpoint, size)
            memory = (cost.memory_bytes - cost.weight_bytes) * candidate.executions_in_flight
            free = DeviceManager().free_memory() if self.max_memory is None else self.max_memory
            if free is not None and memory > free:
                raise OutOfDeviceMemoryError(f"{size} rows need {memory:,} bytes, and {free:,} are free")
            latency = measure_latency(executor, self.endpoint, size, 1, warmup_runs=1, said=self.said).median
            if latency < _SLOW_SECONDS:
                latency = measure_latency(
                    executor, self.endpoint, size, 10, warmup_runs=0, said=self.said
                ).median
            glance = measure_throughput(
                executor,
                self.endpoint,
                size,
                min_seconds=_GLANCE_SECONDS,
                num_rounds=_GLANCES if latency < _SLOW_SECONDS else 1,
                batch_seconds=latency,
                said=self.said,
            )
        except (OutOfDeviceMemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.too_large = size if self.too_large is None else min(size, self.too_large)
            return None
        rates = tuple(glance.rows / glance.rounds.seconds)
        trial = self.trials[candidate] = Trial(candidate, compile_seconds, cost, memory, latency, rates)
        if self.progress is not None:
            self.progress(trial)
        return trial.rows_per_second

    def best(self) -> Trial:
        """Measures the fastest few again, in turns, and chooses one.

        A glance may be wrong by a quarter on a machine that others use: what is chosen has beaten its
        neighbours in turns.
        """
        fastest: dict[tuple[int, Setting], Candidate] = {}  # with the best number of executions in flight
        for trial in sorted(self.trials.values(), key=lambda trial: -trial.rows_per_second):
            candidate = trial.candidate
            fastest.setdefault((candidate.batch_size, candidate.setting), candidate)
        finalists = list(fastest.values())[:_FINALISTS]
        while True:
            rates = self._in_turns(finalists)
            again = [
                replace(self.trials[candidate], rates=tuple(rates[candidate])) for candidate in finalists
            ]
            self.trials.update((trial.candidate, trial) for trial in again)
            highest = max(again, key=lambda trial: trial.rows_per_second)
            missing = [other for other in self._neighbours(highest.candidate) if other not in finalists]
            finalists += [other for other in missing if self.measure(other) is not None]
            if len(finalists) == len(again):
                break
        as_fast = [trial for trial in again if _is_as_fast(trial, highest)]
        return min(as_fast, key=lambda trial: (trial.candidate.batch_size, -trial.rows_per_second))

    def convolutions(self, chosen: Trial) -> tuple[Trial, dict[int, Forms]]:
        """The fastest forms of convolutions by batch size, and the chosen trial with them.

        Their sums are rounded otherwise: forms are taken only where the whole network stays within
        `MAX_ERROR` of what it gives without, and is faster.
        """
        candidate = chosen.candidate
        executor, size = self.executor(candidate), candidate.batch_size
        if DeviceManager().default_device.platform != "cpu":
            return chosen, {}  # accelerators have libraries that choose forms themselves
        if jnp.dtype(executor.dtype or jnp.float32) != jnp.float32:
            return chosen, {}  # of which other sums are never so close
        shapes = executor.convolution_shapes(self.endpoint, size)
        work = Work(
            at_once=candidate.executions_in_flight,
            keeps_filters=isinstance(executor.endpoints[self.endpoint].fn, Loop),
        )
        fastest = fastest_forms(shapes, powers_up_to(size), work)
        if size not in fastest:
            return chosen, {}
        rows = example_rows(executor, self.endpoint, size, self.said) or size
        wanted = self._outputs(candidate, rows)
        for largest in sorted({form for _, form in fastest[size]}, reverse=True):  # most error first
            forms = {
                size: tuple((shape, min(form, largest)) for shape, form in found)
                for size, found in fastest.items()
            }
            other = replace(candidate, setting=replace(candidate.setting, convolutions=forms[size]))
            if self.measure(other) is None:
                break
            if largest_error(self._outputs(other, rows), wanted) > MAX_ERROR:
                del self.trials[other]
                continue
            rates = self._in_turns([candidate, other])
            faster = statistics.median(b / a for a, b in zip(rates[candidate], rates[other], strict=True))
            if faster * _AS_FAST < 1:
                break
            self.trials[other] = replace(self.trials[other], rates=tuple(rates[other]))
            return self.trials[other], forms
        return chosen, {}

    def _outputs(self, candidate: Candidate, rows: dict[str, Any] | int) -> dict[str, Any]:
        """What a candidate gives for rows."""
        return next(self.executor(candidate).map(self.endpoint, [rows], key=sample_key(0)))

    def _in_turns(self, finalists: Sequence[Candidate]) -> dict[Candidate, list[float]]:
        """Rows a second of each in each turn."""
        rates: dict[Candidate, list[float]] = {candidate: [] for candidate in finalists}
        streams = {
            candidate: batch_stream(
                self.executor(candidate),
                self.endpoint,
                candidate.batch_size,
                min_seconds=_TURN_SECONDS,
                batch_seconds=self.trials[candidate].latency_seconds,
                said=self.said,
            )
            for candidate in finalists
        }
        slow = min(self.trials[candidate].latency_seconds for candidate in finalists) >= _SLOW_SECONDS
        for _ in range(_SLOW_TURNS if slow else _TURNS):
            for candidate, (run, num_rows) in streams.items():
                self.executor(candidate)  # with its number of executions in flight
                start = time.perf_counter()
                run()
                rates[candidate].append(num_rows / (time.perf_counter() - start))
        return rates

    def _neighbours(self, candidate: Candidate) -> list[Candidate]:
        """The next smaller and the next larger batch, where they fit the device."""
        sizes = [size for size in self.batch_sizes if self.too_large is None or size < self.too_large]
        at = sizes.index(candidate.batch_size)
        return [
            replace(candidate, batch_size=size) for size in (*sizes[at - 1 : at], *sizes[at + 1 : at + 2])
        ]


def _is_as_fast(trial: Trial, highest: Trial) -> bool:
    """Whether one that was measured in the same turns reaches the rate of the fastest, beyond noise."""
    shares = sorted(rate / best for rate, best in zip(trial.rates, highest.rates, strict=True))
    return trial.rows_per_second >= _AS_FAST * highest.rows_per_second and shares[1] >= _SURELY
