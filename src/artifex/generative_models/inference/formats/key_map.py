"""Weights under names of somebody's own, put into a family by a map of names.

The map is a JSON object. A key is a name as the file has it, or a pattern in which each `*` stands for any
part of it. What it becomes is the name that the family's weight has in its state, `decoder.stem.kernel`,
or as it is published, with the parts in the places of its own `*`. An object `{"to": name, "axes": [1, 0]}`
says in which order to take the axes as well, and `null` leaves a weight out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import nnx

from artifex.generative_models.core.config import abstract_model, read_json
from artifex.generative_models.core.errors import CheckpointMismatchError, ConfigError
from artifex.generative_models.core.published import PublishedWeight, PublishedWeights
from artifex.generative_models.inference.formats.restoring import restored
from artifex.generative_models.inference.formats.safetensors import StoredArray, stored_arrays

if TYPE_CHECKING:
    from jax.typing import DTypeLike


def load_file(
    path: Path,
    model_type: str,
    config: Mapping[str, Any],
    key_map: Mapping[str, Any],
    *,
    dtype: DTypeLike | None = None,
) -> Any:
    """A model of a family, with weights from a safetensors file, or from the index of its shards.

    Args:
        path: The file.
        model_type: Name of an installed family.
        config: Its arguments.
        key_map: What becomes of the names in the file; those that are not there stay as they are.
        dtype: Of floating-point weights; None is that of the model.

    Raises:
        ConfigError: The map or the config is unusable.
        CheckpointMismatchError: Weights are missing, left over or of another shape; all of them are listed.
        CheckpointError: The file is missing or damaged.
    """
    template = abstract_model(model_type, config)
    ours = _own_names(template)
    rules = [_Rule(pattern, value) for pattern, value in key_map.items()]
    stored: dict[str, StoredArray] = {}
    weights: dict[str, PublishedWeight] = {}
    taken: dict[tuple[Any, ...], str] = {}
    for name, array in stored_arrays(path).items():
        rule = next((rule for rule in rules if rule.matches(name)), None)
        if rule is not None and rule.to is None:
            continue
        stored[name] = array
        weight = ours.get(name if rule is None else rule.renamed(name))
        if weight is None:
            continue  # which is told below, with all others that are left over
        if weight.path in taken:
            raise CheckpointMismatchError(f"{path}: {taken[weight.path]} and {name} become the same weight")
        taken[weight.path] = name
        axes = weight.axes if rule is None or rule.axes is None else rule.axes
        if axes is not None and len(axes) != len(array.shape):
            raise ConfigError(f"{name}: axes: expected {len(array.shape)} of them, got {list(axes)}")
        weights[name] = weight._replace(axes=axes)
    for name, weight in _by_path(template).items():
        if weight.path not in taken:
            weights[name] = weight  # which is told to be missing
    return restored(template, stored, weights, str(path), dtype=dtype)


def read_map(path: Path) -> dict[str, Any]:
    """A map from a file of JSON.

    Raises:
        ConfigError: It is no such map; names the entry.
    """
    key_map = read_json(path)
    for pattern, value in key_map.items():
        try:
            _Rule(pattern, value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return key_map


class _Rule:
    """One entry of a map.

    Args:
        pattern: A name, with `*` for any part.
        value: What becomes of it.

    Raises:
        ConfigError: It is neither a name, nor an object of a name and axes, nor null.
    """

    def __init__(self, pattern: str, value: Any):
        self.to, self.axes = value, None
        if isinstance(value, dict):
            if not isinstance(value.get("to"), str) or value.keys() - {"to", "axes"}:
                raise ConfigError(f'{pattern}: expected {{"to": name, "axes": order}}, got {value}')
            self.to, axes = value["to"], value.get("axes")
            if axes is not None and not (isinstance(axes, list) and sorted(axes) == [*range(len(axes))]):
                raise ConfigError(f"{pattern}: axes: expected an order such as [1, 0], got {axes}")
            self.axes = None if axes is None else tuple(axes)
        elif value is not None and not isinstance(value, str):
            raise ConfigError(f"{pattern}: expected a name, an object or null, got {value!r}")
        if self.to is not None and self.to.count("*") > pattern.count("*"):
            raise ConfigError(f"{pattern}: {self.to} has more * than the pattern")
        parts = [re.escape(part) for part in pattern.split("*")]
        self._pattern = re.compile("(.*?)".join(parts))

    def matches(self, name: str) -> bool:
        """Whether it is about this name."""
        return self._pattern.fullmatch(name) is not None

    def renamed(self, name: str) -> str:
        """What a name that matches becomes."""
        match = self._pattern.fullmatch(name)
        assert match is not None  # as it was asked before
        first, *others = str(self.to).split("*")
        return first + "".join(part + rest for part, rest in zip(match.groups(), others, strict=False))


def _by_path(template: nnx.Module) -> dict[str, PublishedWeight]:
    """The weights by the names that they have in the state."""
    return {
        ".".join(map(str, path)): PublishedWeight(path)
        for path, _ in nnx.to_flat_state(nnx.state(template, nnx.Param))
    }


def _own_names(template: nnx.Module) -> dict[str, PublishedWeight]:
    """The weights by all names that a map may give them."""
    published = template.published_weights() if isinstance(template, PublishedWeights) else {}
    return published | _by_path(template)
