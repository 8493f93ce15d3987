from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.offline import chunks
from artifex.generative_models.inference.offline.chunks import collect, drop_pages, num_rows, row_chunks

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
sizes = st.integers(1, 12)


def numbered(count: int) -> np.ndarray:
    return np.arange(2 * count, dtype=np.int32).reshape(count, 2)


def assert_equal_lists(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert [len(array) for array in found] == [len(array) for array in wanted]
    for array, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array, other)


@settings(deadline=None)
@given(lengths, sizes)
def test_cuts_depend_on_row_numbers_alone(lengths: list[int], size: int) -> None:
    rows = numbered(sum(lengths))
    dealt = np.split(rows, np.cumsum(lengths)[:-1])
    wanted = [rows[start : start + size] for start in range(0, len(rows), size)]
    for source in (
        rows,
        jnp.asarray(rows),
        iter(dealt),
        (jnp.asarray(part) for part in dealt),
        rows.tolist(),
    ):
        if isinstance(source, list):
            source = [[row] for row in source]
        assert_equal_lists(list(row_chunks(source, size)), wanted)


def test_an_iterator_is_read_no_further_than_needed() -> None:
    read = []

    def parts() -> Iterator[np.ndarray]:
        for number in range(10):
            read.append(number)
            yield numbered(3)

    next(row_chunks(parts(), 4))
    assert read == [0, 1]


def test_number_of_rows() -> None:
    assert num_rows(numbered(3)) == num_rows(jnp.zeros((3, 2))) == 3
    assert num_rows(iter([numbered(3)])) is None


@pytest.mark.parametrize(
    "rows", [numbered(0), [], [numbered(0), numbered(0)]], ids=["array", "none", "empty"]
)
def test_no_rows(rows: Any) -> None:
    with pytest.raises(InputError, match="expected at least one row"):
        list(row_chunks(rows, 4))


@pytest.mark.parametrize("rows", [numbered(3), [numbered(3)]], ids=["array", "iterator"])
@pytest.mark.parametrize("size", [0, -1])
def test_no_size(rows: Any, size: int) -> None:
    with pytest.raises(InputError, match=f"expected at least 1 row a chunk, got {size}"):
        next(row_chunks(rows, size))


def test_an_item_without_rows() -> None:
    with pytest.raises(InputError, match=r"expected an iterator of arrays \[rows, ...\], got an item 3"):
        list(row_chunks([numbered(1), 3], 4))


@settings(deadline=None)
@given(lengths, st.booleans(), st.booleans())
def test_collect_puts_chunks_together(lengths: list[int], told: bool, given_out: bool) -> None:
    rows = numbered(sum(lengths))
    parts = np.split(rows, np.cumsum(lengths)[:-1])
    out = np.zeros_like(rows) if given_out else None
    allocated = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        allocated.append(shape)
        return np.empty(shape, dtype)

    result = collect(iter(parts), len(rows) if told else None, out, allocate)
    np.testing.assert_array_equal(result, rows)
    assert result.dtype == rows.dtype
    assert allocated == ([rows.shape] if told and not given_out else [])
    assert out is None or result is out


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((4, 2), np.int32), r"out: expected int32 \(5, 2\), got int32 \(4, 2\)"),
        (np.zeros((6, 2), np.int32), "out: has 6 rows where there are 5"),
        (np.zeros((5, 3), np.int32), r"out: expected int32 \(5, 2\), got int32 \(5, 3\)"),
        (np.zeros((5, 2), np.float32), r"out: expected int32 \(5, 2\), got float32 \(5, 2\)"),
        (np.zeros((5, 2, 1), np.int32), r"out: expected int32 \(5, 2\), got int32 \(5, 2, 1\)"),
    ],
)
def test_an_out_that_does_not_fit(out: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collect(iter([numbered(5)[:3], numbered(5)[3:]]), 5, out, np.empty)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", numbered(5000))
    return tmp_path / "rows.npy"


@pytest.mark.parametrize(
    "view", [np.s_[:], np.s_[100:4000], np.s_[::2, 1]], ids=["whole", "slice", "strided"]
)
def test_dropped_pages_are_in_the_file(path: Path, view: Any) -> None:
    rows = np.load(path, mmap_mode="r+")
    wanted = numbered(5000)
    rows[view] = wanted[view] = -7
    drop_pages(rows[view])
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(np.load(path), wanted)
    drop_pages(np.load(path, mmap_mode="r"))
    drop_pages(wanted)


def test_changes_that_are_in_no_file_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.load(path, mmap_mode="c")
    wanted = numbered(5000)
    rows[100:200] = wanted[100:200] = -7
    drop_pages(rows)
    monkeypatch.setattr(chunks, "_DROP_BYTES", 1)
    np.testing.assert_array_equal(np.concatenate(list(row_chunks(rows, 64))), wanted)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(np.load(path), numbered(5000))


def test_a_memory_mapped_out_holds_all_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_DROP_BYTES", 1)
    out = np.load(path, mmap_mode="r+")
    parts = (part + 1 for part in row_chunks(np.load(path, mmap_mode="r"), 64))
    assert collect(list(parts), 5000, out, np.empty) is out
    np.testing.assert_array_equal(np.load(path), numbered(5000) + 1)
