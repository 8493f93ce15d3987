"""Pieces of jobs, run on the device: several at once, and in smaller ones where its memory is too small.

Several executions are in flight, each from a thread of one pool shared by all executors of the process.
XLA's CPU backend leaves cores idle otherwise; an accelerator waits for a thread to copy rows to memory that
it can read from, and three threads copy twice as much as one. On a mesh, whose devices must all run the
same executions in the same order, one thread dispatches the next piece while results of the last are copied
back.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import OutOfDeviceMemoryError
from artifex.generative_models.inference.executor.jobs import Job, Piece
from artifex.generative_models.inference.executor.placement import Placement
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.settings import Tuned
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Array

_log = logging.getLogger("artifex")

_FEW_BYTES = 1 << 20  # that are copied from an accelerator faster than anyone can ask for them
_AHEAD_BYTES = 64 << 20  # of inputs and outputs that are under way, beside one group of pieces

# Devices that exchange parts of weights or activations must all run the same executions in the same order.
_dispatching = threading.Lock()


class Runner:
    """Runs pieces of jobs.

    Args:
        place: Where rows and weights lie.
        executable: Gives a program's executable of a batch size, for weights.
        tuned: What tuning found out, by endpoint.
    """

    def __init__(
        self,
        place: Placement,
        executable: Callable[[Program, int, Weights], jax.stages.Compiled],
        tuned: Mapping[str, Tuned],
    ):
        self.threaded = len(place.devices) == 1
        self._place = place
        self._executable = executable
        self._tuned = tuned
        if place.on_cpu:
            _keep_freed_memory()

    @property
    def parallel_executions(self) -> int:
        """How many executions compute at the same time."""
        return self._place.parallel_executions if self.threaded else 1

    @property
    def executions_in_flight(self) -> int:
        """How many to have under way, unless tuning found a better number: those that compute, and copies.

        On an accelerator one batch is copied there and one from there while one is computed.
        """
        return self.parallel_executions + (1 if self._place.on_cpu or not self.threaded else 2)

    def _in_flight(self, program: Program) -> int:
        tuned = self._tuned.get(program.name)
        return self.executions_in_flight if tuned is None else tuned.executions_in_flight

    def dispatch(self, job: Job, start: int, stop: int, size: int, *, stay: bool = False) -> dict[str, Array]:
        """Starts rows of a job, with its weights, as one batch; returns outputs before they are computed.

        They are copied to the host as soon as they are, those of many bytes only if they are not to `stay`.

        Raises:
            InputError: A value that is not finite.
            JaxRuntimeError: The device's memory is too small, or whatever else went wrong there.
        """
        executable = job.program.executables.get(size) or self._fitting(job.program, size, job.model)
        arguments = job.arguments(start, stop, size)
        if self._place.spans_processes:
            arguments = [self._place.put_rows(argument) for argument in arguments]
        with self.dispatching():
            results = executable(*job.weights, *arguments)
        if self._place.on_cpu and not job.is_finite:
            job.check_finite(start, stop)  # while the device computes; a bad row spoils no other
        if self._place.spans_processes:
            results = {name: self._place.take_rows(result) for name, result in results.items()}
        if not self._place.on_cpu:
            for result in results.values():
                if not stay or result.nbytes <= _FEW_BYTES:
                    result.copy_to_host_async()
        return results

    def dispatching(self) -> AbstractContextManager[Any]:
        """What to hold while an execution is dispatched."""
        return _dispatching if self._place.cuts_weights else nullcontext()

    def prepare(self, program: Program, size: int, weights: Weights) -> bool:
        """Compiles a batch size; whether it fits the device, and so is among the program's after it.

        Raises:
            OutOfDeviceMemoryError: Not even the smallest fits.
        """
        if size > program.max_batch_size:
            return False
        try:
            self._fitting(program, size, weights)
        except jax.errors.JaxRuntimeError as error:
            self.halve(program, size, error)
            return False
        return True

    def _fitting(self, program: Program, size: int, weights: Weights) -> jax.stages.Compiled:
        """A new executable, whose memory was checked."""
        executable = self._executable(program, size, weights)
        self.check_memory(program, size, executable.memory_analysis())
        return executable

    def check_memory(self, program: Program, size: int, memory: Any) -> None:
        """Refuses a batch size as the device would if its memory is too small by the compiler's account.

        The smallest is always tried: what is free may be more by then.

        Raises:
            JaxRuntimeError: It does not fit.
        """
        if memory is not None and size > program.batch_sizes[0] and not self._place.spans_processes:
            rows = size // self._place.num_shards * program.bytes_per_row
            in_flight, free = self._in_flight(program), DeviceManager().free_memory()
            state = memory.alias_size_in_bytes  # what is donated: of a loop in slots, held throughout
            needed = in_flight * (memory.temp_size_in_bytes + state + rows)
            if free is not None and needed > free:
                raise jax.errors.JaxRuntimeError(
                    f"RESOURCE_EXHAUSTED: {in_flight} batches of {size} rows take {needed / 1e9:.2f} GB, "
                    f"and {free / 1e9:.2f} GB are free"
                )

    def run(self, job: Job) -> dict[str, np.ndarray]:
        """The outputs of a job of any length, on the host."""
        outputs = job.allocate()
        for _ in self._flow(job.pieces(outputs)):
            pass
        return outputs

    def outputs(self, pieces: Iterable[Piece]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of each job whose last piece has run, in order."""
        return (piece.outputs for piece in self._flow(pieces) if piece.is_last)

    def complete(self, pieces: Iterable[Piece]) -> None:
        """Runs pieces to the end, one after another, in smaller ones where they no longer fit the device."""
        for piece in pieces:
            if piece.size <= piece.job.program.max_batch_size:
                try:
                    piece.write(self.dispatch(piece.job, piece.start, piece.stop, piece.size))
                    continue
                except jax.errors.JaxRuntimeError as error:
                    self.halve(piece.job.program, piece.size, error)
            self.complete(piece.job.pieces(piece.outputs, piece.start, piece.stop))

    def halve(self, program: Program, size: int, error: jax.errors.JaxRuntimeError) -> None:
        """Remembers that a batch size does not fit the device; raises any other failure as it is.

        Raises:
            OutOfDeviceMemoryError: There is no smaller one, or other processes would go on with this one.
        """
        if not is_out_of_memory(error):
            raise error
        smaller = [s for s in program.batch_sizes if s < size]
        if self._place.spans_processes:
            raise OutOfDeviceMemoryError(
                f"{program.name}: out of device memory at {size} rows; give all processes a smaller batch"
            ) from error
        if not smaller:
            raise OutOfDeviceMemoryError(
                f"{program.name}: out of device memory at {size} rows, the smallest batch size"
            ) from error
        half = max((s for s in smaller if s <= size // 2), default=smaller[0])
        if half < program.max_batch_size:
            _log.warning("%s: batches of at most %d rows from now on: %s", program.name, half, error)
        program.batch_sizes = tuple(s for s in program.batch_sizes if s <= half)

    def _flow(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Runs pieces, several at once, and yields them in order when their outputs are on the host."""
        pieces = iter(pieces)
        head = list(itertools.islice(pieces, 2))
        if not head:
            return
        if len(head) == 1:  # nothing to overlap with, so no thread is worth waking
            self.complete(head)
            yield head[0]
            return
        pieces = itertools.chain(head, pieces)
        in_flight = self._in_flight(head[0].job.program)
        if self.threaded:
            submit = _pool(in_flight).submit
            started = ((group, submit(self.complete, group)) for group in _groups(pieces, in_flight))
            yield from _in_order(started, depth=2 * in_flight)
        else:
            yield from _in_order((([piece], _Dispatched(self, piece)) for piece in pieces), in_flight - 1)


class _Dispatched:
    """A piece under way on a backend that runs asynchronously."""

    def __init__(self, runner: Runner, piece: Piece):
        self._runner = runner
        self._piece = piece
        self._results: dict[str, Array] | None = None
        if piece.size <= piece.job.program.max_batch_size:
            try:
                self._results = runner.dispatch(piece.job, piece.start, piece.stop, piece.size)
            except jax.errors.JaxRuntimeError as error:
                runner.halve(piece.job.program, piece.size, error)
                self._results = None

    def result(self) -> None:
        """Waits, and copies the outputs to the host."""
        if self._results is not None:
            try:
                self._piece.write(self._results)
                return
            except jax.errors.JaxRuntimeError as error:
                self._runner.halve(self._piece.job.program, self._piece.size, error)
        self._runner.complete([self._piece])

    def cancel(self) -> None:
        """What is dispatched runs to its end; nobody waits for it."""


def _in_order(started: Iterator[tuple[list[Piece], Any]], depth: int) -> Iterator[Piece]:
    """Waits for pieces under way, each time for those that were started first when there are over `depth`.

    There are fewer where their rows take more than `_AHEAD_BYTES`. Where whoever gives the pieces fails,
    those before come first.
    """
    window: deque[tuple[list[Piece], Any]] = deque()
    held = 0
    failure: Exception | None = None
    try:
        while True:
            try:
                item = next(started)
            except StopIteration:
                break
            except Exception as error:  # whatever it is, it waits for its turn
                failure = error
                break
            window.append(item)
            held += _num_bytes(item[0])
            while len(window) > depth or (len(window) > 1 and held > _AHEAD_BYTES):
                held -= _num_bytes(window[0][0])
                yield from _finished(window)
        while window:
            yield from _finished(window)
        if failure is not None:
            raise failure
    finally:
        failure = None  # which has this frame in its traceback
        for _, waiting in window:
            waiting.cancel()


def _finished(window: deque[tuple[list[Piece], Any]]) -> list[Piece]:
    pieces, under_way = window.popleft()
    under_way.result()
    return pieces


def _num_bytes(pieces: Iterable[Piece]) -> int:
    return sum(piece.size * piece.job.program.bytes_per_row for piece in pieces)


def _groups(pieces: Iterator[Piece], in_flight: int) -> Iterator[list[Piece]]:
    """Pieces for one thread to run in a row: few at first, so that all start, then enough to pay a hop.

    They are fewer where `_AHEAD_BYTES` would not hold a group for each thread.
    """
    for size in itertools.chain(*([n] * in_flight for n in (1, 2, 4)), itertools.repeat(8)):
        group: list[Piece] = []
        try:
            for piece in itertools.islice(pieces, size):
                group.append(piece)
                if _num_bytes(group) * in_flight > _AHEAD_BYTES:
                    break
        except Exception:  # of whoever gives the pieces: those before it run first
            if group:
                yield group
            raise
        if not group:
            return
        yield group


@functools.cache
def _pool(in_flight: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(in_flight, thread_name_prefix="artifex")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory is too small."""
    return isinstance(error, OutOfDeviceMemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@functools.cache
def _keep_freed_memory() -> None:
    """Makes the C library hold on to the temporary buffers that executions free.

    GNU's gives large blocks back to the system and has the next execution fault every page in anew, until
    it has once seen a block of such a size freed: then it keeps all up to that size, 32 MiB at most. Without
    this a batch of 64 pictures alone takes twice as long.
    """
    np.empty(31 << 20, np.uint8)
