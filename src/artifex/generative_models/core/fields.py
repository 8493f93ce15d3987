"""What callers say to an endpoint: names with types, ranges and defaults, checked in one place."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.specs import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    int: int | np.integer,
    float: int | float | np.integer | np.floating,
    str: str | bytes,
    bool: bool | np.bool_,
}
_NUMBERS: dict[str, type] = {"int": int, "float": float, "bool": bool}
_DTYPES: dict[type, Any] = {int: np.int32, float: np.float32, bool: np.bool_}
_LARGEST = np.iinfo(np.int32).max  # of integers, which rows have as int32
_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class Field:
    """One thing that a caller may say, for all rows or one a row.

    Args:
        kind: `int`, `float`, `str` or `bool`.
        default: What holds where it is not said; None is that nothing does.
        minimum: The least number that it may be.
        maximum: The largest.
        choices: All that it may be.
        doc: One line for people.
        above: What it must be larger than, in place of a minimum.
        example: Of a field that has to be said, what it might be.
    """

    kind: type
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    doc: str = ""
    above: float | None = None
    example: Any = None

    def checked(self, name: str, value: Any, num_rows: int | None) -> NDArray[Any]:
        """A value as an array, [] for all rows or [rows].

        Args:
            name: What to call it in an error.
            value: What was said.
            num_rows: How many rows there are; None where it is for all of them.

        Raises:
            InputError: Another number of values than rows, or a value that it may not be.
            InputTypeError: A value of another type.
        """
        # Strings are objects, so that a long one lengthens no other.
        array = value if isinstance(value, np.ndarray) else np.array(value, object)
        if array.shape == (1,):
            array = array.reshape(())  # which is for all
        if array.shape not in ([()] if num_rows is None else [(), (num_rows,)]) or not array.size:
            wanted = "one value" if num_rows is None else f"one value, or {num_rows}"
            raise InputError(f"{name}: expected {wanted}, got shape {list(array.shape)}")
        array = self._typed(name, array)
        if self.kind is float:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        for one in np.unique(array).tolist():
            self._check(name, one)
        return array

    @property
    def limits(self) -> str:
        """What it may be, for people: "one of a, b", "from 0 to 9", or "" where it may be anything."""
        if self.choices is not None:
            return f"one of {', '.join(self.choices)}"
        if self.above is not None:
            return f"above {self.above:g}" + ("" if self.maximum is None else f", at most {self.maximum:g}")
        if self.minimum is None:
            return "" if self.maximum is None else f"at most {self.maximum:g}"
        return f"from {self.minimum:g}" + ("" if self.maximum is None else f" to {self.maximum:g}")

    def _typed(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Values as numbers, or as an array of strings."""
        if array.dtype.kind in "OSU":
            array = array.astype(object)
            for one in array.flat:
                if not isinstance(one, _TYPES[self.kind]) or isinstance(one, bool) != (self.kind is bool):
                    raise self._wrong_kind(name, repr(one))
            if self.kind is str:
                array.reshape(-1)[:] = [_text(name, one) for one in array.flat]
                return array
            array = np.asarray(array.tolist())
        if array.dtype.kind not in {int: "iu", float: "iuf", str: "", bool: "b"}[self.kind]:
            raise self._wrong_kind(name, str(array.dtype))
        return array

    def _wrong_kind(self, name: str, got: str) -> InputTypeError:
        wanted = self.limits if self.choices else f"{_KINDS[self.kind]} {self.limits}".rstrip()
        return InputTypeError(f"{name}: expected {wanted}, got {got:.100}")

    def _as_said(self, limit: float | None) -> float | None:
        """A limit in the precision that values have, so that a value may be the limit itself."""
        return float(np.float32(limit)) if self.kind is float and limit is not None else limit

    def _check(self, name: str, value: Any) -> None:
        if self.choices is not None and value not in self.choices:
            raise InputError(f"{name}: expected {self.limits}, got {value!r:.100}")
        if self.kind is float and not np.isfinite(value):
            raise InputError(f"{name}: expected a finite number, got {value}")
        if self.kind is int and abs(value) > _LARGEST:
            raise InputError(f"{name}: expected an integer that int32 holds, got {value}")
        low, high, above = (self._as_said(limit) for limit in (self.minimum, self.maximum, self.above))
        if (
            (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
        ):
            raise InputError(f"{name}: expected {self.limits}, got {value:g}")


@runtime_checkable
class Preparation(Protocol):
    """How what callers say becomes the rows that an executable takes: on the host, once a request.

    It is a frozen dataclass whose attributes JSON can hold, so that a later start has it without the model.
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """What may be said, by name."""
        ...

    @property
    def provides(self) -> Collection[str]:
        """Names of the endpoint's inputs and options that it makes; callers give the others as they are."""
        ...

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """The static options that a request runs with."""
        ...

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that it makes, arrays [rows, ...]; what is said is one value for all rows, or [rows]."""
        ...


@runtime_checkable
class Finishing(Preparation, Protocol):
    """A preparation of an endpoint whose outputs become, on the host, what callers get."""

    @property
    def texts(self) -> Collection[str]:
        """Names of the outputs that it adds: strings, one a row."""
        ...

    def finished(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs of rows, arrays [rows, ...] by name, and the strings, object arrays [rows]."""
        ...


@dataclass(frozen=True)
class RowNumbers:
    """Fields that are numbers, which the executable takes as they are said, one a row.

    Args:
        facts: What `Field` takes of each by its name, and `unsaid`, as JSON; `of` makes it.
    """

    facts: str

    @classmethod
    def of(cls, fields: Mapping[str, Field], unsaid: Mapping[str, float] | None = None) -> Self:
        """Of fields by name.

        Args:
            fields: Of the kinds `int`, `float` and `bool`.
            unsaid: What the executable is given of those without a default where nobody says anything.
        """
        kinds = {name: {**asdict(field), "kind": field.kind.__name__} for name, field in fields.items()}
        return cls(json.dumps({"fields": kinds, "unsaid": dict(unsaid or {})}))

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        return {
            name: Field(**{**facts, "kind": _NUMBERS[facts["kind"]]})
            for name, facts in json.loads(self.facts)["fields"].items()
        }

    @functools.cached_property
    def inputs(self) -> dict[str, TensorSpec]:
        """What an endpoint with these fields takes: float32, int32 or bool."""
        return {
            name: TensorSpec((), _DTYPES[field.kind], doc=field.doc) for name, field in self.fields.items()
        }

    @property
    def provides(self) -> Collection[str]:
        """All of its fields."""
        return self.fields.keys()

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """None."""
        return {}

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of so many rows."""
        values = {**json.loads(self.facts)["unsaid"], **said}
        return {
            name: np.ascontiguousarray(np.broadcast_to(values[name], (num_rows,)).astype(spec.dtype))
            for name, spec in self.inputs.items()
        }


@dataclass(frozen=True)
class Said:
    """What was said to an endpoint, checked; its rows are made a part at a time.

    Args:
        says: What becomes of it.
        values: By name: [] for all rows, or [rows].
    """

    says: Preparation
    values: Mapping[str, NDArray[Any]]

    @functools.cached_property
    def options(self) -> dict[str, Hashable]:
        """The static options that it runs with."""
        return self.says.options(self.values)

    def rows(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """The inputs that it makes, of rows from one number to another, arrays [rows, ...]."""
        part = {name: value[start:stop] if value.ndim else value for name, value in self.values.items()}
        return self.says.rows(part, stop - start, self.options)


def checked_fields(
    endpoint: str, fields: Mapping[str, Field], given: Mapping[str, Any], num_rows: int | None
) -> dict[str, NDArray[Any]]:
    """What was said, and the defaults of what was not; None is as if it were not said.

    Raises:
        InputError: A name that is not known, or a value that does not fit.
    """
    for name in given:
        if name not in fields:
            raise InputError(f"{endpoint}: {name} is not taken; it takes {', '.join(fields) or 'nothing'}")
    said = {name: given[name] for name in fields if given.get(name) is not None}
    defaults = {name: field.default for name, field in fields.items() if field.default is not None}
    return {
        name: fields[name].checked(f"{endpoint}: {name}", value, num_rows)
        for name, value in (defaults | said).items()
    }


def _text(name: str, value: str | bytes) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: expected UTF-8, got {value!r:.100}") from error
