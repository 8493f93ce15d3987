"""CPU cores for one process alone."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def claimed_cores(count: int) -> Iterator[None]:
    """Keeps this process to cores that no other process has claimed, for the length of the block.

    A process that is killed gives its cores back. Where too few are free it may go on using all.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        taken: set[int] = set()
        for core in sorted(before):
            if len(taken) < count and (lock := _lock(core)) is not None:
                stack.enter_context(lock)
                taken.add(core)
        if len(taken) < count:
            stack.close()
            taken = before
        _keep_to(taken)
        try:
            yield
        finally:
            _keep_to(before)


def _lock(core: int) -> BinaryIO | None:
    folder = Path(tempfile.gettempdir()) / f"artifex-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / str(core)).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _keep_to(cores: set[int]) -> None:
    """Keeps all threads there are to cores, and so those that they start."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
