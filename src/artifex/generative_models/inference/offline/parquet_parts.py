"""A folder of Parquet parts, which many processes write at once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifex.generative_models.core.errors import OutputError
from artifex.generative_models.inference.offline.journal import Journal, open_locked
from artifex.generative_models.inference.offline.npy import dtype_in_files

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GROUP_BYTES = 16 << 20  # of a row group, at least


class ParquetParts:
    """A folder with `part-00000.parquet` and so on: a Parquet file for each part of the rows.

    Each has the number of each row, and the row. A part has its name when it is whole.

    Args:
        path: The folder, empty or not there yet, unless a job is resumed.
        shape: Shape [rows, ...] of all rows.
        dtype: Of the rows.
        column: Name of the rows.
        rows_per_part: Rows of a part.
        job: Everything the rows depend on, as JSON takes it.
        resume: Goes on where the same job stopped.

    Raises:
        OutputError: Something else is in the folder, or another process writes it.
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        column: str,
        rows_per_part: int,
        job: Mapping[str, Any],
        resume: bool,
    ):
        dtype = dtype_in_files(dtype)
        self.path = path
        self.num_rows = shape[0]
        self.rows_done = 0
        self.place = ParquetPlace(path, column, rows_per_part, shape[1:], dtype.name)
        facts = {**job, "shape": shape, "dtype": dtype.name, "column": column, "rows_per_part": rows_per_part}
        self._journal = Journal(path / "_job.json", path, facts)
        path.mkdir(parents=True, exist_ok=True)
        if not self._journal.path.is_file():
            if any(entry.name != ".lock" for entry in path.iterdir()):
                raise OutputError(f"{path} is not empty; remove what is there or choose another folder")
        elif resume:
            self._journal.read(int, self._is_done)
        else:
            raise OutputError(f"{path} has a job's parts; resume it, or remove them or choose another folder")
        self._lock = open_locked(path / ".lock")
        self._journal.write(0)
        self.rows_done = self.num_rows - sum(stop - start for start, stop in self.missing())

    def missing(self) -> list[tuple[int, int]]:
        """The rows [start, stop) of parts that are not there, or not whole."""
        size = self.place.rows_per_part
        spans = [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]
        return [span for span in spans if not self._has(*span)]

    def wrote(self, start: int, stop: int) -> None:
        """Takes note of a part."""
        self.rows_done += stop - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
            elif self.rows_done == 0:
                self._journal.path.unlink()
            else:
                error.add_note(f"{self.rows_done:,} of {self.num_rows:,} rows are kept in {self.path}")
        finally:
            (self.path / ".lock").unlink()
            self._lock.close()

    def _finish(self) -> None:
        if missing := self.missing():
            raise OutputError(f"{self.path}: rows {missing[0][0]} to {missing[0][1]} were not written")
        for left in self.path.glob(".part-*"):  # by writers that were killed
            left.unlink()
        self._journal.write(self.num_rows)

    def _is_done(self, start: int, stop: int) -> bool:
        """Whether a part that has any of some rows is there."""
        size = self.place.rows_per_part
        first = start // size * size
        parts = range(first, min(stop, self.num_rows), size)
        return any(self._has(part, min(part + size, self.num_rows)) for part in parts)

    def _has(self, start: int, stop: int) -> bool:
        path = self.place.part(start)
        try:
            return pq.read_metadata(path).num_rows == stop - start
        except (FileNotFoundError, pa.ArrowInvalid):
            return False


@dataclass(frozen=True)
class ParquetPlace:
    """Where the rows of a folder of Parquet parts are.

    Args:
        folder: The folder.
        column: Name of the rows.
        rows_per_part: Rows of a part.
        shape: Shape of a row.
        dtype: Its dtype.
    """

    folder: Path
    column: str
    rows_per_part: int
    shape: tuple[int, ...]
    dtype: str

    def part(self, start: int) -> Path:
        """The part that begins with a row."""
        return self.folder / f"part-{start // self.rows_per_part:05}.parquet"

    def write(self, start: int, stop: int, chunks: Iterable[NDArray[Any]]) -> None:
        """Writes a part, rows [start, stop), and brings it to the disk."""
        part = self.part(start)
        # A writer that was taken for lost may still be at it.
        unfinished = part.with_name(f".{part.name}.{uuid.uuid4().hex}")
        schema = pa.schema([("row", pa.int64()), (self.column, self._type())])
        row = start
        with unfinished.open("wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for group in _groups(chunks):
                    writer.write_table(self._table(row, group, schema))
                    row += len(group)
            if row != stop:
                raise OutputError(f"{part}: got {row - start} rows for {stop - start}")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(part)

    def _type(self) -> pa.DataType:
        numbers = pa.from_numpy_dtype(np.dtype(self.dtype))
        if len(self.shape) == 1:
            return pa.list_(numbers, self.shape[0])
        return pa.fixed_shape_tensor(numbers, self.shape)

    def _table(self, row: int, rows: NDArray[Any], schema: pa.Schema) -> pa.Table:
        kind = schema.field(self.column).type
        flat = pa.array(np.ascontiguousarray(rows, self.dtype).reshape(-1))
        values = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(self.shape, dtype=int)))
        if isinstance(kind, pa.BaseExtensionType):
            values = pa.ExtensionArray.from_storage(kind, values)
        return pa.Table.from_arrays([pa.array(np.arange(row, row + len(rows))), values], schema=schema)


def _groups(chunks: Iterable[NDArray[Any]]) -> Iterable[NDArray[Any]]:
    """Chunks put together to row groups, which readers like large."""
    held: list[NDArray[Any]] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(part.nbytes for part in held) >= _GROUP_BYTES:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
