"""A model's weights on the device, in flattened order, and how to put the model together again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.sharding import AxisNames
from artifex.generative_models.inference.executor.placement import Placement

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
        names: list[AxisNames]
        if _is_nnx(model):
            from flax import nnx

            graphdef, state = nnx.split(model)
            leaves, treedef = jax.tree.flatten(state)
            variables = [variable for _, variable in nnx.to_flat_state(state)]
            names = [variable.get_metadata().get("out_sharding") or () for variable in variables]
            self._structure: Hashable = graphdef
            self._read = _reader(variables)
            self.rebuild = lambda leaves: nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        else:
            leaves, treedef = jax.tree.flatten(model)
            names = [()] * len(leaves)
            self._structure = treedef
            self._read = lambda which: list(map(jax.tree.leaves(model).__getitem__, which))
            self.rebuild = lambda leaves: jax.tree.unflatten(treedef, leaves)
        self.all = range(len(leaves))
        self._shardings = [
            place.weight_sharding(np.shape(leaf), axes) for leaf, axes in zip(leaves, names, strict=True)
        ]
        self._cells: list[tuple[Any, Any]] = [(None, None)] * len(leaves)  # (the user's array, ours)

    def placed(self, which: Sequence[int]) -> list[Array]:
        """The weights as they are now; only those that were replaced since are placed again."""
        cells = self._cells
        current = self._read(which)
        for i, leaf in zip(which, current, strict=True):
            if cells[i][0] is not leaf:
                cells[i] = leaf, self._placed(leaf, self._shardings[i])
        return [cells[i][1] for i in which]

    def signature(self) -> Hashable:
        """What tells models apart that one executable does not fit."""
        return self._structure, tuple((leaf.shape, leaf.dtype) for leaf in self.placed(self.all))

    def follow(self, build: Callable[[list[Any]], Any]) -> Any:
        """Builds an NNX module of the arrays as they are, and sees from now on what is replaced in it."""
        from flax import nnx

        module = build(self._read(self.all))
        self._read = _reader([variable for _, variable in nnx.to_flat_state(nnx.state(module))])
        return module

    def _placed(self, leaf: Any, sharding: jax.sharding.Sharding) -> Array:
        if self.dtype is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            leaf = jnp.asarray(leaf, self.dtype)
        return self.place.put_weight(leaf, sharding)


def _reader(variables: Sequence[Any]) -> Any:
    readers = [variable.get_raw_value for variable in variables]
    return lambda which: [readers[i]() for i in which]


def _is_nnx(model: Any) -> bool:
    if "flax.nnx" not in sys.modules:
        return False  # importing it takes longer than all else that a warm start does
    from flax import nnx

    return isinstance(model, nnx.Module)
