"""Where the executor's weights and rows lie: on one device, or on a mesh of one process or of many."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sharding import AxisNames, Shard, WeightLayout

if TYPE_CHECKING:
    from jaxtyping import Array


class Placement:
    """The devices of an executor, and the part of them that this process has.

    On a mesh of several processes each feeds and receives its own rows: equal parts of the `data` axis, which
    are numbered by where they lie on it.

    Args:
        mesh: Devices with a `data` axis; None is the default device.
        shard: How weights are cut over the mesh, as for `WeightLayout`.

    Raises:
        InputError: The mesh has no `data` axis, its processes are not all those of the job or do not have
            equal parts of it, or weights are to be cut without a mesh.
    """

    def __init__(self, mesh: Mesh | None, shard: Shard | None):
        if mesh is not None and "data" not in mesh.axis_names:
            raise InputError(f"mesh: expected an axis named 'data', got {mesh.axis_names}")
        if mesh is None and shard is not None:
            raise InputError("shard: weights are cut over a mesh; pass mesh= too")
        self.mesh = mesh
        self.shard = shard
        self.cuts_weights = shard is not None  # over the mesh, rather than on every device
        self.spans_processes = False
        self.num_parts, self.part = 1, 0  # of the rows, among processes
        self.num_shards = 1  # of the rows that this process feeds
        if mesh is None:
            self.layout = None
            device = SingleDeviceSharding(DeviceManager().default_device)
            self.rows: jax.sharding.Sharding = device
            self.local_rows: jax.sharding.Sharding = device
            self.everywhere: jax.sharding.Sharding = device
            self._local_everywhere: jax.sharding.Sharding = device
        else:
            self.layout = WeightLayout(mesh, shard)
            self.rows = NamedSharding(mesh, PartitionSpec("data"))
            self.everywhere = NamedSharding(mesh, PartitionSpec())
            self._take_part(mesh)
            local = mesh.local_mesh if self.spans_processes else mesh
            self.local_rows = NamedSharding(local, PartitionSpec("data"))
            self._local_everywhere = NamedSharding(local, PartitionSpec())
        self.devices: list[Any] = sorted(self.rows.device_set, key=lambda device: device.id)
        self.on_cpu = any(device.platform == "cpu" for device in self.devices)
        self.parallel_executions = num_cores() if self.on_cpu and len(self.devices) == 1 else 1
        self._only_one = jax.default_backend() == "cpu" and len(jax.devices()) == 1

    def _take_part(self, mesh: Mesh) -> None:
        axis = mesh.axis_names.index("data")
        along_data = np.moveaxis(mesh.devices, axis, 0).reshape(mesh.devices.shape[axis], -1)
        places: dict[int, set[int]] = {}
        for place, devices in enumerate(along_data):
            for device in devices:
                places.setdefault(device.process_index, set()).add(place)
        self.spans_processes = len(places) > 1
        parts = sorted({tuple(sorted(part)) for part in places.values()})
        self.num_parts = len(parts)
        self.num_shards = len(along_data) // len(parts)
        whole = sorted(place for part in parts for place in part) == list(range(len(along_data)))
        if not whole or any(part[-1] - part[0] != self.num_shards - 1 for part in parts):
            raise InputError(
                "mesh: expected each process to have an equal, connected part of the 'data' axis"
            )
        if self.spans_processes and len(places) != jax.process_count():
            raise InputError(
                f"mesh: expected devices of one process or of all {jax.process_count()}, got {len(places)}"
            )
        if jax.process_index() not in places:
            raise InputError("mesh: expected devices of this process among the others")
        self.part = parts.index(tuple(sorted(places[jax.process_index()])))

    def weight_sharding(self, shape: Sequence[int], names: AxisNames) -> jax.sharding.Sharding:
        """Where a weight goes, given the names of its axes, if there are any."""
        return self.rows if self.layout is None else self.layout.sharding(shape, names)

    def put_weight(self, weight: Any, sharding: jax.sharding.Sharding) -> Array:
        """Puts a weight where it goes; of one that is in this process, its devices get their parts."""
        if not self.spans_processes or (isinstance(weight, jax.Array) and not weight.is_fully_addressable):
            return jax.device_put(weight, sharding)
        if jnp.issubdtype(weight.dtype, jax.dtypes.prng_key):
            words = self.put_weight(jax.random.key_data(weight), sharding)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(weight))
        host = np.asarray(weight)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    def rows_of_this_process(self, num_rows: int, size: int) -> range:
        """Which rows of a job this process feeds: whole batches, as equally many; the last gets the rest."""
        full = num_rows // size
        share = -(-full // self.num_parts)
        start = size * min(self.part * share, full)
        is_last = self.part == self.num_parts - 1
        return range(start, num_rows if is_last else size * min((self.part + 1) * share, full))

    def to_rows(self, batch: jax.Array) -> jax.Array | np.ndarray:
        """Puts a whole batch that is on some device where an executable takes it from."""
        if self.spans_processes:
            return np.asarray(batch)
        return batch if self._only_one or batch.sharding == self.rows else jax.device_put(batch, self.rows)

    def put_rows(self, rows: np.ndarray) -> Any:
        """What an executable takes for this process's rows [rows, ...] of a batch of many processes."""
        shape = (len(rows) * self.num_parts, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self.rows, rows, shape)

    def take_rows(self, batch: Array) -> Array:
        """The rows of this process, of a batch of many that an executable gave."""
        shape = (batch.shape[0] // self.num_parts, *batch.shape[1:])
        shards = [shard.data for shard in batch.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, self.local_rows, shards)

    def put_result(self, rows: np.ndarray) -> Array:
        """Hands host rows [rows, ...] to this process's devices; over the mesh where they divide."""
        divides = len(rows) % self.num_shards == 0
        return jax.device_put(rows, self.local_rows if divides else self._local_everywhere)


@functools.cache
def num_cores() -> int:
    """How many executions compute at once on the CPU."""
    return min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, 8)
