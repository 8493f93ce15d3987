"""Pictures in every form give the same rows, from any row to any other."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifex.generative_models.core.errors import InputError
from artifex.ray.inputs import Inputs, Paths

SHAPE = (8, 8, 1)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0]).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(paths: Paths, first: int = 0, stop: int | None = None) -> np.ndarray:
    opened = Inputs.of(paths, "image", resize=False)
    opened = opened.pinned(opened.open(SHAPE)).open(SHAPE)  # as an actor does
    return np.concatenate([np.asarray(part).reshape(-1, *SHAPE) for part in opened.rows(first, stop)])


def write_npy(folder: Path, small: np.ndarray) -> Path:
    np.save(folder / "x.npy", small)
    return folder / "x.npy"


def write_files(folder: Path, small: np.ndarray) -> Path:
    for number, picture in enumerate(small):
        (folder / f"{number:03}.png").write_bytes(png(picture))
    return folder


def write_parquet(folder: Path, small: np.ndarray) -> Path:
    """Two files, as a job before this one would leave them."""
    (folder / "_job.json").touch()
    for name, part in (("a", small[:30]), ("b", small[30:])):
        pq.write_table(pa.table({"image": pa.array(map(png, part), pa.binary())}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("write", [write_npy, write_files, write_parquet])
def test_every_form_gives_the_rows(
    tmp_path: Path, small: np.ndarray, write: Callable[[Path, np.ndarray], Path]
):
    path = write(tmp_path, small)
    for first, stop in ((0, None), (0, 1), (10, 12), (29, 31), (30, 70), (69, 70)):
        np.testing.assert_array_equal(rows(path, first, stop), small[first:stop])


def test_identity_differs_with_the_files(tmp_path: Path, small: np.ndarray):
    path = write_parquet(tmp_path, small)
    given = Inputs.of(path, "image", resize=False)
    before = given.open(SHAPE).identity()
    assert given.open(SHAPE).identity() == before
    write_parquet(tmp_path, small[::-1])
    assert given.open(SHAPE).identity() != before


def test_paths_that_are_no_pictures(tmp_path: Path, small: np.ndarray):
    path = write_parquet(tmp_path, small)
    with pytest.raises(InputError, match="either Parquet files or other pictures"):
        rows([path, write_npy(tmp_path, small)])
    with pytest.raises(FileNotFoundError):
        rows(tmp_path / "none.parquet")
