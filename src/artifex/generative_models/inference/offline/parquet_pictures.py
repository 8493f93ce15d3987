"""Pictures in a column of Parquet files, read as they are needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.images import PICTURE_CHANNELS, decode_picture

_ROWS_AT_ONCE = 1024
_BUFFER_BYTES = 1 << 20  # of a file that are read at once


@dataclass(frozen=True)
class ParquetPictures:
    """Pictures in a column of Parquet files.

    Args:
        paths: The files.
        starts: Number of each one's first row, and of the row after the last.
        column: Holds encoded pictures, or their numbers as tensors or lists.
        shape: Shape (H, W, C) of a picture.
        resize: Resizes encoded pictures of another size; otherwise they are an error.
        dtype: Of the pictures.
    """

    paths: Sequence[Path]
    starts: Sequence[int]
    column: str
    shape: tuple[int, ...]
    resize: bool
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The pictures from number `first` on, some at a time; row groups before them are not read."""
        last = len(self) if stop is None else stop
        for path, start, end in zip(self.paths, self.starts, self.starts[1:], strict=False):
            if max(start, first) < min(end, last):
                yield from self._rows(path, max(first - start, 0), min(last, end) - start)

    def identity(self) -> str:
        """A digest of the files' names, sizes and times of change."""
        digest = hashlib.sha256(repr((self.column, self.resize)).encode())
        for path in self.paths:
            status = path.stat()
            digest.update(repr([str(path), status.st_size, status.st_mtime_ns]).encode())
        return f"{len(self)} rows, {digest.hexdigest()}"

    def _rows(self, path: Path, first: int, stop: int) -> Iterator[np.ndarray]:
        # Without these a whole row group is read for the first of its rows.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
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
                if row >= stop:  # the rest of a row group may be gigabytes
                    return

    def _pictures(self, name: str, row: int, column: pa.Array) -> np.ndarray:
        if column.null_count:
            missing = column.is_null().index(True).as_py()
            raise InputError(f"{name} {row + missing}: {self.column} is null; leave such rows out")
        if pa.types.is_struct(column.type):  # as Hugging Face has pictures
            column = pc.struct_field(column, "bytes")
            if column.null_count:
                missing = column.is_null().index(True).as_py()
                raise InputError(
                    f"{name} {row + missing}: {self.column} has no bytes, perhaps only the path of a file; "
                    "embed the pictures: the column must hold the contents of the files"
                )
        if _is_binary(column.type):
            values = column.to_pylist()
            pictures = [
                decode_picture(value, self.shape, name=f"{name} {row + i}", resize=self.resize)
                for i, value in enumerate(values)
            ]
            return np.stack(pictures)
        numbers, axes = _numbers(f"{name} {row} and on: {self.column}", column)
        flat = (math.prod(self.shape),)
        if axes not in (self.shape, flat, self.shape[: 2 if self.shape[2:] == (1,) else 3]):
            raise InputError(
                f"{name} {row} and on: {self.column}: expected {list(self.shape)} numbers a row, "
                f"got {axes[0] if len(axes) == 1 else list(axes)}"
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
    counts: list[int] = []
    dtypes: dict[np.dtype[Any], Path] = {}
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: not a Parquet file that can be read: {error}") from error
        if column not in schema.names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
        if num_rows:  # else nothing may be known of its type either
            dtypes.setdefault(_checked_dtype(path, column, schema.field(column).type, shape), path)
        counts.append(num_rows)
    if not dtypes:
        raise InputError(f"{paths[0]}: expected at least one row, got none")
    if len(dtypes) > 1:
        found = ", ".join(f"{dtype} in {path}" for dtype, path in dtypes.items())
        raise InputTypeError(f"{column}: expected pictures of one dtype, got {found}")
    starts = tuple(accumulate(counts, initial=0))
    return ParquetPictures(tuple(paths), starts, column, shape, resize, next(iter(dtypes)))


def _checked_dtype(path: Path, column: str, kind: pa.DataType, shape: tuple[int, ...]) -> np.dtype[Any]:
    """The dtype of a column's pictures."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_null(kind):
        raise InputError(f"{path}: {column} holds nothing but nulls; it must hold the contents of the files")
    if _is_binary(kind):
        if shape[-1] not in PICTURE_CHANNELS:
            raise InputError(f"{path}: a model of {shape[-1]} channels takes no encoded pictures")
        return np.dtype(np.uint8)
    while _is_list(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if kind != pa.uint8() and not pa.types.is_floating(kind):
        raise InputTypeError(
            f"{path}: {column}: expected encoded pictures, or lists of uint8 or of floating-point numbers "
            f"in the model's range; got {kind}"
        )
    return np.dtype(kind.to_pandas_dtype())


def _numbers(name: str, column: pa.Array) -> tuple[np.ndarray, tuple[int, ...]]:
    """All numbers of lists of one length, and the shape of a row: how long they are, one within the other."""
    axes: list[int] = []
    while True:
        if column.null_count:
            raise InputError(f"{name}: there are nulls among the numbers")
        if isinstance(column, pa.FixedShapeTensorArray):
            tensors = column.to_numpy_ndarray()
            return tensors.reshape(-1), tensors.shape[1:]
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        elif _is_list(column.type):
            lengths = pc.min_max(pc.list_value_length(column))
            if lengths["min"] != lengths["max"]:
                raise InputError(f"{name}: expected lists of one length, got {lengths.as_py()}")
            axes.append(lengths["min"].as_py())
            column = column.flatten()
        else:
            return column.to_numpy(zero_copy_only=False), tuple(axes)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
