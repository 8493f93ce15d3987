"""Outputs that many processes write at once: one `.npy` file, or a folder of Parquet parts.

The process that runs a job opens the output and notes what is done. Others get its *place*, which says where
each row goes: to write a range of rows again gives the same bytes in the same place, so a range that was
lost half written is just written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from artifex.generative_models.core.errors import InputError, OutputError
from artifex.generative_models.inference.offline.npy import AbstractNpy

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Place(Protocol):
    """Where rows go; it travels to whoever writes them."""

    def write(self, start: int, stop: int, chunks: Iterable[NDArray[Any]]) -> None:
        """Writes rows `start` to `stop`, in chunks [rows, ...], and brings them to the disk."""
        ...


class Parts(Protocol):
    """An output under way; leaving its block makes the result appear."""

    path: Path
    num_rows: int
    rows_done: int

    @property
    def place(self) -> Place:
        """Where its rows go."""
        ...

    def missing(self) -> list[tuple[int, int]]:
        """The rows [start, stop) that are not there yet."""
        ...

    def wrote(self, start: int, stop: int) -> None:
        """Takes note of rows that were written to their place."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


def open_parts(
    output: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    column: str,
    rows_per_part: int,
    job: Mapping[str, Any],
    resume: bool,
) -> Parts:
    """The output that a name stands for: `.npy` is an array, `.parquet` or no suffix a folder of parts.

    Args:
        output: Where to write.
        shape: Shape [rows, ...] of all rows.
        dtype: Of the rows.
        column: Name of the rows in Parquet files.
        rows_per_part: Rows of a Parquet file.
        job: Everything the rows depend on, as JSON takes it.
        resume: Goes on where the same job stopped.

    Raises:
        InputError: An unknown suffix.
        OutputError: Something else is there, or another process writes it.
        OSError: It cannot be written, or does not fit the disk.
    """
    path = Path(output).expanduser().absolute()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NpyParts(path, shape, dtype, job=job, resume=resume)
    if suffix not in (".parquet", ""):
        raise InputError(f"{output}: expected a .npy array or a folder of Parquet parts, got {suffix!r}")
    from artifex.generative_models.inference.offline.parquet_parts import ParquetParts  # it needs pyarrow

    return ParquetParts(
        path, shape, dtype, column=column, rows_per_part=rows_per_part, job=job, resume=resume
    )


class NpyParts(AbstractNpy):
    """One `.npy` file, into whose reserved space others write.

    Arguments and errors are those of `AbstractNpy`.
    """

    _spans: tuple[tuple[int, int], ...] = ()  # that are done, in order, apart from each other

    @property
    def place(self) -> NpyPlace:
        """Where the rows go."""
        row_bytes = self._dtype.itemsize * int(np.prod(self._shape[1:], dtype=int))
        return NpyPlace(self._partial, self._offset, row_bytes)

    def missing(self) -> list[tuple[int, int]]:
        """The rows [start, stop) that are not there yet."""
        edges = [0, *(edge for span in self._spans for edge in span), self.num_rows]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def wrote(self, start: int, stop: int) -> None:
        """Takes note of rows that were written to their place."""
        joined: list[tuple[int, int]] = []
        for a, b in sorted([*self._spans, (start, stop)]):
            if joined and a < joined[-1][1]:
                raise OutputError(f"{self.path}: rows {a} to {joined[-1][1]} were written twice")
            joined = (
                [*joined[:-1], (joined[-1][0], b)] if joined and a == joined[-1][1] else [*joined, (a, b)]
            )
        self._spans = tuple(joined)
        self.rows_done = sum(b - a for a, b in joined)
        if self._is_flush_due():
            self._flush()

    def _take_up(self, done: Any) -> int:
        self._spans = tuple((int(start), int(stop)) for start, stop in done)
        edges = [0, *(edge for span in self._spans for edge in span), self.num_rows]
        if edges != sorted(edges):
            raise ValueError(f"rows {done} do not follow each other")
        return sum(stop - start for start, stop in self._spans)

    def _done(self) -> list[list[int]]:
        return [list(span) for span in self._spans]

    def _sync(self) -> None:
        """Has nothing to do: whoever wrote the rows brought them to the disk."""

    def _close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class NpyPlace:
    """Where the rows of an unfinished `.npy` file are.

    They are written to the file, not to a memory map of it: two machines that map one page of a network file
    system undo each other's rows.

    Args:
        path: The unfinished file.
        offset: Bytes before the first row.
        row_bytes: Bytes of a row.
    """

    path: Path
    offset: int
    row_bytes: int

    def write(self, start: int, stop: int, chunks: Iterable[NDArray[Any]]) -> None:
        """Writes rows [start, stop) and brings them to the disk."""
        try:
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError as error:
            error.add_note("does every machine of the cluster have the same file system there?")
            raise
        with file:
            file.seek(self.offset + start * self.row_bytes)
            row = start
            for chunk in chunks:
                data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
                while data:
                    data = data[file.write(data) :]
                row += len(chunk)
            if row != stop:
                raise OutputError(f"{self.path}: got {row - start} rows for {stop - start}")
            os.fsync(file.fileno())
