"""The programs of one model, by endpoint, options and the dtype of pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from artifex.generative_models.core.endpoint import Endpoint, changed_options
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.numerics import numerics
from artifex.generative_models.inference.executor.kept import KeptPrograms
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.settings import Tuned
from artifex.generative_models.inference.executor.stepping import Stepped
from artifex.generative_models.inference.executor.weights import Weights

_UINT8 = np.dtype(np.uint8)

# Endpoint, the options that were changed, and the pictures that come as uint8.
_Identity = tuple[str, tuple[tuple[str, Hashable], ...], tuple[str, ...]]


@dataclass(eq=False)
class Catalog:
    """Makes each program when it is first asked for."""

    endpoints: Mapping[str, Endpoint]
    batch_sizes: Mapping[str, tuple[int, ...]]  # of each endpoint, ascending
    _tuned: Mapping[str, Tuned]  # what tuning found out, by endpoint
    weights: Weights  # the model's
    _kept: KeptPrograms | None  # what earlier processes found out
    compile_count: int = 0  # executables, so far
    _programs: dict[_Identity, Program] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numerics: Mapping[str, Any] = field(default_factory=numerics)  # those of now, for programs of later

    def __post_init__(self) -> None:
        self._pictures = {
            name: tuple(n for n, spec in endpoint.inputs.items() if spec.image_range is not None)
            for name, endpoint in self.endpoints.items()
        }
        self._sized = {name for name, endpoint in self.endpoints.items() if endpoint.is_sized}

    def find(
        self,
        endpoint: str,
        options: Mapping[str, Hashable],
        inputs: Mapping[str, Any] | None = None,
        num_rows: int | None = None,
    ) -> Program:
        """The program for what a caller gives; of the inputs, pictures may be uint8, and shapes say sizes.

        Where no inputs tell how many rows there are, `num_rows` does, if that is known.

        Raises:
            InputError: An unknown endpoint or option.
            InputTypeError: An option that is not hashable.
        """
        if inputs and endpoint in self._sized:
            options = {**self.endpoints[endpoint].sized(inputs), **options}
        pictures = self._pictures.get(endpoint)
        if pictures and inputs:
            uint8 = tuple([n for n in pictures if getattr(inputs.get(n), "dtype", None) == _UINT8])
            return self._program(endpoint, options, uint8, _num_rows(inputs) or num_rows)
        return self._program(endpoint, options, (), _num_rows(inputs) or num_rows)

    def forms(self, endpoint: str, options: Mapping[str, Hashable]) -> list[Program]:
        """An endpoint for pictures in the model's dtype and, where it takes them, for uint8 ones.

        Arguments and errors are those of `find`.
        """
        pictures = self._pictures.get(endpoint)
        return [self._program(endpoint, options, uint8) for uint8 in ([(), pictures] if pictures else [()])]

    def executable(self, program: Program, size: int, weights: Weights | None = None) -> jax.stages.Compiled:
        """A program's executable of a batch size, compiled where it is missing (for other weights too)."""
        ready = program.executables.get(size)
        return ready or program.executable(size, weights or self.weights, self._count)

    def part(self, program: Program, size: int, kind: str, *numbers: int) -> Callable[..., Any]:
        """A part of a loop for a batch size, as `Program.part` takes it, compiled where it is missing.

        Raises:
            InputError: It is no loop.
        """
        return program.part(size, kind, *numbers, weights=self.weights, compiled=self._count)

    def stepped(self, program: Program, size: int) -> Stepped:
        """A loop from its start to its end in a batch size.

        Raises:
            InputError: It is no loop.
        """
        return Stepped(*[self.part(program, size, kind) for kind in ("start", "steps", "look")])

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """Those of all endpoints, ascending."""
        return tuple(sorted(set().union(*self.batch_sizes.values())))

    def known(self, batch_sizes: Iterable[int]) -> list[int]:
        """Batch sizes that some endpoint has.

        Raises:
            InputError: One that none has.
        """
        sizes = list(batch_sizes)
        unknown = set(sizes) - set(self.all_batch_sizes)
        if unknown:
            raise InputError(f"batch_sizes: {sorted(unknown)} are not among {self.all_batch_sizes}")
        return sizes

    def _count(self) -> None:
        with self._lock:
            self.compile_count += 1

    def share(self, other: Catalog) -> None:
        """Takes over the programs of another model's catalog, which fit."""
        self._programs, self._lock = other._programs, other._lock
        if self._kept is not None and other._kept is not None:
            self._kept.take_over(other._kept)

    def _program(
        self,
        endpoint: str,
        options: Mapping[str, Hashable],
        uint8: tuple[str, ...],
        num_rows: int | None = None,
    ) -> Program:
        identity: _Identity = (endpoint, self._changed(endpoint, options) if options else (), uint8)
        return self._programs.get(identity) or self._new(identity, num_rows)

    def _changed(self, endpoint: str, options: Mapping[str, Hashable]) -> tuple[tuple[str, Hashable], ...]:
        known = self.endpoints[endpoint].options if endpoint in self.endpoints else {}
        for name, value in options.items():
            if name not in known:
                raise InputError(
                    f"{endpoint}: unknown option {name!r}; it takes {', '.join(known) or 'none'}"
                )
            if not isinstance(value, Hashable):
                raise InputTypeError(f"{endpoint}: option {name}: expected something hashable, got {value!r}")
            known[name].check(endpoint, name, value)
        return changed_options(known, options)

    def _new(self, identity: _Identity, num_rows: int | None) -> Program:
        name, options, uint8 = identity
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            raise InputError(f"no endpoint {name!r}; there are {', '.join(self.endpoints)}")
        settings = self._tuned[name].settings if name in self._tuned else {}
        kept = None if self._kept is None else self._kept.program(name, dict(options), settings, uint8)
        with self._lock:
            if identity not in self._programs:
                alike = [made for made in self._programs if made[:2] == identity[:2]]
                self._programs[identity] = Program(
                    name,
                    endpoint,
                    dict(options),
                    uint8,
                    self.weights,
                    batch_sizes=self.batch_sizes[name],
                    settings=settings,
                    numerics=self._numerics,
                    kept=kept,
                    num_rows=num_rows,
                    trace=self._programs[alike[0]].trace if alike else None,
                )
            return self._programs[identity]


def _num_rows(inputs: Mapping[str, Any] | None) -> int | None:
    """How many rows inputs have, as the first says that is no number for all of them."""
    shapes = (getattr(value, "shape", ()) for value in (inputs or {}).values())
    return next((shape[0] for shape in shapes if shape), None)
