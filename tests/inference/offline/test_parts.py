"""Outputs that many write at once, without Ray."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from artifex.generative_models.core.errors import InputError, OutputError
from artifex.generative_models.inference.offline.parts import Parts, open_parts

JOB = {"seed": 0}
ROWS = np.random.default_rng(0).standard_normal((22, 3), np.float32)
OUTPUTS = pytest.mark.parametrize("name", ["out.npy", "out", "out.parquet"])


def open_rows(path: Path, job: dict[str, Any] = JOB, resume: bool = False) -> Parts:
    return open_parts(path, ROWS.shape, ROWS.dtype, column="mean", rows_per_part=8, job=job, resume=resume)


def write(parts: Parts, start: int, stop: int) -> None:
    """Writes rows as another process does, in chunks of 3, and notes them."""
    parts.place.write(start, stop, (ROWS[i : min(i + 3, stop)] for i in range(start, stop, 3)))
    parts.wrote(start, stop)


def stop_after(path: Path, *spans: tuple[int, int]) -> None:
    """Writes some parts, and fails."""
    with open_rows(path) as parts:
        for start, stop in spans:
            write(parts, start, stop)
        raise RuntimeError("stopped")


def read(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    table = pq.read_table(path)
    np.testing.assert_array_equal(table["row"], np.arange(len(ROWS)))
    return table["mean"].combine_chunks().flatten().to_numpy().reshape(-1, 3)


@OUTPUTS
def test_parts_in_any_order_are_the_whole(tmp_path: Path, name: str):
    with open_rows(tmp_path / name) as parts:
        assert parts.missing()[0][0] == 0
        for start, stop in ((16, 22), (0, 8), (8, 16)):
            write(parts, start, stop)
        assert parts.missing() == []
    np.testing.assert_array_equal(read(tmp_path / name), ROWS)
    files = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if "partial" in file or file.startswith(".")]


@OUTPUTS
def test_a_part_written_twice_is_there_once(tmp_path: Path, name: str):
    with open_rows(tmp_path / name) as parts:
        parts.place.write(8, 16, iter([np.zeros((8, 3), np.float32)]))  # whoever did it was lost
        for start, stop in ((0, 8), (8, 16), (16, 22)):
            write(parts, start, stop)
    np.testing.assert_array_equal(read(tmp_path / name), ROWS)


@OUTPUTS
def test_a_stopped_job_resumes_with_the_parts_that_are_missing(tmp_path: Path, name: str):
    with pytest.raises(RuntimeError) as caught:
        stop_after(tmp_path / name, (8, 16))
    assert "8 of 22 rows" in caught.value.__notes__[0]
    with open_rows(tmp_path / name, resume=True) as parts:
        assert parts.rows_done == 8
        missing = [row for start, stop in parts.missing() for row in range(start, stop)]
        assert missing == [*range(8), *range(16, 22)]
        write(parts, 0, 8)
        write(parts, 16, 22)
    np.testing.assert_array_equal(read(tmp_path / name), ROWS)


@OUTPUTS
def test_another_jobs_output_is_refused_and_left_alone(tmp_path: Path, name: str):
    with pytest.raises(RuntimeError):
        stop_after(tmp_path / name, (8, 16))
    with pytest.raises(OutputError, match="seed was 0 and is 1 now"):
        open_rows(tmp_path / name, {"seed": 1}, resume=True)
    with open_rows(tmp_path / name, resume=True) as parts:
        assert parts.rows_done == 8
        write(parts, 0, 8)
        write(parts, 16, 22)


@OUTPUTS
def test_rows_that_are_missing_are_an_error(tmp_path: Path, name: str):
    with pytest.raises(OutputError, match="rows"), open_rows(tmp_path / name) as parts:
        write(parts, 0, 8)


@OUTPUTS
def test_another_number_of_rows_than_announced_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(OutputError, match="got 8 rows for 6"), open_rows(tmp_path / name) as parts:
        parts.place.write(16, 22, iter([ROWS[:8]]))


@OUTPUTS
def test_failure_before_the_first_row_leaves_nothing(tmp_path: Path, name: str):
    with pytest.raises(RuntimeError), open_rows(tmp_path / name):
        raise RuntimeError("stopped")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@OUTPUTS
def test_two_processes_do_not_run_one_job(tmp_path: Path, name: str):
    with open_rows(tmp_path / name) as parts:
        with pytest.raises(OutputError, match="another process"):
            open_rows(tmp_path / name, resume=True)
        for start, stop in ((0, 8), (8, 16), (16, 22)):
            write(parts, start, stop)
    np.testing.assert_array_equal(read(tmp_path / name), ROWS)


def test_rows_of_an_array_are_not_noted_twice(tmp_path: Path):
    with pytest.raises(OutputError, match="written twice"):
        stop_after(tmp_path / "out.npy", (0, 8), (4, 12))


def test_a_truncated_part_is_written_again(tmp_path: Path):
    with pytest.raises(RuntimeError):
        stop_after(tmp_path / "out", (0, 8), (8, 16))
    part = tmp_path / "out" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:40])
    with open_rows(tmp_path / "out", resume=True) as parts:
        assert parts.missing() == [(8, 16), (16, 22)]
        write(parts, 8, 16)
        write(parts, 16, 22)
    np.testing.assert_array_equal(read(tmp_path / "out"), ROWS)


def test_a_folder_with_other_things_is_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").touch()
    with pytest.raises(OutputError, match="not empty"):
        open_rows(tmp_path / "out")
    with pytest.raises(InputError, match=r"expected a \.npy array or a folder of Parquet parts"):
        open_rows(tmp_path / "out.png")


def test_a_finished_folder_is_not_written_over(tmp_path: Path):
    with open_rows(tmp_path / "out") as parts:
        for start, stop in ((0, 8), (8, 16), (16, 22)):
            write(parts, start, stop)
    with pytest.raises(OutputError, match="resume it"):
        open_rows(tmp_path / "out")
    with open_rows(tmp_path / "out", resume=True) as parts:
        assert parts.missing() == []


def test_pictures_in_parquet_keep_their_shape(tmp_path: Path):
    pictures = np.arange(5 * 4 * 3 * 2, dtype=np.uint8).reshape(5, 4, 3, 2)
    path = tmp_path / "out"
    with open_parts(
        path, pictures.shape, pictures.dtype, column="x", rows_per_part=8, job=JOB, resume=False
    ) as parts:
        parts.place.write(0, 5, iter([pictures]))
        parts.wrote(0, 5)
    found = pq.read_table(path)["x"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(found, pictures)


@OUTPUTS
def test_rows_that_files_have_no_name_for_are_float32(tmp_path: Path, name: str):
    rows = ROWS.astype(jnp.bfloat16)
    how = {"column": "mean", "rows_per_part": 8, "job": JOB, "resume": False}
    with open_parts(tmp_path / name, rows.shape, rows.dtype, **how) as parts:
        for start, stop in ((0, 8), (8, 16), (16, 22)):
            parts.place.write(start, stop, iter([rows[start:stop]]))
            parts.wrote(start, stop)
    np.testing.assert_array_equal(read(tmp_path / name), rows.astype(np.float32), strict=True)
