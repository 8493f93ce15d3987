"""What an executor runs: the programs of a model with the parts that it has now."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.endpoint import Endpoint, are_alike, asked, endpoints_of
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.sampling.loop import Loop
from artifex.generative_models.inference.executor.catalog import Catalog
from artifex.generative_models.inference.executor.jobs import Inputs, Job, checked
from artifex.generative_models.inference.executor.kept import KeptPrograms
from artifex.generative_models.inference.executor.overlap import Runner
from artifex.generative_models.inference.executor.placement import Placement, num_cores
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.settings import (
    Tuned,
    load_tuned,
    sizes_to_compile,
    tuning_name,
)
from artifex.generative_models.inference.executor.slot_batch import parts_for
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_MOST_ROWS = 2**31 - 1  # that int32 counts


class Current:
    """Opens a model, and opens it anew once parts of it were replaced.

    Arguments and errors are those of the executor; `place` is where its arrays go.
    """

    def __init__(
        self,
        model: Any,
        endpoints: Mapping[str, Endpoint] | None,
        place: Placement,
        dtype: DTypeLike | None,
        *,
        batch_sizes: Sequence[int] | None,
        tuned: bool | Mapping[str, Tuned],
        kept: KeptPrograms | None,
    ):
        self._endpoints_of = endpoints_of if endpoints is None else lambda _, given=endpoints: given
        self._place, self._dtype = place, dtype
        self._asked_batch_sizes, self._asked_tuned = _checked(batch_sizes), tuned
        self._changing = threading.Lock()
        endpoints = self._endpoints_of(model)
        wrong = [name for name, made in endpoints.items() if not isinstance(made, Endpoint)]
        if wrong:
            raise InputTypeError(f"endpoints: {', '.join(wrong)}: expected Endpoint(fn, inputs)")
        self._open(endpoints, Weights(model, place, dtype), kept)

    @property
    def catalog(self) -> Catalog:
        """The programs of the model as it is."""
        return self.opened if self.opened.weights.are_current else self._reopened()

    def check(
        self,
        endpoint: str,
        options: Mapping[str, Hashable],
        inputs: Inputs | None,
        num_rows: int | None,
        given: Mapping[str, Any],
    ) -> Job:
        """Checks a call that is to run later; `recheck` sees, for a batch, whether parts were replaced."""

        def checked_by(catalog: Catalog) -> Job:
            program = catalog.find(endpoint, options, inputs, num_rows)
            return checked(program, catalog.weights, inputs, num_rows, **given)

        before = self.opened
        try:
            return checked_by(before)
        except InputError:
            if (present := self.catalog) is before:
                raise
            return checked_by(present)

    def recheck(self, job: Job) -> Job:
        """A checked call, for the model with the parts that it has now."""
        catalog = self.catalog
        if job.model is catalog.weights:
            return job
        inputs = {name: rows[: job.num_rows] for name, rows in job.inputs.items()}  # without padding
        program = catalog.find(job.program.name, job.program.options, inputs)
        return checked(program, catalog.weights, inputs, job.num_rows, keys=job.keys, late=job.late)

    def warm(
        self, endpoint: str, sizes: Sequence[int] | None, image_dtype: DTypeLike | None
    ) -> dict[int, float]:
        """Compiles an endpoint, as `Executor.warmup` says; the seconds that each batch size took."""
        catalog = self.catalog
        forms = catalog.forms(endpoint, {})
        if len(forms) > 1 and image_dtype is not None:
            forms = [forms[np.dtype(image_dtype) == np.uint8]]
        seconds = {}
        for size in sorted(forms[0].batch_sizes if sizes is None else sizes):
            start = time.perf_counter()
            missing = [program for program in forms if size not in program.executables]
            fitting = [program for program in missing if self.runner.prepare(program, size, catalog.weights)]
            if missing and not fitting:
                break
            seconds[size] = time.perf_counter() - start if missing else 0.0
        return seconds

    def prepare_slots(self, program: Program, width: int, ready: Sequence[int]) -> bool:
        """Compiles slots of a width, as `Executor.prepare_slots` says.

        Raises:
            OutOfDeviceMemoryError: Not even the smallest does.
        """
        sizes = program.batch_sizes
        if width not in sizes:
            return False
        beside = [
            *[size for size in ready if size < width][-1:],
            *[size for size in ready if size > width][:1],
        ]
        try:
            for size, part in parts_for(width, sizes[0], beside):
                made: Any = self.opened.part(program, size, *part)
                if part == ("steps",):
                    self.runner.check_memory(program, width, made.memory_analysis())
        except jax.errors.JaxRuntimeError as error:
            self.runner.halve(program, width, error)
            return False
        return True

    def remade(self, batch_sizes: Sequence[int] | None, tuned: bool | Mapping[str, Tuned]) -> Current:
        """The same model and the same weights in other batches."""
        catalog = self.catalog
        made = copy.copy(self)
        made._asked_batch_sizes, made._asked_tuned = _checked(batch_sizes), tuned
        made._changing = threading.Lock()
        made._open(catalog.endpoints, catalog.weights)
        return made

    def follow(self, build: Callable[[list[Any]], Any]) -> Any:
        """Builds an NNX module of the flat weights, and reads them from it from now on."""
        given = self.opened.endpoints
        self._endpoints_of = lambda model: {
            name: replace(made, fn=model.endpoints()[name].fn)
            if isinstance(made.fn, Loop)  # those of now build the module of weights that are flat
            else asked(name, made)
            for name, made in given.items()
        }
        return self.opened.weights.follow(build)

    def tuning_name(self, endpoint: Endpoint, weights: Weights) -> str:
        """Name of the cache entry that keeps what tuning found out about an endpoint."""
        return tuning_name(
            endpoint,
            weights.avals(),
            dtype=self._dtype,
            devices=self._place.devices,
            cores=num_cores(),
        )

    def _open(
        self, endpoints: Mapping[str, Endpoint], weights: Weights, kept: KeptPrograms | None = None
    ) -> None:
        tuned = self._asked_tuned
        if tuned is True:
            stored = {name: load_tuned(self.tuning_name(made, weights)) for name, made in endpoints.items()}
            tuned = {name: found for name, found in stored.items() if found is not None}
        self.tuned = dict(tuned or {})
        batch_sizes = {
            name: sizes_to_compile(self._asked_batch_sizes, self.tuned.get(name), self._place.num_shards)
            for name in endpoints
        }
        # No part knows this one back: without a cycle, weights of gigabytes go with the last name for it.
        self.opened = Catalog(dict(endpoints), batch_sizes, self.tuned, weights, kept)
        self.runner = Runner(self._place, self.opened.executable, self.tuned)

    def _reopened(self) -> Catalog:
        with self._changing:
            old = self.opened
            model = old.weights.model
            if model is not None and not old.weights.are_current:
                weights = Weights(model, self._place, self._dtype)
                weights.reuse(old.weights)
                endpoints = self._endpoints_of(model)
                if weights.signature() == old.weights.signature() and are_alike(endpoints, old.endpoints):
                    old.weights.swap(weights)
                else:
                    self._open(endpoints, weights)
            return self.opened


def _checked(batch_sizes: Sequence[int] | None) -> Sequence[int] | None:
    if batch_sizes is None:
        return None
    whole = all(isinstance(size, int | np.integer) and not isinstance(size, bool) for size in batch_sizes)
    if not batch_sizes or not whole or min(batch_sizes) < 1:
        raise InputError(f"batch_sizes: expected positive row counts, got {tuple(batch_sizes)}")
    if max(batch_sizes) > _MOST_ROWS:
        raise InputError(f"batch_sizes: expected at most {_MOST_ROWS:,} rows, got {max(batch_sizes):,}")
    return batch_sizes
