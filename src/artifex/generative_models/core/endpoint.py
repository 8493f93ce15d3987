"""What a model offers: named, batched, pure functions whose rows are independent.

The law that everything else rests on: output row *i* of an endpoint depends only on input row *i*
and on PRNG key *i*. It makes padding, splitting, merging and sharding of batches legal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax.numpy as jnp

from artifex.generative_models.core.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array


@dataclass(frozen=True)
class TensorSpec:
    """One row of an input or output; the batch axis is left out.

    Args:
        shape: Shape of a row; `()` for a per-row scalar such as a temperature.
        dtype: The row's dtype.
        default: Value that fills the input when the caller leaves it out; only for per-row scalars.
        doc: One line for people: meaning, unit, range.
        image_range: The low and the high end of the model's pixel values, where rows are pictures. An input
            then takes uint8 pictures too: they go to the device as they are, and the executable scales them.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    default: float | None = None
    doc: str = ""
    image_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))


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

    An endpoint refuses one whose default it may not be.
    """

    default: Hashable
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Hashable, ...] | None = None
    doc: str = ""

    @property
    def words(self) -> list[str]:
        """What it may be, and what it means, for people."""
        told = [] if self.choices is None else [f"one of {', '.join(map(str, self.choices))}"]
        told += [] if self.minimum is None else [f"at least {self.minimum:g}"]
        told += [] if self.maximum is None else [f"at most {self.maximum:g}"]
        return [*told, self.doc] if self.doc else told

    def check(self, endpoint: str, name: str, value: Any) -> None:
        """Refuses what it may not be.

        Raises:
            InputError: It is such a value.
        """
        limits = (self.minimum, "at least", operator.ge), (self.maximum, "at most", operator.le)
        is_integral = isinstance(self.default, Integral)
        if any(limit is not None for limit, *_ in limits) and (
            isinstance(value, bool) or not isinstance(value, Integral if is_integral else Real)
        ):
            word = "an integer" if is_integral else "a number"
            raise InputError(f"{endpoint}: {name}: expected {word}, got {value!r}")
        for limit, word, holds in limits:
            if limit is not None and not holds(value, limit):
                raise InputError(f"{endpoint}: {name}: expected {word} {limit:g}, got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise InputError(
                f"{endpoint}: {name}: expected one of {', '.join(map(str, self.choices))}, got {value!r}"
            )


@dataclass(frozen=True)
class Endpoint:
    """A batched pure function of a model.

    Args:
        fn: `fn(model, keys, inputs, **options) -> outputs`: `keys` is a batch of PRNG keys, one a row;
            `inputs` and `outputs` are dicts of arrays with a leading batch axis. Draw with a dtype: what
            `jax.random` gives without one is another sample where JAX_ENABLE_X64 is set.
        inputs: The inputs by name, one row each.
        options: Static arguments: each an `Option`, or its default where it may be anything. A new value
            compiles a new executable.
        doc: One line for people.
    """

    fn: Callable[..., dict[str, Array]]
    inputs: Mapping[str, TensorSpec]
    options: Mapping[str, Any] = field(default_factory=dict)
    doc: str = ""

    def __post_init__(self) -> None:
        options = {
            name: option if isinstance(option, Option) else Option(option)
            for name, option in self.options.items()
        }
        for name, option in options.items():
            option.check("options", name, option.default)
        object.__setattr__(self, "options", options)

    @property
    def defaults(self) -> dict[str, Hashable]:
        """The options' values where the caller leaves them out."""
        return {name: option.default for name, option in self.options.items()}


@runtime_checkable
class Model(Protocol):
    """Anything that offers endpoints. `generate` is the one every family has."""

    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints by name."""
        ...


@runtime_checkable
class ExportableModel(Model, Protocol):
    """A model that an export directory can rebuild: its class takes `**config` and `rngs`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments besides `rngs`, as JSON takes them."""
        ...


def changed_options(
    known: Mapping[str, Option], given: Mapping[str, Hashable]
) -> tuple[tuple[str, Hashable], ...]:
    """The options that differ from their defaults, so that equal choices share executables."""
    return tuple(sorted((name, value) for name, value in given.items() if value != known[name].default))


def endpoints_of(model: Any) -> dict[str, Endpoint]:
    """A model's endpoints, as functions of whichever model of its class they are given.

    They hold nothing of this one: where an endpoint reads its own model (`self`) rather than the one that it
    is given, its weights are arguments all the same, and the model goes with its last name.

    Raises:
        InputTypeError: It has none, or something else goes by that name.
    """
    if not callable(getattr(model, "endpoints", None)):
        raise InputTypeError(f"{type(model).__name__} has no endpoints(); pass endpoints=")
    found = model.endpoints()
    if not isinstance(found, Mapping) or not all(isinstance(made, Endpoint) for made in found.values()):
        raise InputTypeError(f"{type(model).__name__}.endpoints(): expected endpoints by name, got {found!r}")
    return {name: asked(name, made) for name, made in found.items()}


def asked(name: str, endpoint: Endpoint) -> Endpoint:
    """An endpoint whose function is that which the model it is given has by this name."""
    return replace(endpoint, fn=asking(name, *names_of(endpoint.fn)))


def asking(name: str, module: str, qualname: str) -> Callable[..., dict[str, Array]]:
    """The function of an endpoint, as the model that it is given has it; it goes by that one's name."""

    def fn(model: Model, keys: Any, inputs: Any, **options: Any) -> dict[str, Array]:
        return model.endpoints()[name].fn(model, keys, inputs, **options)

    fn.__module__, fn.__qualname__ = module, qualname
    return fn


def names_of(function: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name that a function goes by; those of its class, where it has none."""
    kind = type(function)
    return getattr(function, "__module__", kind.__module__), getattr(
        function, "__qualname__", kind.__qualname__
    )


def are_alike(some: Mapping[str, Endpoint], others: Mapping[str, Endpoint]) -> bool:
    """Whether endpoints differ in nothing that an executable depends on."""

    def described(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
        return {
            name: (names_of(made.fn), dict(made.inputs), dict(made.options))
            for name, made in endpoints.items()
        }

    return described(some) == described(others)
