"""What goes into an endpoint and comes out: arrays, a row each, and static options."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from jax.typing import DTypeLike


@dataclass(frozen=True)
class TensorSpec:
    """One row of an input or output; the batch axis is left out.

    Args:
        shape: Shape of a row; `()` for a per-row scalar such as a temperature. The name of an option stands
            for the size that it has.
        dtype: The row's dtype.
        default: Value that fills the input when the caller leaves it out; only for per-row scalars.
        doc: One line for people: meaning, unit, range.
        image_range: The low and the high end of the model's pixel values, where rows are pictures. An input
            then takes uint8 pictures too: they go to the device as they are, and the executable scales them.
        minimum: The least number that an input may be; None is that of its dtype.
        maximum: The largest integer.
    """

    shape: tuple[Any, ...]
    dtype: DTypeLike
    default: float | None = None
    doc: str = ""
    image_range: tuple[float, float] | None = None
    minimum: int | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest number that an input of integers may be."""
        dtype = jnp.iinfo(self.dtype)
        return (
            int(dtype.min) if self.minimum is None else self.minimum,
            int(dtype.max) if self.maximum is None else self.maximum,
        )

    def resolved(self, options: Mapping[str, Any]) -> TensorSpec:
        """The spec with sizes in place of the options' names."""
        if all(isinstance(size, int) for size in self.shape):
            return self
        shape = tuple(size if isinstance(size, int) else options[size] for size in self.shape)
        return replace(self, shape=shape)


@dataclass(frozen=True)
class Option:
    """A static argument of an endpoint: each value of it compiles an executable of its own.

    State what it may be: a client who may ask for any number of steps can keep a server busy for minutes.

    Args:
        default: Its value where the caller leaves it out.
        minimum: The least number that it may be.
        maximum: The largest.
        choices: All that it may be.
        doc: One line for people.
        multiple: What it must be a multiple of, where it is an integer.

    An endpoint refuses one whose default it may not be.
    """

    default: Hashable
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Hashable, ...] | None = None
    doc: str = ""
    multiple: int | None = None

    @property
    def words(self) -> list[str]:
        """What it may be, and what it means, for people."""
        told = [] if self.choices is None else [f"one of {', '.join(map(str, self.choices))}"]
        told += [] if self.minimum is None else [f"at least {self.minimum:g}"]
        told += [] if self.maximum is None else [f"at most {self.maximum:g}"]
        told += [] if self.multiple is None else [f"a multiple of {self.multiple}"]
        return [*told, self.doc] if self.doc else told

    def check(self, endpoint: str, name: str, value: Any) -> None:
        """Refuses what it may not be.

        Raises:
            InputError: It is such a value.
        """
        limits = (self.minimum, "at least", operator.ge), (self.maximum, "at most", operator.le)
        is_integral = isinstance(self.default, Integral)
        bounds = [self.multiple, *(limit for limit, *_ in limits)]
        if any(bound is not None for bound in bounds) and (
            isinstance(value, bool) or not isinstance(value, Integral if is_integral else Real)
        ):
            word = "an integer" if is_integral else "a number"
            raise InputError(f"{endpoint}: {name}: expected {word}, got {value!r}")
        for limit, word, holds in limits:
            if limit is not None and not holds(value, limit):
                raise InputError(f"{endpoint}: {name}: expected {word} {limit:g}, got {value!r}")
        if self.multiple is not None and value % self.multiple:
            raise InputError(f"{endpoint}: {name}: expected a multiple of {self.multiple}, got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise InputError(
                f"{endpoint}: {name}: expected one of {', '.join(map(str, self.choices))}, got {value!r}"
            )
