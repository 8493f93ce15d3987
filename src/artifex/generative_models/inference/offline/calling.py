"""Any endpoint on any number of rows, by what callers say: inputs, fields and options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Finishing, Said, checked_fields
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.executor.executor import Executor

if TYPE_CHECKING:
    from jaxtyping import Array
    from numpy.typing import NDArray


def call_endpoint(
    executor: Executor,
    endpoint: str,
    given: Mapping[str, Any],
    *,
    key: Array,
    num_rows: int | None = None,
    batch_size: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Runs an endpoint a batch at a time, so that what is made of fields never takes more room than a batch.

    Args:
        executor: Of the model.
        endpoint: Name of the endpoint.
        given: Its inputs, arrays [rows, ...], and its fields, for all rows or one a row; and its options.
        key: The job's key, for endpoints that draw random numbers: row i uses `fold_in(key, i)`.
        num_rows: How many rows, where no input tells it.
        batch_size: Rows a batch; None is the executor's largest.

    Returns:
        Arrays [rows, ...] by name; text is an object array of strings.

    Raises:
        InputError: An unknown endpoint or name, a value that does not fit, or inputs of other numbers of
            rows.
        InputTypeError: A value of another type.
        NonFiniteError: The model computed a NaN or an infinity.
    """
    made = _known(executor, endpoint)
    for name in given:
        if name not in made.fields:
            raise InputError(f"{endpoint}: {name} is not taken; it takes {', '.join(made.fields)}")
    inputs = {
        name: _number(np.asarray(given[name]), spec) for name, spec in made.given.items() if name in given
    }
    rows = _num_rows(endpoint, made, inputs, num_rows)
    options = {name: given[name] for name in made.given_options if name in given}
    said = None
    if made.says is not None:
        named = {name: given[name] for name in made.says.fields if name in given}
        said = Said(made.says, checked_fields(endpoint, made.says.fields, named, rows))
        options |= said.options
    size = batch_size or executor.batch_sizes_of(endpoint)[-1]

    def chunks() -> Iterator[dict[str, Any] | int]:
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            part = {
                name: value[start:stop] if value.ndim else np.full(stop - start, value)
                for name, value in inputs.items()
            }
            part |= {} if said is None else said.rows(start, stop)
            yield part or stop - start

    parts = list(executor.map(endpoint, chunks(), key=key, **options))
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return made.says.finished(outputs) if isinstance(made.says, Finishing) else outputs


def _number(value: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """An integer that is for all rows as a float, where floats are taken; other values as they are."""
    is_float = np.dtype(spec.dtype).kind == "f"
    return value.astype(spec.dtype) if is_float and value.ndim == 0 and value.dtype.kind in "iu" else value


def with_said(
    executor: Executor, endpoint: str, inputs: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All inputs of an endpoint, and its options, for a call of rows that are there.

    Args:
        executor: Of the model.
        endpoint: Name of the endpoint.
        inputs: Its inputs that callers give as they are, arrays [rows, ...].
        given: Its fields, for all rows or one a row; those that are not said are as by default.

    Raises:
        InputError: An unknown endpoint, a name that it does not take, or a value that does not fit.
        InputTypeError: A value of another type.
    """
    says = _known(executor, endpoint).says
    if says is None:
        checked_fields(endpoint, {}, given or {}, None)  # refuses any
        return dict(inputs), {}
    rows = len(next(iter(inputs.values())))
    said = Said(says, checked_fields(endpoint, says.fields, given or {}, rows))
    return {**inputs, **said.rows(0, rows)}, said.options


def map_said(
    executor: Executor,
    endpoint: str,
    chunks: Iterable[Mapping[str, Any]],
    given: Mapping[str, Any],
    num_rows: int | None,
    *,
    key: Array | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Runs an endpoint over inputs that come a part at a time, with what is said of their rows.

    Args:
        executor: Of the model.
        endpoint: Name of the endpoint.
        chunks: Its inputs, arrays [rows, ...].
        given: Its fields, for all rows or one a row; and its options.
        num_rows: How many rows there are; None where nobody knows, so that what is said is for all.
        key: The job's key, for endpoints that draw random numbers.

    Yields:
        Arrays [rows, ...] by name, for each chunk.

    Raises:
        InputError: An unknown endpoint, a name that it does not take, or a value that does not fit; and as
            for a call.
        InputTypeError: A value of another type.
    """
    made = _known(executor, endpoint)
    options: dict[str, Any] = {name: given[name] for name in made.given_options if name in given}
    named = {name: value for name, value in given.items() if name not in options}
    fields = {} if made.says is None else made.says.fields
    values = checked_fields(endpoint, fields, named, num_rows)
    if made.says is None:
        return executor.map(endpoint, map(dict, chunks), key=key, **options)
    said = Said(made.says, values)
    options |= said.options

    def filled() -> Iterator[dict[str, Any]]:
        start = 0
        for chunk in chunks:
            stop = start + len(next(iter(chunk.values())))
            yield {**chunk, **said.rows(start, stop)}
            start = stop

    return executor.map(endpoint, filled(), key=key, **options)


def _known(executor: Executor, endpoint: str) -> Endpoint:
    if endpoint not in executor.endpoints:
        raise InputError(f"no endpoint {endpoint!r}; there are {', '.join(executor.endpoints)}")
    return executor.endpoints[endpoint]


def _num_rows(endpoint: str, made: Endpoint, inputs: Mapping[str, Any], num_rows: int | None) -> int:
    """As many as all inputs have that are not one for all rows."""
    for name, value in inputs.items():
        shape = made.given[name].shape
        if value.ndim == 0:
            if shape == ():
                continue
            raise InputError(f"{endpoint}: {name}: expected rows of {list(shape)}, got one number")
        num_rows = len(value) if num_rows is None else num_rows
        if len(value) != num_rows:
            raise InputError(f"{endpoint}: {name} has {len(value)} rows where {num_rows} were expected")
    if num_rows is None or num_rows < 1:
        raise InputError(
            f"{endpoint}: num_rows: expected at least 1, since no input tells it; got {num_rows}"
        )
    return num_rows
