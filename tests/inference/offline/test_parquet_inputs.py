"""Pictures in every form give the same rows, from any row to any other."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.offline.parquet_inputs import Inputs, Paths

SHAPE = (8, 8, 1)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(paths: Paths, first: int = 0, stop: int | None = None, column: str = "image") -> np.ndarray:
    opened = Inputs.of(paths, column, resize=False)
    opened = opened.pinned(opened.open(SHAPE)).open(SHAPE)  # as an actor does
    return np.concatenate([np.asarray(part).reshape(-1, *SHAPE) for part in opened.rows(first, stop)])


def write_table(path: Path, column: pa.Array) -> Path:
    pq.write_table(pa.table({"image": column, "label": np.arange(len(column))}), path, row_group_size=11)
    return path


def write_npy(folder: Path, small: np.ndarray) -> Path:
    np.save(folder / "x.npy", small)
    return folder / "x.npy"


def write_files(folder: Path, small: np.ndarray) -> Path:
    for number, picture in enumerate(small):
        (folder / f"{number:03}.png").write_bytes(png(picture))
    return folder


def write_encoded(folder: Path, small: np.ndarray) -> Path:
    """Two files, as a job before this one would leave them."""
    (folder / "_job.json").touch()
    for name, part in (("a", small[:30]), ("b", small[30:])):
        write_table(folder / f"{name}.parquet", pa.array(map(png, part), pa.binary()))
    return folder


def write_structs(folder: Path, small: np.ndarray) -> Path:
    return write_table(folder / "x.parquet", pa.array([{"bytes": png(x), "path": "a"} for x in small]))


def write_tensors(folder: Path, small: np.ndarray) -> Path:
    return write_table(folder / "x.parquet", pa.FixedShapeTensorArray.from_numpy_ndarray(small))


def write_lists(folder: Path, small: np.ndarray) -> Path:
    return write_table(
        folder / "x.parquet", pa.array(small.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    )


@pytest.mark.parametrize(
    "write", [write_npy, write_files, write_encoded, write_structs, write_tensors, write_lists]
)
def test_every_form_gives_the_rows(
    tmp_path: Path, small: np.ndarray, write: Callable[[Path, np.ndarray], Path]
):
    path = write(tmp_path, small)
    for first, stop in ((0, None), (0, 1), (10, 12), (29, 31), (30, 70), (69, 70)):
        np.testing.assert_array_equal(rows(path, first, stop), small[first:stop])


def test_identity_differs_with_the_files(tmp_path: Path, small: np.ndarray):
    path = write_tensors(tmp_path, small)
    given = Inputs.of(path, "image", resize=False)
    before = given.open(SHAPE).identity()
    assert given.open(SHAPE).identity() == before
    write_tensors(tmp_path, small[::-1].copy())
    assert given.open(SHAPE).identity() != before


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
    ],
)
def test_columns_that_are_no_pictures(tmp_path: Path, column: pa.Array, error: type[Exception], words: str):
    path = write_table(tmp_path / "x.parquet", column)
    with pytest.raises(error, match=words):
        rows(path)


def test_paths_that_are_no_pictures(tmp_path: Path, small: np.ndarray):
    path = write_tensors(tmp_path, small)
    with pytest.raises(InputError, match="no column 'picture'; it has image, label"):
        rows(path, column="picture")
    with pytest.raises(InputError, match="either Parquet files or other pictures"):
        rows([path, write_npy(tmp_path, small)])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet: not a Parquet file"):
        rows(tmp_path / "broken.parquet")
    with pytest.raises(FileNotFoundError):
        rows(tmp_path / "none.parquet")
