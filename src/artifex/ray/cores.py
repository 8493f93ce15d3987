"""CPU cores for one process alone."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger("artifex")


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
        folder = _folder()
        if folder is not None:
            stack.callback(os.close, folder)
            for core in sorted(before):
                if len(taken) < count and (lock := _lock(folder, core)) is not None:
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


def _folder() -> int | None:
    """The folder of this user's claims, opened; None if what has its name is not that.

    Everybody may write beside it: a folder of another user, or a link, would have us write where they choose.
    """
    path = Path(tempfile.gettempdir()) / f"artifex-cores-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        _log.warning("cores are not claimed: %s", error)
        return None
    status = os.fstat(folder)
    if status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    os.close(folder)
    _log.warning("cores are not claimed: %s belongs to somebody else, or is open to others", path)
    return None


def _lock(folder: int, core: int) -> BinaryIO | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        file = os.fdopen(os.open(str(core), flags, 0o600, dir_fd=folder), "r+b")
    except OSError as error:
        _log.warning("core %d is not claimed: %s", core, error)
        return None
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
