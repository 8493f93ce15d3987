"""How weights lie on a mesh: whole on each device, or cut along axes that layers name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Hashable

Shard = str | Mapping[str, str | None]
AxisNames = Sequence[str | None]


def logical_axes(*names: str | None) -> dict[str, Any]:
    """Metadata that names the axes of a weight, for `kernel_metadata` and its like in Flax NNX.

    The weight itself stays where it is made: without the second entry Flax asks for a mesh then and there.

    Args:
        *names: One an axis; None for an axis that is never cut.
    """
    return {"out_sharding": names, "eager_sharding": False}


def shard_identity(shard: Shard | None) -> Hashable:
    """What tells two ways to cut weights over one mesh apart."""
    return tuple(sorted(shard.items())) if isinstance(shard, Mapping) else shard


@dataclass(frozen=True)
class WeightLayout:
    """Where each weight goes on a mesh.

    Args:
        mesh: The devices.
        shard: None puts every weight whole on every device. The name of a mesh axis cuts each weight over
            it: along the first axis that its layer names and that divides; where a layer names none, along
            the largest that divides. Rules, names of layers' axes to mesh axes, cut those and no others.

    Raises:
        InputError: The mesh has no such axis.

    References:
        Shazeer et al., *Mesh-TensorFlow: Deep Learning for Supercomputers*, 2018, section 3: named
        dimensions and layouts. https://arxiv.org/abs/1811.02084
    """

    mesh: Mesh
    shard: Shard | None = None

    def __post_init__(self) -> None:
        wanted = {self.shard} if isinstance(self.shard, str) else set((self.shard or {}).values()) - {None}
        missing = sorted(wanted - set(self.mesh.axis_names), key=str)
        if missing or "data" in wanted:
            raise InputError(
                f"shard: expected axes of the mesh besides 'data', which rows take; {self.mesh.axis_names} "
                f"has no {missing or 'other'}"
            )

    def sharding(self, shape: Sequence[int], names: AxisNames = ()) -> NamedSharding:
        """Where a weight goes.

        Args:
            shape: Its shape.
            names: The names of its axes, if its layer gives any.

        Raises:
            InputError: A rule's mesh axis does not divide the weight's.
        """
        if isinstance(self.shard, str):
            cut = self._cut_along(shape, names)
            return self._named([self.shard if axis == cut else None for axis in range(len(shape))])
        rules = self.shard or {}
        axes = [None if name is None else rules.get(name) for name in names]
        for size, name, axis in zip(shape, names, axes, strict=False):
            if axis is not None and size % self.mesh.shape[axis]:
                raise InputError(
                    f"shard: {name!r}: the {self.mesh.shape[axis]} devices of {axis!r} do not divide {size}"
                )
        return self._named(axes)

    def _cut_along(self, shape: Sequence[int], names: AxisNames) -> int | None:
        parts = self.mesh.shape[self.shard]
        named = [axis for axis, name in enumerate(names) if name is not None]
        by_size = sorted(range(len(shape)), key=lambda axis: -shape[axis])
        candidates = [axis for axis in named or by_size if shape[axis] % parts == 0]
        return candidates[0] if candidates and 0 not in shape else None

    def _named(self, axes: Sequence[str | None]) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))
