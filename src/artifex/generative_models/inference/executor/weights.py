"""A model's weights on the device, in flattened order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.casting import cast
from artifex.generative_models.inference.executor.placement import Placement
from artifex.generative_models.inference.executor.source import Source, source_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array


class Weights:
    """The weights of one model.

    Args:
        model: An NNX module, or any pytree of arrays.
        place: Where they go.
        dtype: Casts those that are floating-point.
    """

    def __init__(self, model: Any, place: Placement, dtype: DTypeLike | None):
        self.place = place
        self.dtype = dtype
        self._take(source_of(model))

    def _take(self, source: Source) -> None:
        everything = range(len(source.axes))
        shapes = [np.shape(leaf) for leaf in source.read(everything)]
        shardings = list(map(self.place.weight_sharding, shapes, source.axes))
        # In one step, for others read meanwhile; of each: (the user's array, ours).
        cells: list[tuple[Any, Any]] = [(None, None)] * len(shapes)
        self._state = source, shardings, cells
        self.all = everything

    @property
    def model(self) -> Any:
        """The model that they are read from, if anybody else still has it."""
        return self._state[0].model()

    @property
    def are_current(self) -> bool:
        """Whether the model has the parts that it had when they were found in it."""
        return self._state[0].is_current()

    @property
    def num_parameters(self) -> int:
        """How many numbers they are; the states of random number generators do not count."""
        source = self._state[0]
        leaves = source.read(self.all)
        return sum(
            leaf.size for leaf, is_random in zip(leaves, source.is_random, strict=True) if not is_random
        )

    def has_random_state(self, which: Sequence[int]) -> bool:
        """Whether some of them are states of random number generators."""
        return any(self._state[0].is_random[i] for i in which)

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The model in evaluation mode, made of arrays in this order."""
        return self._state[0].rebuild(leaves)

    def placed(self, which: Sequence[int]) -> list[Array]:
        """The weights as they are now; only those that were replaced since are placed again."""
        source, shardings, cells = self._state
        for i, leaf in zip(which, source.read(which), strict=True):
            if cells[i][0] is not leaf:
                cells[i] = leaf, self._placed(leaf, shardings[i])
        return [cells[i][1] for i in which]

    def avals(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes that they have once they are placed; none is, for it."""
        leaves = self._state[0].read(self.all)
        dtypes = [self.dtype if self._is_cast(leaf) else jnp.result_type(leaf) for leaf in leaves]
        return [jax.ShapeDtypeStruct(np.shape(leaf), d) for leaf, d in zip(leaves, dtypes, strict=True)]

    def signature(self) -> Any:
        """What tells models apart that one executable does not fit."""
        return self._state[0].structure, tuple((aval.shape, aval.dtype) for aval in self.avals())

    def reuse(self, other: Weights) -> None:
        """Takes over what is placed already of the same arrays in the same way, and so is not held twice."""
        source, shardings, cells = self._state
        _, others, placed = other._state
        there = {id(leaf): (how, ours) for how, (leaf, ours) in zip(others, placed, strict=True)}
        for i, leaf in enumerate(source.read(self.all)):
            how, ours = there.get(id(leaf), (None, None))
            if ours is not None and how == shardings[i] and self.dtype == other.dtype:
                cells[i] = leaf, ours

    def swap(self, other: Weights) -> None:
        """Becomes the weights of another model, of the same signature."""
        self._state, self.all = other._state, other.all

    def follow(self, build: Callable[[list[Any]], Any]) -> Any:
        """Builds an NNX module of the arrays as they are, and sees from now on what is replaced in it."""
        source = self._state[0]
        module = build(source.read(self.all))
        followed = source_of(module)
        changed = dataclasses.replace(
            source, model=followed.model, read=followed.read, is_current=followed.is_current
        )
        self._state = changed, *self._state[1:]
        return module

    def _placed(self, leaf: Any, sharding: jax.sharding.Sharding) -> Array:
        if self.dtype is not None and self._is_cast(leaf):
            leaf = cast(leaf, self.dtype)
        return self.place.put_weight(leaf, sharding)

    def _is_cast(self, leaf: Any) -> bool:
        return self.dtype is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
