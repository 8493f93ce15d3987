"""Directories that people name: on this machine, and what is in those that are not ours."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path

from artifex.generative_models.core.errors import InputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_REMEDIES = {  # of files by their names: what they are, and what to do
    r"checkpoint_\d+|.*\.msgpack": (
        "weights that Flax wrote as msgpack",
        "flax.serialization.msgpack_restore reads them; nnx.update a model with them, and export_model it",
    ),
    r".*\.safetensors": (
        "safetensors weights",
        "`artifex convert` makes an export of them, with a family, its config and a map of names",
    ),
    r".*\.(bin|pt|pth|ckpt)": (
        "PyTorch weights",
        "pickles can run programs and are never read; where PyTorch is, this makes safetensors of them, "
        'which `artifex convert` takes: python -c "import torch, safetensors.torch as s; '
        "s.save_file(torch.load('FILE', weights_only=True), 'weights.safetensors')\"",
    ),
    r".*\.(npz|npy|pkl|pickle|h5|keras)": (
        "arrays in a file of their own",
        "nnx.update a model with them, and export_model it",
    ),
}


def local_path(path: str | PathLike[str]) -> Path:
    """A path on this machine, `~` resolved.

    Raises:
        InputError: It is an address, such as gs://bucket/model.
    """
    text = fspath(path)
    if match := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/+", text):
        raise InputError(
            f"{text}: {match[0].rstrip('/')}// addresses are not read or written; copy or mount it here first"
        )
    return Path(text).expanduser()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty directory that takes the target's name in the end, in one step, unless something fails.

    So nobody ever sees half a directory, and one that was there stays whole until the new one is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def name_of(path: str | PathLike[str]) -> str:
    """The name that a path gives what is there: the last part that was typed, whatever that is a link to."""
    local = local_path(path)
    return local.resolve().name if local.name in ("", "..") else local.name


def real_path(path: Path) -> Path:
    """A path with its links followed, but for those that only the kernel can follow, as of /proc/self/fd."""
    real = path.resolve()
    try:
        return real if real.samefile(path) else path.absolute()
    except OSError:
        return path.absolute()


def _put_in_place(temporary: Path, target: Path) -> None:
    """Gives `temporary` the name `target`; what was there takes the temporary name."""
    if not target.exists():
        temporary.rename(target)
    elif not _exchange(temporary, target):
        previous = target.with_name(f".{target.name}.{os.getpid()}.previous")
        target.rename(previous)
        temporary.rename(target)
        shutil.rmtree(previous)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two directories in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    return renameat2(_AT_FDCWD, bytes(a), _AT_FDCWD, bytes(b), _RENAME_EXCHANGE) == 0


def foreign_weights(path: Path) -> str | None:
    """What weights a directory holds, or a file, that are in no format of ours, and what to do; or None."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    names = sorted(file.name for file in files)
    for pattern, (what, remedy) in _REMEDIES.items():
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            return f"it holds {what} ({', '.join(found[:3])}): {remedy}"
    return None
