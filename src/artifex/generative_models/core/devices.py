"""The devices of this process."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from artifex.generative_models.core.errors import DeviceError, InputError


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in bytes; None where the backend does not report it, as on the CPU."""

    device: jax.Device
    bytes_in_use: int | None
    peak_bytes_in_use: int | None
    bytes_limit: int | None


class DeviceManager:
    """The accelerators of this process, or its CPU devices where there is none."""

    @property
    def devices(self) -> list[jax.Device]:
        """All devices of the default backend, of all processes of the job.

        Raises:
            DeviceError: No platform of those that are asked for is there.
        """
        try:
            return jax.devices()
        except (RuntimeError, AssertionError) as error:  # which JAX raises, at times without a word
            wanted = f"no devices of JAX_PLATFORMS={jax.config.values['jax_platforms']}"
            raise DeviceError(str(error).strip().partition("\n")[0] or wanted) from error

    @property
    def default_device(self) -> jax.Device:
        """Where arrays go that nobody places."""
        self.devices  # noqa: B018 - says what is wrong with them, if anything is
        return next(iter(jax.device_put(np.zeros(())).devices()))

    def mesh(self, num_devices: int | None = None, *, model_devices: int | None = None) -> Mesh:
        """A mesh with an axis `data`, over which an executor lays rows, and where asked for one `model`.

        Args:
            num_devices: The first so many devices; None is all, of all processes.
            model_devices: Over how many devices each copy of the weights is to be cut: size of the axis
                `model`. None leaves that axis out.

        Raises:
            InputError: There are not so many, or the copies do not divide them.
        """
        devices = self.devices
        count = len(devices) if num_devices is None else num_devices
        if not 1 <= count <= len(devices):
            raise InputError(f"num_devices: expected 1 to {len(devices)}, the devices there are; got {count}")
        if model_devices is None:
            return Mesh(np.asarray(devices[:count]), ("data",))
        if model_devices < 1 or count % model_devices:
            raise InputError(
                f"model_devices: expected a divisor of {count}, the devices; got {model_devices}"
            )
        return Mesh(np.asarray(devices[:count]).reshape(-1, model_devices), ("data", "model"))

    def memory(self) -> list[DeviceMemory]:
        """Memory figures of each local device."""
        facts = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
        return [
            DeviceMemory(device, *map((device.memory_stats() or {}).get, facts))
            for device in jax.local_devices()
        ]

    def free_memory(self) -> int | None:
        """Bytes that a program may still take: of the fullest device, or of the host if that computes.

        None where the system does not tell.
        """
        free = [
            memory.bytes_limit - (memory.bytes_in_use or 0)
            for memory in self.memory()
            if memory.bytes_limit is not None
        ]
        return min(free, default=_free_host_memory())

    def cleanup(self) -> int:
        """Frees device arrays that only unreachable reference cycles still hold.

        Arrays and compiled executables that anything can still reach are left alone.

        Returns:
            Bytes freed.
        """
        before = _live_bytes()
        gc.collect()
        return before - _live_bytes()


def _free_host_memory() -> int | None:
    """What Linux says is available, within the limits of a container."""
    if sys.platform != "linux":
        return None
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    try:
        limit, used, stat = (
            (group / name).read_text().strip() for name in ("memory.max", "memory.current", "memory.stat")
        )
    except OSError:  # no control group, or one of another kind
        return free
    if limit == "max":
        return free
    cached = int(dict(line.split() for line in stat.splitlines()).get("inactive_file", 0))  # given up at need
    return min(free, int(limit) - int(used) + cached)


def _live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())
