"""Pictures in a column of Parquet files, read as they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.images import PICTURE_CHANNELS, decode_picture

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ParquetPictures:
    """Pictures in a column of Parquet files.

    Args:
        paths: The files.
        starts: Number of each one's first row, and of the row after the last.
        column: Holds encoded pictures, or their numbers as tensors or lists.
        shape: Shape (H, W, C) of a picture.
        resize: Resizes encoded pictures of another size; otherwise they are an error.
    """

    paths: Sequence[Path]
    starts: Sequence[int]
    column: str
    shape: tuple[int, ...]
    resize: bool

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The pictures from number `first` on, some at a time; row groups before them are not read."""
        last = len(self) if stop is None else stop
        for path, start, end in zip(self.paths, self.starts, self.starts[1:], strict=False):
            if start < last and first < end:
                yield from self._rows(path, max(first - start, 0), min(last, end) - start)

    def identity(self) -> str:
        """A digest of the files' names, sizes and times of change."""
        digest = hashlib.sha256(repr((self.column, self.resize)).encode())
        for path in self.paths:
            status = path.stat()
            digest.update(repr([str(path), status.st_size, status.st_mtime_ns]).encode())
        return f"{len(self)} rows, {digest.hexdigest()}"

    def _rows(self, path: Path, first: int, stop: int) -> Iterator[np.ndarray]:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            ends = list(accumulate(sizes))
            wanted = [i for i, end in enumerate(ends) if first < end and end - sizes[i] < stop]
            row = ends[wanted[0]] - sizes[wanted[0]]
            batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=wanted, columns=[self.column])
            for batch in batches:
                a, b = max(first - row, 0), min(stop - row, len(batch))
                if a < b:
                    yield self._pictures(f"{path}: row", row + a, batch.column(0)[a:b])
                row += len(batch)

    def _pictures(self, name: str, row: int, column: pa.Array) -> np.ndarray:
        if column.null_count:
            missing = column.is_null().index(True).as_py()
            raise InputError(f"{name} {row + missing}: {self.column} is null; leave such rows out")
        if pa.types.is_struct(column.type):  # as Hugging Face has pictures
            column = pc.struct_field(column, "bytes")
        if _is_binary(column.type):
            values = column.to_pylist()
            pictures = [
                decode_picture(value, self.shape, name=f"{name} {row + i}", resize=self.resize)
                for i, value in enumerate(values)
            ]
            return np.stack(pictures)
        numbers = _numbers(f"{name} {row} and on: {self.column}", column)
        if numbers.size != len(column) * np.prod(self.shape, dtype=int):
            raise InputError(
                f"{name} {row} and on: {self.column}: expected {list(self.shape)} numbers a row, "
                f"got {numbers.size // len(column)}"
            )
        return numbers.reshape(len(column), *self.shape)


def open_parquet(
    paths: Sequence[Path], column: str, shape: tuple[int, ...], *, resize: bool = False
) -> ParquetPictures:
    """Pictures from Parquet files; only their footers are read.

    Arguments are those of `ParquetPictures`.

    Raises:
        InputError: A file is no Parquet file, has no such column, or there are no rows.
        InputTypeError: The column cannot be pictures.
        OSError: A file is not there or cannot be read.
    """
    counts = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: not a Parquet file that can be read: {error}") from error
        if column not in schema.names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
        _check_type(path, column, schema.field(column).type, shape)
        counts.append(num_rows)
    if not sum(counts):
        raise InputError(f"{paths[0]}: expected at least one row, got none")
    return ParquetPictures(tuple(paths), tuple(accumulate(counts, initial=0)), column, shape, resize)


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a path stands for; none where it stands for something else."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
    return [path] if path.suffix.lower() == ".parquet" else []


def _check_type(path: Path, column: str, kind: pa.DataType, shape: tuple[int, ...]) -> None:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if _is_binary(kind):
        if shape[-1] not in PICTURE_CHANNELS:
            raise InputError(f"{path}: a model of {shape[-1]} channels takes no encoded pictures")
        return
    while _is_list(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if kind != pa.uint8() and not pa.types.is_floating(kind):
        raise InputTypeError(
            f"{path}: {column}: expected encoded pictures, or lists of uint8 or of floating-point numbers "
            f"in the model's range; got {kind}"
        )


def _numbers(name: str, column: pa.Array) -> np.ndarray:
    """All numbers of lists of one length."""
    while True:
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        elif _is_list(column.type):
            lengths = pc.min_max(pc.list_value_length(column))
            if lengths["min"] != lengths["max"]:
                raise InputError(f"{name}: expected lists of one length, got {lengths.as_py()}")
            column = column.flatten()
        else:
            return column.to_numpy(zero_copy_only=False)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
