"""Results of any size to a `.npy` file, in constant memory and in a way that survives being killed."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from artifex.generative_models.core.errors import OutputError
from artifex.generative_models.inference.chunks import drop_pages

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from numpy.typing import NDArray

_RECORD_SECONDS = 1.0
_RECORD_BYTES = 64 << 20


class NpyWriter:
    """Writes rows one chunk after another to a `.npy` file that appears when it is whole.

    Until then the rows are in `<name>.partial`, whose full size is reserved at the start, and
    `<name>.partial.json` says how many of them are on disk and which job they belong to. A job that
    was stopped, however it was stopped, resumes at the end of a chunk.

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
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._record_path = self.path.with_name(f"{self.path.name}.partial.json")
        self._job = json.loads(json.dumps({**job, "shape": shape, "dtype": np.dtype(dtype).name}))
        header = _header(shape, np.dtype(dtype))
        num_bytes = len(header) + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self._partial)
        try:
            if resume:
                self.rows_done = self._rows_on_record(header, num_bytes)
            if self.rows_done == 0:
                self._start_over(header, num_bytes)
            self._rows = np.memmap(self._file, dtype, "r+", offset=len(header), shape=shape)
        except BaseException:
            self._file.close()
            raise
        self._unrecorded_bytes = 0
        self._recorded_at = time.monotonic()

    def write(self, rows: NDArray[Any]) -> None:
        """Appends rows [chunk, ...]."""
        stop = self.rows_done + len(rows)
        if stop > self.num_rows:
            raise OutputError(f"{self.path}: got {stop} rows where {self.num_rows} were announced")
        self._rows[self.rows_done : stop] = rows
        self.rows_done = stop
        self._unrecorded_bytes += rows.nbytes
        due = time.monotonic() >= self._recorded_at + _RECORD_SECONDS
        if due or self._unrecorded_bytes >= _RECORD_BYTES:
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
            del self._rows
            self._file.close()

    def _finish(self) -> None:
        if self.rows_done < self.num_rows:
            raise OutputError(f"{self.path}: got {self.rows_done} rows where {self.num_rows} were announced")
        self._flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self.path)
        self._record_path.unlink()

    def _flush(self) -> None:
        """Puts the rows on disk, and only then on record."""
        self._rows.flush()
        drop_pages(self._rows)
        self._record()
        self._unrecorded_bytes = 0
        self._recorded_at = time.monotonic()

    def _record(self) -> None:
        temporary = self._record_path.with_name(f"{self._record_path.name}.tmp")
        with temporary.open("w") as file:
            json.dump({"rows_done": self.rows_done, "job": self._job}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._record_path)

    def _rows_on_record(self, header: bytes, num_bytes: int) -> int:
        """How many rows of this very job are on disk."""
        if os.fstat(self._file.fileno()).st_size == 0 or not self._record_path.is_file():
            return 0
        try:
            record = json.loads(self._record_path.read_bytes())
            job, rows_done = dict(record["job"]), int(record["rows_done"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._cannot_resume(f"{self._record_path} is damaged") from error
        changed = sorted(
            name for name in job.keys() | self._job.keys() if job.get(name) != self._job.get(name)
        )
        if changed:
            changes = (f"{name} was {job.get(name)} and is {self._job.get(name)} now" for name in changed)
            raise self._cannot_resume("; ".join(changes))
        whole = os.fstat(self._file.fileno()).st_size == num_bytes and self._file.read(len(header)) == header
        if not whole or not 0 <= rows_done <= self.num_rows:
            raise self._cannot_resume(f"{self._partial} is damaged")
        return rows_done

    def _cannot_resume(self, reason: str) -> OutputError:
        return OutputError(f"cannot resume {self.path}: {reason}; start it over without resuming")

    def _start_over(self, header: bytes, num_bytes: int) -> None:
        self._record_path.unlink(missing_ok=True)
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
            self._file.flush()
            _reserve(self._file, num_bytes)
            self._record()
        except OSError as error:
            self._discard()
            error.filename = error.filename or str(self._partial)
            raise

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._record_path.unlink(missing_ok=True)


def _open_locked(path: Path) -> BinaryIO:
    """Opens a file for this process alone, and makes it where there is none."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(f"{path} is being written by another process") from error
    return file


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
