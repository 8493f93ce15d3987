"""The executor's rows while they are on the host: checked, cut, padded and merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.endpoint import TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike
    from jaxtyping import Array

    from artifex.generative_models.inference.executor.executor import Program

MAX_ROWS = 2**32 - 1  # row numbers are uint32; the last one marks a row that brings its own key
OWN_KEY = np.uint32(MAX_ROWS)


@dataclass(slots=True)
class Job:
    """The checked rows of one call, or of one chunk of a stream."""

    program: Program
    num_rows: int
    inputs: dict[str, Any]
    key_data: np.ndarray | None  # [words], or [rows, words] where rows bring their own keys
    first_row: int | np.ndarray  # number of the first row, or of each
    is_finite: bool = False  # whether its inputs were looked through already

    @property
    def num_bytes(self) -> int:
        """Bytes that its inputs and outputs take on the host."""
        return self.num_rows * self.program.bytes_per_row

    def arguments(self, start: int, stop: int, size: int) -> list[Any]:
        """What the executable takes after the weights: a slice, padded to a batch size."""
        inputs = [self._input(name, start, stop, size) for name in self.program.endpoint.inputs]
        return [*self.identity(start, stop, size), *inputs] if self.program.needs_keys else inputs

    def identity(self, start: int, stop: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The words of each row's key, and the row's number; padded to a batch size."""
        return identities([(self, start, stop)], size)

    def _input(self, name: str, start: int, stop: int, size: int) -> Any:
        array = self.inputs[name]
        if isinstance(array, jax.Array):
            if stop - start == size == self.num_rows:
                return array
            array = np.asarray(array)
        rows = array[start : start + size]  # those past `stop`, if any, serve as padding
        return padded(rows, size, self.program.endpoint.inputs[name].dtype)

    def check_finite(self, start: int, stop: int) -> None:
        """Looks through rows for NaNs and infinities."""
        for name, array in self.inputs.items():
            if isinstance(array, jax.Array) and not self.program.on_cpu:
                continue  # looking would wait for it to come back from the accelerator
            part = array[start:stop] if isinstance(array, np.ndarray) else np.asarray(array)[start:stop]
            if part.dtype.kind not in "iub" and np.count_nonzero(finite := np.isfinite(part)) < part.size:
                first = self.first_row if isinstance(self.first_row, int) else 0
                row = first + start + int(np.argmin(finite.reshape(len(part), -1).all(axis=1)))
                raise InputError(f"{self.program.name}: {name}: row {row} has a NaN or infinite value")


Part = tuple[Job, int, int]  # rows from a start to a stop of a job


def joined(name: str, spec: TensorSpec, parts: Sequence[Part], missing: int) -> np.ndarray:
    """An input's rows from several calls, and so many of zeros."""
    slices = [job.inputs[name][start:stop] for job, start, stop in parts]
    if missing:
        slices.append(np.zeros((missing, *spec.shape), spec.dtype))
    if len(slices) == 1:
        return slices[0]
    # Unlike NumPy's ways to copy, joining small buffers keeps the interpreter's lock: to give it up for each
    # row to a thread that waits for it costs more than the copy.
    buffers = slices if np.dtype(spec.dtype).isbuiltin == 1 else [rows.view(np.uint8) for rows in slices]
    return np.frombuffer(b"".join(buffers), spec.dtype).reshape(-1, *spec.shape)


def identities(parts: Sequence[Part], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The words of the keys of several calls' rows, and the rows' numbers; zeros up to a size."""
    keys = np.zeros((size, parts[0][0].program.key_words), np.uint32)
    numbers = np.zeros(size, np.uint32)
    first = 0
    for job, start, stop in parts:
        assert job.key_data is not None
        last = first + stop - start
        own_keys = job.key_data.ndim == 2
        keys[first:last] = job.key_data[start:stop] if own_keys else job.key_data
        if isinstance(job.first_row, np.ndarray):
            numbers[first:last] = job.first_row[start:stop]
        elif own_keys:
            numbers[first:last] = OWN_KEY
        else:
            numbers[first:last] = np.arange(job.first_row + start, job.first_row + stop)
        first = last
    return keys, numbers


@dataclass(slots=True)
class Piece:
    """Rows `start` to `stop`, to run as one batch of `size` rows, and where their outputs go."""

    job: Job
    start: int
    stop: int
    size: int
    outputs: dict[str, np.ndarray]

    def write(self, results: Mapping[str, Array]) -> None:
        """Waits for a batch's results and copies them to where they go."""
        for name, output in self.outputs.items():
            output[self.start : self.stop] = np.asarray(results[name])[: self.stop - self.start]


def padded(rows: np.ndarray, size: int, dtype: DTypeLike) -> np.ndarray:
    """Rows of a dtype, with zeros up to a batch size."""
    if len(rows) == size:
        return np.asarray(rows, dtype)
    padded = np.zeros((size, *rows.shape[1:]), dtype)
    padded[: len(rows)] = rows
    return padded


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that JAX's CPU backend can take over without a copy: aligned to 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def checked_array(endpoint: str, name: str, spec: TensorSpec, value: ArrayLike) -> Any:
    """An input as a NumPy or JAX array of the specified shape and kind of dtype."""
    array = value if isinstance(value, (np.ndarray, jax.Array)) else np.asarray(value)
    shape = array.shape
    if (
        shape[1:] == spec.shape
        and shape
        and (array.dtype == spec.dtype or _same_kind(array.dtype, spec.dtype))
    ):
        return array
    axes = "".join(f", {size}" for size in spec.shape)
    wanted = f"{endpoint}: {name}: expected {np.dtype(spec.dtype).name} [rows{axes}]"
    if not _same_kind(array.dtype, spec.dtype):
        remedy = "; scale pictures first: an InferencePipeline does" if array.dtype == np.uint8 else ""
        raise InputTypeError(f"{wanted}, got {array.dtype}{remedy}")
    remedy = "; add a batch axis: x[None]" if shape == spec.shape else ""
    raise InputError(f"{wanted}, got shape {shape}{remedy}")


def checked_scalar(endpoint: str, name: str, spec: TensorSpec, value: Any) -> float:
    """One finite number that stands for all rows."""
    dtype = np.dtype(spec.dtype)
    if type(value) is float and dtype.kind == "f" and math.isfinite(value):
        return value
    number = np.asarray(value)
    if not (_same_kind(number.dtype, dtype) or (number.dtype.kind in "iu" and dtype.kind == "f")):
        raise InputTypeError(f"{endpoint}: {name}: expected {dtype.name}, got {value!r}")
    if not np.isfinite(number):
        raise InputError(f"{endpoint}: {name}: expected a finite number, got {value!r}")
    return number.item()


def _same_kind(given: DTypeLike, wanted: DTypeLike) -> bool:
    return given == wanted or any(
        jnp.issubdtype(given, kind) and jnp.issubdtype(wanted, kind)
        for kind in (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    )
