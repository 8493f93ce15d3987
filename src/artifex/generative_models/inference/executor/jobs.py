"""The executor's rows while they are on the host: checked, cut, padded and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.errors import InputError, InputTypeError, NonFiniteError
from artifex.generative_models.core.keys import MAX_ROWS, RowKeys, packed_keys
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.executor.program import (
    BAD_INPUT,
    FINE,
    FINITE,
    Program,
    bytes_of,
)
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike
    from jaxtyping import Array

Inputs = Mapping[str, Any]
_LOOK_BYTES = 16 << 20  # of rows that are looked through at once
_LARGEST = 65504.0  # what every floating dtype holds, but float8


@dataclass(frozen=True)
class Late:
    """Inputs that are made of rows which are about to run, so that those that wait take no memory.

    Args:
        names: Their names.
        rows: Gives those of rows from one number to another, arrays [rows, ...].
    """

    names: Collection[str]
    rows: Callable[[int, int], Mapping[str, np.ndarray]]

    def part(self, first: int) -> Late:
        """Those of the rows from a number on, which then counts from 0."""
        return Late(self.names, lambda start, stop: self.rows(first + start, first + stop))


@dataclass(slots=True)
class Job:
    """The checked rows of one call, or of one chunk of a stream.

    Args:
        program: What runs them.
        model: Whose weights it runs with.
        num_rows: How many.
        inputs: Arrays [rows, ...] by name.
        late: The inputs that are not among them yet.
        keys: What their keys are derived from; None where nothing is drawn.
        first_row: Number of the first row, for people.
        is_finite: Whether its inputs were looked through already.
        weights: The model's as they are when it runs, once it is about to.
    """

    program: Program
    model: Weights
    num_rows: int
    inputs: dict[str, Any]
    keys: RowKeys | None
    first_row: int = 0
    is_finite: bool = False
    weights: Sequence[Array] = ()
    late: Late | None = None

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row's inputs and outputs take on the host, but for inputs that are made late."""
        if self.late is None:
            return self.program.bytes_per_row
        late = sum(bytes_of(self.program.inputs[name]) for name in self.late.names)
        return self.program.bytes_per_row - late

    @property
    def num_bytes(self) -> int:
        """Bytes that its inputs and outputs take on the host."""
        return self.num_rows * self.bytes_per_row

    def part(self, start: int, stop: int) -> Job:
        """Rows `start` to `stop`."""
        inputs = {name: rows[start:stop] for name, rows in self.inputs.items()}
        keys = None if self.keys is None else self.keys.part(start, stop)
        return Job(
            self.program,
            self.model,
            stop - start,
            inputs,
            keys,
            self.first_row + start,
            self.is_finite,
            late=None if self.late is None else self.late.part(start),
        )

    def complete(self, start: int, stop: int) -> Part:
        """Rows with all their inputs, those that come late too."""
        part = self.part(start, stop)
        part.inputs |= self._made(start, stop)
        part.late = None
        return part, 0, stop - start

    def _made(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if self.late is None:
            return {}
        specs, made = self.program.inputs, self.late.rows(start, stop)
        return {name: np.ascontiguousarray(made[name], specs[name].dtype) for name in self.late.names}

    def pieces(self, outputs: dict[str, np.ndarray], start: int = 0, stop: int = 0) -> Iterator[Piece]:
        """Cuts rows into batches; the batch sizes may fall in the meantime."""
        for first, last, size in self.program.cuts(start, stop or self.num_rows):
            yield Piece(self, first, last, size, outputs)

    def allocate(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays for its outputs, all or those named."""
        specs = self.program.outputs
        return {
            name: aligned_empty((self.num_rows, *specs[name].shape), specs[name].dtype)
            for name in (specs if names is None else names)
        }

    def arguments(self, start: int, stop: int, size: int) -> list[Any]:
        """What the executable takes after the weights: a slice, padded to a batch size."""
        made = self._made(start, stop)
        inputs = [
            padded(made[name], size, spec.dtype) if name in made else self._input(name, start, stop, size)
            for name, spec in self.program.inputs.items()
        ]
        return inputs if self.keys is None else [packed_keys([(self.keys, start, stop)], size), *inputs]

    def _input(self, name: str, start: int, stop: int, size: int) -> Any:
        array = self.inputs[name]
        if isinstance(array, jax.Array):
            if stop - start == size == self.num_rows:
                return array
            array = np.asarray(array)
        rows = array[start : start + size]  # those past `stop`, if any, serve as padding
        return padded(rows, size, self.program.inputs[name].dtype)

    def take_weights(self) -> Self:
        """Takes the model's weights as they are now."""
        self.weights = self.model.placed(self.program.weights)
        return self

    def cast(self) -> Self:
        """Has its inputs in the dtypes that they are run in; what overflows is for `check_finite` to tell."""
        for name, array in self.inputs.items():
            spec = self.program.inputs[name]
            if array.dtype == spec.dtype:
                self.inputs[name] = np.ascontiguousarray(array)
            else:
                with np.errstate(over="ignore"):
                    self.inputs[name] = np.ascontiguousarray(array, spec.dtype)
        return self

    def check_finite(self, start: int, stop: int) -> None:
        """Looks through rows for NaNs and infinities.

        Raises:
            InputError: There is one; it says in which row.
        """
        for name, array in self.inputs.items():
            part = array[start:stop] if isinstance(array, np.ndarray) else np.asarray(array)[start:stop]
            dtype = np.dtype(self.program.inputs[name].dtype)
            if (bad := _first_not_finite(part, dtype)) is not None:
                row = self.first_row + start + bad
                raise InputError(
                    f"{self.program.name}: {name}: row {row} has a NaN or infinite value as {dtype.name}"
                )

    def check_results(
        self, start: int, stop: int, results: Mapping[str, Any], done: np.ndarray | None = None
    ) -> None:
        """Waits for the results of rows, and refuses NaNs, infinities, and what the endpoint does not allow.

        Args:
            start: The first row.
            stop: The row after the last.
            results: Arrays [at least rows, ...] by name.
            done: Which rows have results, bool [rows]; the others have previews. None is all.

        Raises:
            InputError: What the endpoint requires of a row does not hold; or on an accelerator, an input is
                not finite.
            NonFiniteError: There is one; it says in which row.
        """
        num_rows, when = stop - start, ""
        bad: list[int] = []
        if FINITE in results:
            codes = np.asarray(results[FINITE])[:num_rows]
            if not (fine := codes == FINE).all():
                bad.append(int(np.argmin(fine)))
                code = codes[bad[0]]
                if code == BAD_INPUT:
                    self.check_finite(start + bad[0], start + bad[0] + 1)
                when = f" at step {code}" if code >= 0 else ""
        looked_at = FINITE in results and not self.program.place.on_cpu  # by the device
        if not looked_at and not bad:
            for name in self.program.outputs:
                rows = np.asarray(results[name])[:num_rows]
                if (row := _first_not_finite(rows, rows.dtype)) is not None:
                    bad.append(row)
        if not bad:
            self._check_required(start, stop, results, done)
            return
        row = self.first_row + start + min(bad)
        raise NonFiniteError(
            f"{self.program.name}: row {row} came out NaN or infinite{when}: the model's weights, or what "
            "it was given, are at the limit of its dtype, or it divides by zero"
        )

    def _check_required(
        self, start: int, stop: int, results: Mapping[str, Any], done: np.ndarray | None
    ) -> None:
        if self.program.requires is None:
            return
        name, told = self.program.requires
        holds = np.asarray(results[name])[: stop - start]
        if done is not None:
            holds = holds | ~done
        if holds.all():
            return
        row = int(np.argmin(holds))
        outputs = self.program.outputs
        scalars = {name: np.asarray(results[name])[row] for name in outputs if not outputs[name].shape}
        raise InputError(f"{self.program.name}: row {self.first_row + start + row}: {told.format(**scalars)}")


def _first_not_finite(rows: np.ndarray, dtype: np.dtype[Any]) -> int | None:
    """The first row that has a NaN or an infinity as a dtype; a few are looked at at once."""
    if rows.dtype.kind in "iub" or not rows.size:
        return None
    at_once = max(_LOOK_BYTES // (rows.nbytes // len(rows)), 1)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        if part.dtype.itemsize > dtype.itemsize:
            with np.errstate(over="ignore"):  # such as a float64 that is infinite as a float32
                part = part.astype(dtype)
        if np.count_nonzero(finite := np.isfinite(part)) < part.size:
            return start + int(np.argmin(finite.reshape(len(part), -1).all(axis=1)))
    return None


Part = tuple[Job, int, int]  # rows from a start to a stop of a job


@dataclass(slots=True)
class Piece:
    """Rows `start` to `stop`, to run as one batch of `size` rows, and where their outputs go."""

    job: Job
    start: int
    stop: int
    size: int
    outputs: dict[str, np.ndarray]

    @property
    def is_last(self) -> bool:
        """Whether its job is done when it has run."""
        return 0 < self.stop == self.job.num_rows

    def write(self, results: Mapping[str, Array]) -> None:
        """Waits for a batch's results and copies them to where they go.

        Raises:
            NonFiniteError: One is a NaN or infinite.
        """
        self.job.check_results(self.start, self.stop, results)
        for name, output in self.outputs.items():
            output[self.start : self.stop] = np.asarray(results[name])[: self.stop - self.start]


def checked(
    program: Program,
    model: Weights,
    inputs: Inputs | None,
    num_rows: int | None,
    *,
    key: Any = None,
    keys: Any = None,
    seed: int | Sequence[int] | None = None,
    first_row: int = 0,
    late: Late | None = None,
) -> Job:
    """Checks what a caller gives and puts it into the form that pieces are cut from.

    Arguments are those of `Executor.check`; `key`, `keys` or `seed` is given where anything is drawn.

    Raises:
        InputError: An unknown or missing input, a wrong shape, unequal or too many rows, or not one key.
        InputTypeError: A wrong dtype.
    """
    name = program.name
    if first_row < 0:
        raise InputError(f"{name}: first_row: expected a row number from 0, got {first_row}")
    inputs = inputs or {}
    for input_name in inputs:
        if input_name not in program.inputs:
            raise InputError(f"{name}: unknown input {input_name!r}; it takes {', '.join(program.inputs)}")
    arrays: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    made_late = () if late is None else late.names
    for input_name, spec in program.inputs.items():
        if input_name in made_late:
            continue
        value = inputs.get(input_name, spec.default)
        if value is None:
            raise InputError(f"{name}: missing input {input_name!r}, rows of {spec.shape}")
        if spec.shape == () and np.ndim(value) == 0:
            scalars[input_name] = _checked_scalar(name, input_name, spec, value)
            continue
        array = _checked_array(name, input_name, spec, value)
        if num_rows is None:
            num_rows = len(array)
        elif num_rows != len(array):
            raise InputError(f"{name}: {input_name} has {len(array)} rows where {num_rows} were expected")
        if not isinstance(array, np.ndarray):  # on the device already, where a whole batch may stay
            as_it_is = array.shape[0] in program.batch_sizes and array.dtype == spec.dtype
            array = program.place.to_rows(array) if as_it_is else np.asarray(array)
        arrays[input_name] = array
    if num_rows is None and keys is not None:
        num_rows = keys.num_rows if isinstance(keys, RowKeys) else len(keys)
    if num_rows is None:
        raise InputError(f"{name}: pass num_rows=, since no input tells the number of rows")
    if not 1 <= num_rows <= MAX_ROWS - first_row:
        raise InputError(f"{name}: expected at least one row and at most {MAX_ROWS}, got {num_rows}")
    for input_name, number in scalars.items():
        arrays[input_name] = np.full(num_rows, number, program.inputs[input_name].dtype)
    given: RowKeys | None = None
    if program.needs_keys:
        given = row_keys(program, num_rows, key=key, keys=keys, seed=seed, first_row=first_row)
    return Job(program, model, num_rows, arrays, given, first_row, late=late)


def row_keys(
    program: Program,
    num_rows: int | None,
    *,
    key: Any = None,
    keys: Any = None,
    seed: int | Sequence[int] | None = None,
    first_row: int = 0,
) -> RowKeys:
    """The one form of what a caller gives to derive keys from; its arguments are those of `checked`."""
    if (key is not None) + (keys is not None) + (seed is not None) != 1:
        raise InputError(
            f"{program.name} draws random numbers: pass either key= or keys=; a Batcher takes seed= too"
        )
    if seed is not None:
        given = RowKeys.of_seed(seed, first_row)
    elif key is not None:
        given = RowKeys.of_key(key, first_row)
    else:
        given = keys if isinstance(keys, RowKeys) else RowKeys.of_keys(keys)
    if None not in (given.num_rows, num_rows) and given.num_rows != num_rows:
        what = "keys" if seed is None else "seeds"
        raise InputError(f"{program.name}: got {given.num_rows} {what} for {num_rows} rows")
    return given


def merged(parts: Sequence[Part]) -> Job:
    """Puts rows of several checked calls of one program together, padded to a batch size if they fit one."""
    parts = [part if part[0].late is None else part[0].complete(*part[1:]) for part in parts]
    program, model = parts[0][0].program, parts[0][0].model
    num_rows = sum([stop - start for _, start, stop in parts])
    fits = num_rows <= program.max_batch_size
    missing = program.batch_size_for(num_rows) - num_rows if fits else 0
    inputs = {name: _joined(name, spec, parts, missing) for name, spec in program.inputs.items()}
    is_finite = all(job.is_finite for job, _, _ in parts)
    first_row = parts[0][0].first_row + parts[0][1]  # which counts where there is one part
    keys = None
    if program.needs_keys:
        keyed = [(job.keys, start, stop) for job, start, stop in parts if job.keys is not None]
        keys = RowKeys(packed_keys(keyed, num_rows))
    return Job(program, model, num_rows, inputs, keys, first_row, is_finite)


def without_rows(program: Program, model: Weights, keys: RowKeys | None = None) -> Job:
    """A job without rows, to run batches of others with; `keys` are any of the job, where it draws."""
    inputs = {name: np.empty((0, *spec.shape), spec.dtype) for name, spec in program.inputs.items()}
    return Job(program, model, 0, inputs, keys, is_finite=True)


def padded(rows: np.ndarray, size: int, dtype: DTypeLike) -> np.ndarray:
    """Rows of a dtype, with zeros up to a batch size."""
    if len(rows) == size and rows.dtype == dtype:
        return rows
    padded = np.zeros((size, *rows.shape[1:]), dtype)
    with np.errstate(over="ignore"):  # what overflows is told by `Job.check_finite`
        padded[: len(rows)] = rows
    return padded


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that JAX's CPU backend can take over without a copy: aligned to 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _joined(name: str, spec: TensorSpec, parts: Iterable[Part], missing: int) -> np.ndarray:
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


def _checked_array(endpoint: str, name: str, spec: TensorSpec, value: ArrayLike) -> Any:
    """An input as a NumPy or JAX array of the specified shape and kind of dtype."""
    array = value if isinstance(value, (np.ndarray, jax.Array)) else np.asarray(value)
    shape = array.shape
    if (
        shape[1:] == spec.shape
        and shape
        and (array.dtype == spec.dtype or _same_kind(array.dtype, spec.dtype))
    ):
        _check_range(endpoint, name, spec, array)
        return array
    axes = "".join(f", {size}" for size in spec.shape)
    wanted = f"{endpoint}: {name}: expected {np.dtype(spec.dtype).name} [rows{axes}]"
    if not _same_kind(array.dtype, spec.dtype):
        remedy = "; scale pictures first: an InferencePipeline does" if array.dtype == np.uint8 else ""
        raise InputTypeError(f"{wanted}, got {array.dtype}{remedy}")
    remedy = "; add a batch axis: x[None]" if shape == spec.shape else ""
    raise InputError(f"{wanted}, got shape {shape}{remedy}")


def _checked_scalar(endpoint: str, name: str, spec: TensorSpec, value: Any) -> float:
    """One finite number that stands for all rows."""
    dtype = np.dtype(spec.dtype)
    if type(value) is float and dtype.kind == "f" and abs(value) <= _LARGEST and spec.minimum is None:
        return value
    number = np.asarray(value)
    if not (_same_kind(number.dtype, dtype) or (number.dtype.kind in "iu" and dtype.kind == "f")):
        raise InputTypeError(f"{endpoint}: {name}: expected {dtype.name}, got {value!r}")
    with np.errstate(over="ignore"):
        if not np.isfinite(number.astype(dtype) if dtype.kind == "f" else number):
            raise InputError(f"{endpoint}: {name}: expected a finite number, got {value!r} as {dtype.name}")
    _check_range(endpoint, name, spec, number)
    return number.item()


def _check_range(endpoint: str, name: str, spec: TensorSpec, array: Any) -> None:
    """Refuses numbers that the model does not take, and integers that another dtype would wrap around."""
    if spec.minimum is not None and np.dtype(spec.dtype).kind == "f":
        if array.size and np.asarray(array).min() < spec.minimum:
            raise InputError(
                f"{endpoint}: {name}: expected numbers from {spec.minimum}, got {np.asarray(array).min():g}"
            )
        return
    if array.dtype.kind not in "iu" or np.dtype(spec.dtype).kind not in "iu":
        return
    if array.dtype == spec.dtype and spec.minimum is None and spec.maximum is None:
        return
    (least, largest), host = spec.limits, np.asarray(array)
    if host.size and not least <= host.min() <= host.max() <= largest:
        raise InputError(
            f"{endpoint}: {name}: expected integers from {least} to {largest}, "
            f"got {host.min()} to {host.max()}"
        )


def _same_kind(given: DTypeLike, wanted: DTypeLike) -> bool:
    return given == wanted or any(
        jnp.issubdtype(given, kind) and jnp.issubdtype(wanted, kind)
        for kind in (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    )
