"""What a model offers: named, batched, pure functions whose rows are independent.

The law that everything else rests on: output row *i* of an endpoint depends only on input row *i*
and on PRNG key *i*. It makes padding, splitting, merging and sharding of batches legal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from artifex.generative_models.core.errors import InputTypeError
from artifex.generative_models.core.fields import Preparation
from artifex.generative_models.core.sampling.loop import Loop
from artifex.generative_models.core.specs import Option, TensorSpec

if TYPE_CHECKING:
    from jaxtyping import Array


@dataclass(frozen=True)
class Endpoint:
    """A batched pure function of a model.

    Args:
        fn: `fn(model, keys, inputs, **options) -> outputs`, or a `Loop` for what is done in steps: `keys` is
            a batch of PRNG keys, one a row; `inputs` and `outputs` are dicts of arrays with a leading batch
            axis. Draw with a dtype: what `jax.random` gives without one is another sample where
            JAX_ENABLE_X64 is set.
        inputs: The inputs by name, one row each.
        options: Static arguments: each an `Option`, or its default where it may be anything. A new value
            compiles a new executable.
        doc: One line for people.
        says: What callers say in place of some inputs and options, and how it becomes them; None where they
            give all of them as they are.
        ahead: Whether servers compile it before they are ready; else when it is first asked for.
        requires: The name of an output, bool [rows], which must hold for a row that is done, and what to tell
            where it does not: a template for `str.format` with the row's other outputs that are scalars.
    """

    fn: Callable[..., dict[str, Array]] | Loop
    inputs: Mapping[str, TensorSpec]
    options: Mapping[str, Any] = field(default_factory=dict)
    doc: str = ""
    says: Preparation | None = None
    ahead: bool = True
    requires: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        options = {
            name: option if isinstance(option, Option) else Option(option)
            for name, option in self.options.items()
        }
        for name, option in options.items():
            option.check("options", name, option.default)
        object.__setattr__(self, "options", options)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what callers may say."""
        said = () if self.says is None else self.says.fields
        return *self.given, *said, *self.given_options

    @property
    def given(self) -> dict[str, TensorSpec]:
        """The inputs that callers give as they are, since nothing that they say makes them."""
        return {name: spec for name, spec in self.inputs.items() if name not in self._provided}

    @property
    def given_options(self) -> dict[str, Option]:
        """The options that callers choose themselves."""
        return {name: option for name, option in self.options.items() if name not in self._provided}

    def sized(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """The options that are sizes, as inputs [rows, ...] have them."""
        return {
            option: inputs[name].shape[axis]
            for name, axis, option in self._sizes
            if len(getattr(inputs.get(name), "shape", ())) > axis
        }

    @property
    def is_sized(self) -> bool:
        """Whether inputs may be of several sizes, which are options."""
        return bool(self._sizes)

    @functools.cached_property
    def _sizes(self) -> list[tuple[str, int, str]]:
        """Of each option that is a size: an input, and its axis in a batch, that has it."""
        return [
            (name, axis + 1, size)
            for name, spec in self.inputs.items()
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        ]

    @property
    def _provided(self) -> Collection[str]:
        return () if self.says is None else self.says.provides

    @property
    def defaults(self) -> dict[str, Hashable]:
        """The options' values where the caller leaves them out."""
        return {name: option.default for name, option in self.options.items()}


@runtime_checkable
class Model(Protocol):
    """Anything that offers endpoints. `generate` is the one that every generative family has."""

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
    """An endpoint whose function is that which the model it is given has; loops hold no model."""
    if isinstance(endpoint.fn, Loop):
        return endpoint
    return replace(endpoint, fn=asking(name, *names_of(endpoint.fn)))


def asking(name: str, module: str, qualname: str) -> Callable[..., dict[str, Array]]:
    """The function of an endpoint, as the model that it is given has it; it goes by that one's name."""

    def fn(model: Any, keys: Any, inputs: Any, **options: Any) -> dict[str, Array]:
        return model.endpoints()[name].fn(model, keys, inputs, **options)

    fn.__module__, fn.__qualname__ = module, qualname
    return fn


def names_of(function: Callable[..., Any] | Loop) -> tuple[str, str]:
    """The module and the qualified name that a function goes by; those of its class, where it has none."""
    kind = type(function)
    return getattr(function, "__module__", kind.__module__), getattr(
        function, "__qualname__", kind.__qualname__
    )


def are_alike(some: Mapping[str, Endpoint], others: Mapping[str, Endpoint]) -> bool:
    """Whether endpoints differ in nothing that an executable depends on."""

    def described(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
        return {
            name: (names_of(made.fn), dict(made.inputs), dict(made.options), made.requires)
            for name, made in endpoints.items()
        }

    return described(some) == described(others)
