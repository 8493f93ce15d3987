"""A model as arrays in a fixed order, whatever holds them: an NNX module, or any other pytree."""

from __future__ import annotations

import itertools
import operator
import sys
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from artifex.generative_models.core.sharding import AxisNames


@dataclass(frozen=True)
class Source:
    """Where a model's arrays are read from, and how they become the model again.

    Args:
        model: The model, as long as somebody has it.
        structure: What has to be equal for one executable to fit two models, arrays left out.
        axes: The names of each array's axes, where its layer gives any.
        is_random: Of each array, whether it is the state of a random number generator, not a weight.
        read: The arrays at some places, as they are now.
        rebuild: Makes the model, in evaluation mode, of such arrays.
        is_current: Whether the model still has the parts that it had when this was made.
    """

    model: Callable[[], Any]
    structure: Any
    axes: Sequence[AxisNames]
    is_random: Sequence[bool]
    read: Callable[[Sequence[int]], list[Any]]
    rebuild: Callable[[Sequence[Any]], Any]
    is_current: Callable[[], bool]


def source_of(model: Any) -> Source:
    """The source of a model's arrays.

    Args:
        model: An NNX module, or any pytree: its leaves that are arrays; others are parts of its structure.
    """
    return _nnx_source(model) if _is_of("flax.nnx", "Module", model) else _pytree_source(model)


def _nnx_source(model: Any) -> Source:
    from flax import nnx

    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    # Not by `to_flat_state`, nor by merging the arrays: both leave cycles, which keep weights alive.
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    parts = _parts(model)
    seen = _attributes(parts)
    # Flax's own among them name the attributes, so a new name is seen too.
    containers = [value for value in seen if isinstance(value, dict | list | tuple | set)]
    copies = list(map(_copied, containers))
    readers = [_reader(variable) for variable in variables]

    def is_current() -> bool:
        try:
            now = _attributes(parts)
            return (
                len(now) == len(seen)
                and all(map(operator.is_, now, seen))  # equal ones may differ in shape and dtype
                and containers == copies
            )
        except (TypeError, ValueError, RuntimeError):  # two arrays, or a module that changes this very moment
            return False

    def rebuild(leaves: Sequence[Any]) -> Any:
        module = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        module.eval()
        return module

    return Source(
        model=weakref.ref(model),
        structure=(
            nnx.graphdef(rebuild(list(map(_abstract, leaves)))),
            list(map(_settings, containers)),
        ),
        axes=[_metadata(variable).get("out_sharding") or () for variable in variables],
        is_random=[isinstance(variable, nnx.RngState) for variable in variables],
        read=lambda which: [readers[i]() for i in which],
        rebuild=rebuild,
        is_current=is_current,
    )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _parts(model: Any) -> list[dict[Any, Any]]:
    """Where the modules within a model, itself included, keep their attributes."""
    from flax import nnx

    values = [value for _, value in nnx.iter_graph(model)]
    return [value if isinstance(value, dict) else vars(value) for value in values if _is_part(value)]


def _is_part(value: Any) -> bool:
    from flax import nnx

    return isinstance(value, dict | nnx.Pytree)


def _attributes(parts: Sequence[dict[Any, Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(map(dict.values, parts)))


def _copied(value: Any) -> Any:
    """An attribute as it is now, where it is a container that may change in place."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
    return set(value) if isinstance(value, set) else value


def _settings(value: Any) -> Any:
    """A container among the attributes, without the arrays and modules in it."""
    if isinstance(value, dict):
        return {key: _settings(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_settings, value))
    return value if isinstance(value, str | int | float | set | None) else None


def _reader(variable: Any) -> Callable[[], Any]:
    """Reads a variable; an array that is none cannot change but by another taking its place."""
    return (lambda: variable) if isinstance(variable, jax.Array | np.ndarray) else variable.get_raw_value


def _metadata(variable: Any) -> Mapping[str, Any]:
    return {} if isinstance(variable, jax.Array | np.ndarray) else variable.get_metadata()


def _pytree_source(model: Any) -> Source:
    leaves, treedef = jax.tree.flatten(model)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | np.generic)]
    others = {i: leaf for i, leaf in enumerate(leaves) if i not in set(places)}
    get = _weakly(model)

    def now() -> list[Any]:
        found = get()
        return leaves if found is None else jax.tree.leaves(found)

    def rebuild(arrays: Sequence[Any]) -> Any:
        parts = others | dict(zip(places, arrays, strict=True))
        tree = jax.tree.unflatten(treedef, [parts[i] for i in range(len(leaves))])
        return _in_inference_mode(tree)

    def is_current() -> bool:
        found = get()
        if found is None:
            return True
        present, structure = jax.tree.flatten(found)
        same: Any = treedef  # whose type has no ==
        return structure == same and all(present[i] is leaf for i, leaf in others.items())

    return Source(
        model=get,
        structure=(treedef, tuple(map(_hashable, others.values()))),
        axes=[()] * len(places),
        is_random=[jax.dtypes.issubdtype(leaves[i].dtype, jax.dtypes.prng_key) for i in places],
        read=lambda which: list(map(now().__getitem__, map(places.__getitem__, which))),
        rebuild=rebuild,
        is_current=is_current,
    )


def _weakly(model: Any) -> Callable[[], Any]:
    """Gives a model without keeping it alive, unless it is of a type that has no weak references."""
    try:
        return weakref.ref(model)
    except TypeError:  # such as a dict
        return lambda: model


def _hashable(leaf: Any) -> Hashable:
    return leaf if isinstance(leaf, Hashable) else id(leaf)


def _in_inference_mode(tree: Any) -> Any:
    """A tree in which Equinox's layers, if there are any, evaluate rather than train."""
    if "equinox" not in sys.modules:
        return tree
    import equinox

    return equinox.nn.inference_mode(tree)


def _is_of(module: str, name: str, model: Any) -> bool:
    """Whether a model is of a class, the import of which takes longer than all else that a start does."""
    return module in sys.modules and isinstance(model, getattr(sys.modules[module], name))
