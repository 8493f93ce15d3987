r"""The user's cache directory: what one process found out and the next one need not.

Some entries are compiled code, which runs when it is loaded, so the directory must be the user's own and
nobody else may write to it; any other is refused. It is the first of `$ARTIFEX_CACHE_DIR`,
`$XDG_CACHE_HOME/artifex` and `~/.cache/artifex` (macOS: `~/Library/Caches/artifex`, Windows:
`%LOCALAPPDATA%\artifex`), and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from artifex.generative_models.core.errors import CacheError

_log = logging.getLogger("artifex")
_switching = threading.Lock()

MAX_BYTES = 1 << 30

if sys.platform == "win32":
    _READ = os.O_RDONLY | os.O_BINARY
else:
    _READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def cache_dir() -> Path:
    """The directory, which is made where it is missing.

    Raises:
        CacheError: It cannot be made, is no directory, belongs to someone else, or others may write to it.
    """
    try:
        path = _location()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise CacheError(f"no cache directory: {error}; set ARTIFEX_CACHE_DIR to one of your own") from error
    if not _is_private(status):
        raise CacheError(
            f"the cache directory {path} must be yours, and nobody else may write to it, since what it holds "
            f"is run: chmod go-w {path}, or set ARTIFEX_CACHE_DIR to one of your own"
        )
    return path


def read(name: str) -> bytes | None:
    """An entry's content; None where there is none.

    Args:
        name: Its name, `/` between the parts.

    Raises:
        CacheError: The directory is refused, or the entry is no file, cannot be read, belongs to someone
            else, or others may write to it.
    """
    path = cache_dir() / name
    try:
        with os.fdopen(os.open(path, _READ), "rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and _is_private(status)):
                raise CacheError(f"{path} in the cache is not a file that only you can write; delete it")
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"cannot read {path} in the cache: {error.strerror}; delete it") from error
    with contextlib.suppress(OSError):  # a cache that cannot be written to serves all the same
        os.utime(path)  # entries are dropped in the order of their last use
    return content


def write(name: str, content: bytes) -> None:
    """Makes or replaces an entry; nobody ever sees a part of it.

    The entries used longest ago are then dropped until the others take at most `MAX_BYTES` bytes.

    Args:
        name: Its name, `/` between the parts.
        content: What `read` then gives.

    Raises:
        CacheError: The directory is refused or cannot be written to.
    """
    root = cache_dir()
    path = root / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CacheError(f"cannot write {path} in the cache: {error.strerror}") from error
    _prune(root)


def try_read(name: str) -> bytes | None:
    """`read` for those who can do without: a cache that cannot be used is a warning, and has no entries."""
    try:
        return read(name)
    except CacheError as error:
        _warn_once(str(error))
        return None


def try_write(name: str, content: bytes) -> None:
    """`write` for those who can do without: a cache that cannot be used is a warning."""
    try:
        write(name, content)
    except CacheError as error:
        _warn_once(str(error))


def enable_compilation_cache() -> Path | None:
    """Has JAX keep everything it compiles from now on, in the user's cache directory.

    Where a directory of JAX's own choosing is set already (`JAX_COMPILATION_CACHE_DIR`), that one stays.

    Returns:
        The directory in use; None where the cache directory cannot be used, which is a warning.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None:
        return Path(chosen)
    try:
        path = cache_dir() / "xla"
        path.mkdir(mode=0o700, exist_ok=True)
    except (CacheError, OSError) as error:
        _warn_once(str(error))
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # else it stays off where something was compiled before
    return path


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Has JAX compile anew: on the CPU, what it takes from its cache runs no more once serialised again."""
    with _switching:
        enabled = jax.config.values["jax_enable_compilation_cache"]
        _switch_compilation_cache(False)
        try:
            yield
        finally:
            _switch_compilation_cache(enabled)


def _switch_compilation_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # else JAX goes by what it found when it first compiled


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("going on without the cache: %s", reason)


def _location() -> Path:
    chosen = os.environ.get("ARTIFEX_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        caches = Path("~/Library/Caches")
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return caches.expanduser().absolute() / "artifex"


def _is_private(status: os.stat_result) -> bool:
    if sys.platform == "win32":
        return True  # %LOCALAPPDATA% is the user's own, and modes say nothing
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _prune(root: Path) -> None:
    """Drops the entries used longest ago; others may do the same at the same time."""
    entries = []
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = Path(directory, name)
                status = path.lstat()
                entries.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in entries) - MAX_BYTES
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
