"""Results of any size to a `.npy` file, in constant memory and in a way that survives being killed."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from artifex.generative_models.core.errors import OutputError
from artifex.generative_models.inference.offline.chunks import drop_pages
from artifex.generative_models.inference.offline.journal import Journal, open_locked

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from numpy.typing import NDArray

_FLUSH_SECONDS = 1.0
_FLUSH_BYTES = 64 << 20


class NpyWriter:
    """A `.npy` file that appears when it is whole.

    Until then the rows are in `<name>.partial`, whose full size is reserved at the start, and
    `<name>.partial.json` says how many of them are on disk and which job they belong to. A job that
    was stopped, however it was stopped, resumes where it was.

    Rows are written one chunk after another by `write`, or by other processes to their `place`, of which this
    one then takes note by `wrote`. Use it as a context manager: leaving the block gives the file its name.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        shape: Shape [rows, ...] of the whole array.
        dtype: Its dtype; one that files have no name for, such as bfloat16, becomes float32.
        job: Everything the rows depend on, as JSON takes it.
        resume: Goes on where the same job stopped. Otherwise what a stopped job left is discarded.

    Raises:
        OutputError: What is there to resume belongs to another job, or another process is writing it.
        OSError: The file cannot be written, or does not fit the disk.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        shape: tuple[int, ...],
        dtype: DTypeLike,
        *,
        job: Mapping[str, Any],
        resume: bool = False,
    ):
        self.path = Path(path)
        self.num_rows = shape[0]
        self.rows_done = 0
        self._shape, self._dtype = shape, dtype_in_files(dtype)
        self._spans: list[tuple[int, int]] = []  # that are done, in order, apart from each other
        self._rows: np.memmap[Any, Any] | None = None
        self._unflushed_bytes = 0
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        facts = {**job, "shape": shape, "dtype": self._dtype.name}
        self._journal = Journal(self.path.with_name(f"{self.path.name}.partial.json"), self.path, facts)
        header = _header(shape, self._dtype)
        self._offset = len(header)
        num_bytes = len(header) + int(np.prod(shape, dtype=object)) * self._dtype.itemsize
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_locked(self._partial)
        try:
            if resume:
                self._resume(header, num_bytes)
            if self.rows_done == 0:
                self._start_over(header, num_bytes)
        except BaseException:
            self._file.close()
            raise
        self._flushed_at = time.monotonic()

    def write(self, rows: NDArray[Any]) -> None:
        """Appends rows [chunk, ...]."""
        stop = self.rows_done + len(rows)
        if stop > self.num_rows:
            raise OutputError(f"{self.path}: got {stop} rows where {self.num_rows} were announced")
        if self._rows is None:
            self._rows = np.memmap(self._file, self._dtype, "r+", offset=self._offset, shape=self._shape)
        self._rows[self.rows_done : stop] = rows
        self._unflushed_bytes += rows.nbytes
        self.wrote(self.rows_done, stop)

    @property
    def place(self) -> NpyPlace:
        """Where the rows go."""
        row_bytes = self._dtype.itemsize * int(np.prod(self._shape[1:], dtype=int))
        return NpyPlace(self._partial, self._offset, row_bytes, self._dtype)

    def missing(self) -> list[tuple[int, int]]:
        """The rows [start, stop) that are not there yet."""
        edges = self._edges()
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def wrote(self, start: int, stop: int) -> None:
        """Takes note of rows that are in their place."""
        joined: list[tuple[int, int]] = []
        for a, b in sorted([*self._spans, (start, stop)]):
            if joined and a < joined[-1][1]:
                raise OutputError(f"{self.path}: rows {a} to {joined[-1][1]} were written twice")
            joined = (
                [*joined[:-1], (joined[-1][0], b)] if joined and a == joined[-1][1] else [*joined, (a, b)]
            )
        self._spans = joined
        self.rows_done += stop - start
        if time.monotonic() >= self._flushed_at + _FLUSH_SECONDS or self._unflushed_bytes >= _FLUSH_BYTES:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
            elif self.rows_done == 0:
                self._discard()
            else:
                self._flush()
                kept = f"{self.rows_done:,} of {self.num_rows:,} rows"
                error.add_note(f"{kept} are kept in {self._partial}, to resume from")
        finally:
            self._rows = None  # which has the file, and its lock, as well
            self._file.close()

    def _finish(self) -> None:
        if self.rows_done < self.num_rows:
            raise OutputError(f"{self.path}: got {self.rows_done} rows where {self.num_rows} were announced")
        self._flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self.path)
        self._journal.path.unlink()

    def _flush(self) -> None:
        """Puts the rows on disk, and only then in the journal."""
        if self._rows is not None:
            self._rows.flush()
            drop_pages(self._rows)
        self._journal.write(self._spans)
        self._unflushed_bytes = 0
        self._flushed_at = time.monotonic()

    def _edges(self) -> list[int]:
        return [0, *(edge for span in self._spans for edge in span), self.num_rows]

    def _take_up(self, done: Any) -> int:
        """Takes what the journal says is done, and gives its number of rows."""
        self._spans = [(int(start), int(stop)) for start, stop in done]
        if self._edges() != sorted(self._edges()):
            raise ValueError(f"rows {done} do not follow each other")
        return sum(stop - start for start, stop in self._spans)

    def _is_done(self, start: int, stop: int) -> bool:
        return any(a < stop and start < b for a, b in self._spans)

    def _resume(self, header: bytes, num_bytes: int) -> None:
        """Takes up what rows of this very job are on disk."""
        if os.fstat(self._file.fileno()).st_size == 0 or not self._journal.path.is_file():
            return
        rows_done = self._journal.read(self._take_up, self._is_done)
        whole = os.fstat(self._file.fileno()).st_size == num_bytes and self._file.read(len(header)) == header
        if not whole or not 0 <= rows_done <= self.num_rows:
            raise self._journal.cannot_resume(f"{self._partial} is damaged")
        self.rows_done = rows_done

    def _start_over(self, header: bytes, num_bytes: int) -> None:
        self._journal.path.unlink(missing_ok=True)
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
            self._file.flush()
            _reserve(self._file, num_bytes)
            self._journal.write(self._spans)
        except OSError as error:
            self._discard()
            error.filename = error.filename or str(self._partial)
            raise

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._journal.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class NpyPlace:
    """Where the rows of an unfinished `.npy` file are.

    They are written to the file, not to a memory map of it: two machines that map one page of a network file
    system undo each other's rows.

    Args:
        path: The unfinished file.
        offset: Bytes before the first row.
        row_bytes: Bytes of a row.
        dtype: Its numbers.
    """

    path: Path
    offset: int
    row_bytes: int
    dtype: np.dtype[Any]

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
                data = np.ascontiguousarray(chunk, self.dtype).reshape(-1).view(np.uint8).data
                while data:
                    data = data[file.write(data) :]
                row += len(chunk)
            if row != stop:
                raise OutputError(f"{self.path}: got {row - start} rows for {stop - start}")
            os.fsync(file.fileno())


def dtype_in_files(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype that rows have in a file."""
    found = np.dtype(dtype)
    return np.dtype(np.float32) if found.kind == "V" else found  # JAX's own are all of at most 16 bits


def _reserve(file: BinaryIO, num_bytes: int) -> None:
    """Takes the space on disk now: a disk that fills up under a memory map kills the process."""
    if sys.platform == "linux":
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    zeros = bytes(1 << 20)
    for start in range(file.tell(), num_bytes, len(zeros)):
        file.write(zeros[: num_bytes - start])
    file.flush()


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()
