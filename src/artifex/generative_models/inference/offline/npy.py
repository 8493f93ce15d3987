"""Results of any size to a `.npy` file, in constant memory and in a way that survives being killed."""

from __future__ import annotations

import io
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
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


class AbstractNpy(ABC):
    """A `.npy` file that appears when it is whole.

    Until then the rows are in `<name>.partial`, whose full size is reserved at the start, and
    `<name>.partial.json` says how many of them are on disk and which job they belong to. A job that
    was stopped, however it was stopped, resumes where it was.

    Use it as a context manager: leaving the block gives the file its name.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        shape: Shape [rows, ...] of the whole array.
        dtype: Its dtype.
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
        self._shape, self._dtype = shape, np.dtype(dtype)
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

    @abstractmethod
    def _take_up(self, done: Any) -> int:
        """Takes what the journal says is done, and gives its number of rows.

        Raises:
            ValueError, TypeError: It makes no sense.
        """

    @abstractmethod
    def _done(self) -> Any:
        """What is done, as JSON takes it."""

    @abstractmethod
    def _sync(self) -> None:
        """Puts the rows that are done on disk."""

    @abstractmethod
    def _close(self) -> None:
        """Lets go of the file."""

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
            self._close()

    def _finish(self) -> None:
        if self.rows_done < self.num_rows:
            raise OutputError(f"{self.path}: got {self.rows_done} rows where {self.num_rows} were announced")
        self._flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self.path)
        self._journal.path.unlink()

    def _flush(self) -> None:
        """Puts the rows on disk, and only then in the journal."""
        self._sync()
        self._journal.write(self._done())
        self._flushed_at = time.monotonic()

    def _is_flush_due(self) -> bool:
        return time.monotonic() >= self._flushed_at + _FLUSH_SECONDS

    def _resume(self, header: bytes, num_bytes: int) -> None:
        """Takes up what rows of this very job are on disk."""
        if os.fstat(self._file.fileno()).st_size == 0 or not self._journal.path.is_file():
            return
        rows_done = self._journal.read(self._take_up)
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
            self._journal.write(self._done())
        except OSError as error:
            self._discard()
            error.filename = error.filename or str(self._partial)
            raise

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._journal.path.unlink(missing_ok=True)


class NpyWriter(AbstractNpy):
    """Writes rows one chunk after another.

    Arguments and errors are those of `AbstractNpy`.
    """

    _rows: np.memmap[Any, Any] | None = None
    _unflushed_bytes = 0

    def write(self, rows: NDArray[Any]) -> None:
        """Appends rows [chunk, ...]."""
        stop = self.rows_done + len(rows)
        if stop > self.num_rows:
            raise OutputError(f"{self.path}: got {stop} rows where {self.num_rows} were announced")
        if self._rows is None:
            self._rows = np.memmap(self._file, self._dtype, "r+", offset=self._offset, shape=self._shape)
        self._rows[self.rows_done : stop] = rows
        self.rows_done = stop
        self._unflushed_bytes += rows.nbytes
        if self._is_flush_due() or self._unflushed_bytes >= _FLUSH_BYTES:
            self._flush()
            self._unflushed_bytes = 0

    def _take_up(self, done: Any) -> int:
        return int(done)

    def _done(self) -> int:
        return self.rows_done

    def _sync(self) -> None:
        if self._rows is not None:
            self._rows.flush()
            drop_pages(self._rows)

    def _close(self) -> None:
        self._rows = None  # which has the file, and its lock, as well
        self._file.close()


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
