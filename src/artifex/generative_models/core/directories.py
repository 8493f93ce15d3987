"""Directories that people name: on this machine, and what is in those that are not ours."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

from artifex.generative_models.core.errors import InputError

_REMEDIES = {  # of files by their names: what they are, and what to do
    r"checkpoint_\d+|.*\.msgpack": (
        "weights that Flax wrote as msgpack",
        "flax.serialization.msgpack_restore reads them; nnx.update a model with them, and export_model it",
    ),
    r".*\.safetensors": (
        "safetensors weights",
        "safetensors.flax.load_file reads them; nnx.update a model with them, and export_model it",
    ),
    r".*\.(bin|pt|pth|ckpt)": (
        "PyTorch weights",
        "convert them where PyTorch is, to safetensors or to a checkpoint of Orbax",
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


def foreign_weights(path: Path) -> str | None:
    """What weights a directory holds, or a file, that are in no format of ours, and what to do; or None."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    names = sorted(file.name for file in files)
    for pattern, (what, remedy) in _REMEDIES.items():
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            return f"it holds {what} ({', '.join(found[:3])}): {remedy}"
    return None
