"""Pictures in every form that a column has give the same rows, from any row to any other."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.offline import parquet_pictures
from artifex.generative_models.inference.offline.parquet_pictures import open_parquet

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def small(digits: np.ndarray) -> np.ndarray:
    """Parts of real digits, uint8 [70, 8, 8, 1]."""
    return np.ascontiguousarray(digits[:70, 8:16, 8:16])


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(path: Path, first: int = 0, stop: int | None = None, column: str = "image") -> np.ndarray:
    return np.concatenate(list(open_parquet([path], column, SHAPE).rows(first, stop)))


def write_table(path: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"image": column, "label": np.arange(len(column))}), path, row_group_size=11)
    return path


def write_encoded(folder: Path, small: np.ndarray) -> Path:
    return write_table(folder / "x.parquet", pa.array(map(png, small), pa.binary()))


def write_structs(folder: Path, small: np.ndarray) -> Path:
    return write_table(folder / "x.parquet", pa.array([{"bytes": png(x), "path": "a"} for x in small]))


def write_tensors(folder: Path, small: np.ndarray) -> Path:
    return write_table(folder / "x.parquet", pa.FixedShapeTensorArray.from_numpy_ndarray(small))


def write_without_channels(folder: Path, small: np.ndarray) -> Path:
    return write_table(
        folder / "x.parquet", pa.array(small[..., 0].tolist(), pa.list_(pa.list_(pa.uint8(), 8)))
    )


def write_lists(folder: Path, small: np.ndarray) -> Path:
    return write_table(
        folder / "x.parquet", pa.array(small.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    )


WAYS = [write_encoded, write_structs, write_tensors, write_lists, write_without_channels]


@pytest.mark.parametrize("write", WAYS)
def test_every_form_gives_the_rows(
    tmp_path: Path, small: np.ndarray, write: Callable[[Path, np.ndarray], Path]
):
    path = write(tmp_path, small)
    for first, stop in ((0, None), (0, 1), (10, 12), (29, 31), (30, 70), (69, 70)):
        np.testing.assert_array_equal(rows(path, first, stop), small[first:stop])


def test_floating_point_numbers_stay_so(tmp_path: Path, pictures: np.ndarray):
    values = pictures[:20, 8:16, 8:16]
    path = write_table(tmp_path / "x.parquet", pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    found = rows(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("column", "error", "words"),
    [
        (pa.array(["a", "b"]), InputTypeError, "image: expected encoded pictures.*got string"),
        (pa.array([1, 2], pa.int64()), InputTypeError, "got int64"),
        (pa.array([b"no picture"]), InputError, "row 0: not a picture"),
        (pa.array([None, b"x"]), InputError, "row 0: image is null"),
        (pa.array([[1.0] * 63]), InputError, r"expected \[8, 8, 1\] numbers a row, got 63"),
        (pa.array([[1.0] * 63, [1.0] * 65]), InputError, "lists of one length"),
        (pa.array([], pa.binary()), InputError, "at least one row"),
        (pa.array([[[[1.0] * 8] * 8]]), InputError, r"\[8, 8, 1\] numbers a row, got \[1, 8, 8\]"),
        (pa.array([[[1.0] * 4] * 16]), InputError, r"\[8, 8, 1\] numbers a row, got \[16, 4\]"),
        (pa.array([[[1.0] * 8] * 7 + [None]]), InputError, "nulls among the numbers"),
        (pa.array([[1.0] * 63 + [None]]), InputError, "nulls among the numbers"),
        (pa.array([{"bytes": b"", "path": "a"}, {"path": "b"}]), InputError, "row 1: image has no bytes"),
        (pa.array([{"bytes": None, "path": "a"}]), InputError, "image holds nothing but nulls"),
        (pa.array([{"path": "a"}]), InputTypeError, "got struct"),
    ],
)
def test_columns_that_are_no_pictures(tmp_path: Path, column: pa.Array, error: type[Exception], words: str):
    path = write_table(tmp_path / "x.parquet", column)
    with pytest.raises(error, match=words):
        rows(path)


def test_files_that_hold_no_such_column(tmp_path: Path, small: np.ndarray):
    with pytest.raises(InputError, match="no column 'picture'; it has image, label"):
        rows(write_tensors(tmp_path, small), column="picture")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet: not a Parquet file"):
        rows(tmp_path / "broken.parquet")
    with pytest.raises(FileNotFoundError):
        rows(tmp_path / "none.parquet")


def test_empty_files_between_others_are_passed_over(tmp_path: Path, small: np.ndarray):
    paths = [tmp_path / f"{name}.parquet" for name in "abcd"]
    kinds = (pa.null(), pa.binary(), pa.null(), pa.binary())
    for path, part, kind in zip(paths, (small[:0], small[:3], small[:0], small[3:]), kinds, strict=True):
        write_table(path, pa.array(map(png, part), kind))
    pictures = open_parquet(paths, "image", SHAPE)
    assert len(pictures) == 70
    for first, stop in ((0, None), (2, 4), (3, 5)):
        np.testing.assert_array_equal(np.concatenate(list(pictures.rows(first, stop))), small[first:stop])


def test_files_of_several_dtypes_are_no_one_job(tmp_path: Path, small: np.ndarray):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, values in zip(paths, (small, small.astype(np.float32)), strict=True):
        write_table(path, pa.FixedShapeTensorArray.from_numpy_ndarray(values))
    with pytest.raises(InputTypeError, match=r"of one dtype, got uint8 in .*a\.parquet, float32 in .*b\."):
        open_parquet(paths, "image", SHAPE)


def test_of_a_row_group_little_more_is_read_than_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = np.random.default_rng(0).integers(0, 256, (2000, 64), np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64)
    table = pa.table({"image": column})
    pq.write_table(table, tmp_path / "x.parquet", data_page_size=4096, use_dictionary=False)
    monkeypatch.setattr(parquet_pictures, "_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(parquet_pictures, "_BUFFER_BYTES", 4096)
    places: list[int] = []
    given = []

    class Watched(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            places.append(self.tell())
            return data

    class File(pq.ParquetFile):
        def __init__(self, path: Path, **settings: Any):
            super().__init__(Watched(path), **settings)

        def close(self, force: bool = False) -> None:
            super().close(force=True)

        def iter_batches(self, *args: Any, **settings: Any) -> Iterator[pa.RecordBatch]:
            places.clear()
            for batch in super().iter_batches(*args, **settings):
                given.append(len(batch))
                yield batch

    pictures = open_parquet([tmp_path / "x.parquet"], "image", SHAPE)
    monkeypatch.setattr(pq, "ParquetFile", File)
    found = np.concatenate(list(pictures.rows(0, 150)))
    np.testing.assert_array_equal(found, values[:150].reshape(150, *SHAPE))
    assert given == [100, 100]
    assert max(places) < values.size / 2
