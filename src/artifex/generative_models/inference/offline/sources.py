"""Pictures and arrays from disk, read as they are needed."""

from __future__ import annotations

import hashlib
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from artifex.generative_models.core.directories import local_path
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.images import (
    DAMAGED,
    PICTURE_CHANNELS,
    decode_ahead,
    decode_picture,
    picture_size,
)

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from artifex.generative_models.inference.offline.parquet_pictures import ParquetPictures

_SINGLE_FILES, _FILES_AT_ONCE = 4096, 64  # up to so many are told apart one by one
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MAX_COMPRESSED_BYTES = 1 << 30
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in files of their own.

    Args:
        paths: The files.
        shape: Shape (H, W, C) of a picture.
        resize: Resizes pictures of another size; otherwise they are an error.
        left_out: What else the folders hold, in words; nothing if that is nothing.
    """

    paths: Sequence[Path]
    shape: tuple[int, ...]
    resize: bool
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The pictures from number `first` on, uint8 [1, H, W, C] each, decoded a few ahead."""
        pictures = decode_ahead(self.paths[first:stop], self._read, math.prod(self.shape))
        return (picture[None] for picture in pictures)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the pictures."""
        return np.dtype(np.uint8)

    def identity(self) -> dict[str, Any]:
        """Digests of the files' names, and of their sizes and times of change, a few files at a time.

        So a job that was stopped by a broken file goes on when it is mended: its rows were not written.
        """
        size = 1 if len(self) <= _SINGLE_FILES else _FILES_AT_ONCE
        stats = [repr(_stat(path)).encode() for path in self.paths]
        changes = [
            hashlib.sha256(b"".join(stats[i : i + size])).hexdigest()[:12] for i in range(0, len(self), size)
        ]
        names = hashlib.sha256(repr((self.resize, [str(path) for path in self.paths])).encode())
        return {"files": len(self), "names": names.hexdigest(), "rows_a_change": size, "changes": changes}

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return decode_picture(path, self.shape, name=str(path), resize=self.resize)


@dataclass(frozen=True)
class ArrayFile:
    """Rows in one array on disk."""

    path: Path
    array: NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The rows from number `first` on."""
        return self.array[first:stop]

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the array."""
        return self.array.dtype

    def identity(self) -> list[Any]:
        """The file's name, size and time of change."""
        return _stat(self.path)


Shape: TypeAlias = "tuple[int | None, ...]"  # None stands for any size
Pictures: TypeAlias = "PictureFiles | ArrayFile | ParquetPictures"


def open_pictures(
    paths: Sequence[Path], shape: tuple[int, ...], *, resize: bool = False, column: str = "image"
) -> Pictures:
    """Pictures from folders, files, Parquet files or folders of them, or one `.npy` or `.npz` array.

    Args:
        paths: Folders are searched for Parquet files or else for pictures, in the order of their names.
        shape: Shape (H, W, C) of the model's pictures.
        resize: Resizes pictures of another size.
        column: Of Parquet files; it holds encoded pictures, or their numbers.

    Raises:
        InputError: There are none, an array's shape does not fit, there is no such column, or what reads
            Parquet is not installed.
        InputTypeError: An array's dtype is neither uint8 nor floating-point.
        OSError: A path is not there or cannot be read.
    """
    (group,) = open_by_size(paths, shape, resize=resize, column=column)
    return group.pictures


@dataclass(frozen=True)
class SizeGroup:
    """Pictures of one size.

    Args:
        pictures: The pictures.
        numbers: The number of each among all pictures.
        shape: Shape (H, W, C) of each.
    """

    pictures: Pictures
    numbers: Sequence[int]
    shape: tuple[int, ...]


def open_by_size(
    paths: Sequence[Path], shape: Shape, *, resize: bool = False, column: str = "image"
) -> list[SizeGroup]:
    """Pictures as `open_pictures` opens them, of several sizes where the model takes any.

    Args:
        shape: Shape (H, W, C) of the model's pictures; None for a height and a width that may be any. Those
            of Parquet files may not.

    The others, and errors, are those of `open_pictures`.
    """
    paths = list(map(local_path, paths))
    parquet = {path: _parquet_files(path) for path in paths}
    if any(parquet.values()):
        others = [path for path, files in parquet.items() if not files]
        if others:
            raise InputError(f"expected either Parquet files or other pictures, got {others[0]} as well")
        try:
            from artifex.generative_models.inference.offline.parquet_pictures import open_parquet
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed: pip install 'artifex[parquet]'") from error
        if None in shape:
            raise InputError(f"{paths[0]}: Parquet files hold pictures of one size; use --resize")
        tables = [file for path in paths for file in parquet[path]]
        return [_alone(open_parquet(tables, column, _fixed(shape), resize=resize), _fixed(shape))]
    if any(_is_array(path) for path in paths):
        if len(paths) > 1:
            raise InputError("expected either one .npy or .npz array or picture files, got several paths")
        rows = _open_picture_array(paths[0], shape)
        return [_alone(rows, rows.array.shape[1:])]
    if shape[-1] not in PICTURE_CHANNELS:
        raise InputError(f"a model of {shape[-1]} channels takes pictures from .npy and .npz arrays only")
    files: list[Path] = []
    notes: list[str] = []
    for path in paths:
        files += _picture_files(path, notes) if path.is_dir() else [_there(path)]
    left_out = "; ".join(notes)
    if None not in shape:
        return [_alone(PictureFiles(files, _fixed(shape), resize, left_out), _fixed(shape))]
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, file in enumerate(files):
        by_size.setdefault(picture_size(file), []).append(number)
    groups = []
    for size, numbers in by_size.items():
        of_size = (*size, _fixed(shape[2:])[0])
        pictures = PictureFiles([files[i] for i in numbers], of_size, resize=False, left_out=left_out)
        groups.append(SizeGroup(pictures, numbers, of_size))
    return groups


def open_picture(address: str, shape: Shape, *, resize: bool = False) -> NDArray[Any]:
    """One picture [H, W, C]: a picture file, or a row of an array or Parquet file such as `digits.npz:3`."""
    name, _, row = address.rpartition(":")
    if not row.isdecimal() or not (_is_array(Path(name)) or _parquet_files(Path(name))):
        name, row = address, "0"
    (group,) = open_by_size([Path(name)], shape, resize=resize)
    pictures = group.pictures
    if int(row) >= len(pictures):
        raise InputError(f"{address}: there are {len(pictures)} pictures, counted from 0")
    return next(iter(pictures.rows(int(row), int(row) + 1))).reshape(group.shape)


def open_array(path: Path, shape: Shape, dtype: DTypeLike) -> ArrayFile:
    """Rows [rows, *shape] from a `.npy` or `.npz` array; None is any size.

    Args:
        dtype: What they are to become: one of integers takes integers, others take floating-point numbers.

    Raises:
        InputError: It is no array, or its shape does not fit.
        InputTypeError: Its dtype is of another kind.
        OSError: The file is not there or cannot be read.
    """
    array = _map(local_path(path))
    kinds, wanted = (
        ("iu", "an array of integers") if np.dtype(dtype).kind in "iu" else ("f", "a floating-point array")
    )
    if array.dtype.kind not in kinds:
        raise InputTypeError(f"{path}: expected {wanted}, got {array.dtype}")
    _check_shape(path, array, shape)
    return ArrayFile(path, array)


def _alone(pictures: Pictures, shape: tuple[int, ...]) -> SizeGroup:
    return SizeGroup(pictures, range(len(pictures)), shape)


def _fixed(shape: Shape) -> tuple[int, ...]:
    """A shape of which no size may be any."""
    return tuple(size for size in shape if size is not None)


def _open_picture_array(path: Path, shape: Shape) -> ArrayFile:
    array = _map(path)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputTypeError(
            f"{path}: expected uint8 pictures, or floating-point ones in the model's range; got {array.dtype}"
        )
    if shape[-1] == 1 and array.ndim == 3 and _fits(array.shape[1:], shape[:2]):
        array = array[..., None]
    _check_shape(path, array, shape)
    return ArrayFile(path, array)


def _fits(found: tuple[int, ...], shape: Shape) -> bool:
    """Whether a shape is another, whose sizes may be any where they are None."""
    return len(found) == len(shape) and all(size in (None, n) for n, size in zip(found, shape, strict=True))


def _check_shape(path: Path, array: NDArray[Any], shape: Shape) -> None:
    if array.ndim == 0 or not _fits(array.shape[1:], shape) or array.size == 0:
        axes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{path}: expected shape [rows, {axes}], got {list(array.shape)}")


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a path stands for; none where it stands for something else."""
    if path.is_dir():
        found = (file for file in path.rglob("*.parquet") if file.is_file())
        hidden = (".", "_")  # as those who write Parquet have what is not theirs to be read
        return sorted(
            file
            for file in found
            if not any(part.startswith(hidden) for part in file.relative_to(path).parts)
        )
    return [path] if path.suffix.lower() == ".parquet" else []


def _there(path: Path) -> Path:
    path.stat()
    return path


def _picture_files(path: Path, notes: list[str]) -> list[Path]:
    """The pictures in a folder; what else is there is noted."""
    files, left_out = [], Counter[str]()
    for file in sorted(path.iterdir()):
        if file.name.startswith("."):  # such as what macOS keeps of a.png in ._a.png
            left_out["hidden"] += 1
        elif file.is_dir():
            left_out["folder"] += 1
        elif file.suffix.lower() in _SUFFIXES:
            files.append(file)
        else:
            left_out[file.suffix or "without a suffix"] += 1
    if left_out["folder"] > 1:
        left_out["folders"] = left_out.pop("folder")
    others = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
    if not files:
        there = f"; there are {others}" if others else ""
        raise InputError(f"{path}: no pictures in this folder ({', '.join(_SUFFIXES)}){there}")
    if others:
        notes.append(f"{path}: {len(files):,} pictures; left out: {others}")
    return files


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in (".npy", ".npz") and not path.is_dir()


def _stat(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def _map(path: Path) -> NDArray[Any]:
    """An array on disk, memory-mapped unless it is compressed. Nothing is ever unpickled."""
    try:
        if path.suffix.lower() == ".npz":
            return _map_member(path)
        return np.lib.format.open_memmap(path, mode="r")
    except (InputError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, zipfile.BadZipFile, *DAMAGED) as error:
        raise InputError(f"{path}: not an array that can be read: {error}") from error


def _map_member(path: Path) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = _the_array(path, archive)
        if member.compress_type != zipfile.ZIP_STORED:
            return _decompress(path, archive, member)
        file.seek(member.header_offset)
        *_, name_bytes, extra_bytes = struct.unpack("<26x2H", file.read(_LOCAL_HEADER_BYTES))
        file.seek(name_bytes + extra_bytes, 1)
        shape, fortran_order, dtype = _read_header(file)
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape, order=order)


def _the_array(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if "images" in members:
        return members["images"]
    if len(members) != 1:
        raise InputError(
            f"{path}: expected one array, or one named 'images'; it has {', '.join(members) or 'none'}"
        )
    return next(iter(members.values()))


def _decompress(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.file_size > _MAX_COMPRESSED_BYTES:
        raise InputError(
            f"{path}: {member.file_size:,} bytes once decompressed, which cannot be memory-mapped; "
            "save it with np.save or np.savez"
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    lib = np.lib.format
    read = lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran_order, dtype
