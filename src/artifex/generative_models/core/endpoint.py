"""What a model offers: named, batched, pure functions whose rows are independent.

The law that everything else rests on: output row *i* of an endpoint depends only on input row *i*
and on PRNG key *i*. It makes padding, splitting, merging and sharding of batches legal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax.numpy as jnp

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
class Endpoint:
    """A batched pure function of a model.

    Args:
        fn: `fn(model, keys, inputs, **options) -> outputs`: `keys` is a batch of PRNG keys, one a row;
            `inputs` and `outputs` are dicts of arrays with a leading batch axis.
        inputs: The inputs by name, one row each.
        options: Static arguments and their defaults. A new value compiles a new executable.
        doc: One line for people.
    """

    fn: Callable[..., dict[str, Array]]
    inputs: Mapping[str, TensorSpec]
    options: Mapping[str, Hashable] = field(default_factory=dict)
    doc: str = ""


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
