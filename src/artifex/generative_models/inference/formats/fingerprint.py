"""What compiled code depends on, told by looks: files by their stat, machine and JAX by their settings.

An executable, or what tracing found out, may be used again only where all of this is as it was.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jaxlib

from artifex import __version__
from artifex.generative_models.core.numerics import numerics

Stat = list[int]  # bytes, nanoseconds of the last change of content and of anything, inode

_STARTED = time.time_ns()
_PREFIXES = ("JAX_", "XLA_", "TF_XLA_", "LIBTPU_")


def stat_of(path: str | Path) -> Stat | None:
    """A file's looks; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - over a thousand times a start, and twice as fast
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def stats_under(directory: Path) -> dict[str, Stat | None] | None:
    """The looks of every file below a directory, by relative name; None where a link leads out of it."""
    found = {}
    for parent, directories, files in os.walk(directory):
        if any(Path(parent, name).is_symlink() for name in directories):
            return None
        for name in files:
            path = Path(parent, name)
            found[str(path.relative_to(directory))] = stat_of(path)
    return found


def loaded_files() -> set[str]:
    """The files of all modules that are loaded, and the folders where packages are installed."""
    files = (getattr(module, "__file__", None) for module in sys.modules.copy().values())
    folders = (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    return {file for file in files if isinstance(file, str)}.union(folders)


def unchanged_since_start(stats: Iterable[Stat | None]) -> bool:
    """Whether files look like those that this process loaded: they are there, and older than it."""
    return all(stat is not None and max(stat[1:3]) < _STARTED for stat in stats)


def environment(device: jax.Device) -> list[Any]:
    """The machine, versions and settings that executables for a device depend on, as JSON takes them."""
    return [
        [__version__, jax.__version__, jaxlib.__version__, sys.version, sys.prefix],
        [device.platform, device.device_kind, device.id, device.client.platform_version],
        [len(jax.devices()), jax.process_count(), jax.process_index()],
        [os.cpu_count(), len(os.sched_getaffinity(0)) if sys.platform == "linux" else None, _cpu()],
        sorted(item for item in os.environ.items() if item[0].startswith(_PREFIXES)),
        [str(value) for value in numerics().values()],
    ]


def _cpu() -> str:
    """What the CPU can do: home directories are shared between machines that differ in it."""
    if sys.platform == "linux":
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):  # on x86 and on ARM
                    return line
    return str(platform.uname())
