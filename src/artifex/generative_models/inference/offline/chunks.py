"""Rows from arrays, memory-mapped files and iterators, a chunk at a time, and results back into one array."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = Any  # a NumPy or JAX array [rows, ...], memory-mapped or not, or an iterable of such arrays

_DROP_BYTES = 32 << 20


def num_rows(rows: Rows) -> int | None:
    """Number of rows; None for an iterator, which does not know."""
    return len(rows) if isinstance(rows, np.ndarray | jax.Array) else None


def row_chunks(rows: Rows, size: int) -> Iterator[NDArray[Any]]:
    """Cuts rows into chunks of `size` rows, the last one shorter.

    Where the cuts fall depends on the row number alone, not on how an iterator deals its rows out.
    Pages of a memory-mapped file are handed back to the system once read.

    Args:
        rows: An array [rows, ...], or an iterable of such arrays of any lengths.
        size: Rows a chunk.

    Raises:
        InputError: There are no rows, an iterator yields something that has none, or `size` is below 1.
    """
    if size < 1:
        raise InputError(f"expected at least 1 row a chunk, got {size}")
    empty = True
    for chunk in _array_chunks(rows, size) if num_rows(rows) is not None else _iterator_chunks(rows, size):
        empty = False
        yield chunk
    if empty:
        raise InputError("expected at least one row, got none")


def collect(
    chunks: Iterable[NDArray[Any]],
    total: int | None,
    out: NDArray[Any] | None,
    allocate: Callable[[tuple[int, ...], Any], NDArray[Any]],
) -> NDArray[Any]:
    """Puts chunks [rows, ...] together.

    Args:
        chunks: Arrays, in order.
        total: Number of rows, where it is known: the result is then allocated once.
        out: Array to write into instead, memory-mapped or not.
        allocate: Makes an array of a shape and dtype.

    Raises:
        InputError: `out` does not fit.
    """
    if out is None and total is None:
        return np.concatenate(list(chunks))
    row, written = 0, 0
    for chunk in chunks:
        if out is None:
            out = allocate((total or 0, *chunk.shape[1:]), chunk.dtype)
        if out.shape[1:] != chunk.shape[1:] or out.dtype != chunk.dtype or len(out) < row + len(chunk):
            rows = "rows" if total is None else total
            raise InputError(
                f"out: expected {chunk.dtype} {(rows, *chunk.shape[1:])}, got {out.dtype} {out.shape}"
            )
        out[row : row + len(chunk)] = chunk
        row += len(chunk)
        written += chunk.nbytes
        if written >= _DROP_BYTES:
            drop_pages(out)
            written = 0
    if out is None or row != len(out):
        raise InputError(f"out: has {0 if out is None else len(out)} rows where there are {row}")
    return out


def drop_pages(array: NDArray[Any]) -> None:
    """Takes the pages of a memory-mapped file out of this process; what was written stays in the file."""
    if not isinstance(array, np.memmap) or array.mode not in ("r", "r+", "w+"):
        return
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and isinstance(getattr(mmap, "MADV_DONTNEED", None), int):
        base.madvise(mmap.MADV_DONTNEED)


def _array_chunks(array: Any, size: int) -> Iterator[NDArray[Any]]:
    rows = array if isinstance(array, np.ndarray) else np.asarray(array)
    read = 0
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        yield chunk
        read += chunk.nbytes
        if read >= _DROP_BYTES:
            drop_pages(rows)
            read = 0


def _iterator_chunks(arrays: Iterable[Any], size: int) -> Iterator[NDArray[Any]]:
    held: list[NDArray[Any]] = []
    count = 0
    for item in arrays:
        array = np.asarray(item)
        if array.ndim == 0:
            raise InputError(f"expected an iterator of arrays [rows, ...], got an item {item!r}")
        while count + len(array) >= size:
            cut = size - count
            yield np.concatenate([*held, array[:cut]]) if held else array[:cut]
            held, count, array = [], 0, array[cut:]
        if len(array):
            held.append(array)
            count += len(array)
    if held:
        yield np.concatenate(held)
