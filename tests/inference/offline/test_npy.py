import errno
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.errors import OutputError
from artifex.generative_models.inference.offline import npy
from artifex.generative_models.inference.offline.npy import NpyWriter

JOB = {"seed": 0, "batch_size": 4}


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((10, 3), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.npy"


@pytest.fixture
def always_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_FLUSH_SECONDS", 0.0)


def write(path: Path, rows: np.ndarray, *, stop: int | None = None, resume: bool = False) -> int:
    """Writes in chunks of 4 rows and fails after `stop` of them; returns where it began."""
    with NpyWriter(path, rows.shape, rows.dtype, job=JOB, resume=resume) as writer:
        first = writer.rows_done
        for start in range(first, len(rows), 4):
            if start == stop:
                raise RuntimeError("stopped")
            writer.write(rows[start : start + 4])
    return first


def partials(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_file_is_what_numpy_would_save(path: Path, rows: np.ndarray, dtype: type):
    write(path, rows.astype(dtype))
    np.save(path.with_name("expected.npy"), rows.astype(dtype))
    assert path.read_bytes() == path.with_name("expected.npy").read_bytes()
    assert partials(path) == ["expected.npy", "out.npy"]


def test_rows_that_numpy_has_no_name_for_are_float32(path: Path, rows: np.ndarray):
    write(path, rows.astype(jnp.bfloat16))
    found = np.load(path)
    np.testing.assert_array_equal(found, rows.astype(jnp.bfloat16).astype(np.float32), strict=True)


def test_name_appears_when_the_rows_are_whole(path: Path, rows: np.ndarray):
    np.save(path, np.zeros(1))
    before = path.read_bytes()
    with NpyWriter(path, rows.shape, rows.dtype, job=JOB) as writer:
        writer.write(rows)
        assert path.read_bytes() == before
    np.testing.assert_array_equal(np.load(path), rows)


def test_resumes_at_the_end_of_a_chunk(path: Path, rows: np.ndarray):
    with pytest.raises(RuntimeError, match="stopped") as caught:
        write(path, rows, stop=8)
    assert "8 of 10 rows" in caught.value.__notes__[0]
    assert partials(path) == ["out.npy.partial", "out.npy.partial.json"]
    assert write(path, rows, resume=True) == 8
    np.testing.assert_array_equal(np.load(path), rows)
    assert partials(path) == ["out.npy"]


def test_rows_on_record_are_in_the_file(path: Path, rows: np.ndarray, always_recorded: None):
    with NpyWriter(path, rows.shape, rows.dtype, job=JOB) as writer:
        for start in (0, 4, 8):
            writer.write(rows[start : start + 4])
            done = json.loads(path.with_name("out.npy.partial.json").read_bytes())["rows_done"]
            ((_, stop),) = done
            assert stop == min(start + 4, 10)
            np.testing.assert_array_equal(np.load(path.with_name("out.npy.partial"))[:stop], rows[:stop])


def test_resumes_when_every_row_was_written_but_not_the_name(
    path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(NpyWriter, "_finish", lambda self: self._flush())
        write(path, rows)
    assert not path.exists()
    assert write(path, rows, resume=True) == 10
    np.testing.assert_array_equal(np.load(path), rows)


def test_resumes_from_nothing(path: Path, rows: np.ndarray):
    assert write(path, rows, resume=True) == 0
    np.testing.assert_array_equal(np.load(path), rows)


def test_resumes_a_job_that_had_no_row_on_disk(path: Path, rows: np.ndarray):
    NpyWriter(path, rows.shape, rows.dtype, job=JOB)._file.close()  # as if it were killed
    assert write(path, rows, resume=True) == 0
    np.testing.assert_array_equal(np.load(path), rows)


def test_starts_over_without_resume(path: Path, rows: np.ndarray):
    with pytest.raises(RuntimeError):
        write(path, rows, stop=8)
    assert write(path, -rows) == 0
    np.testing.assert_array_equal(np.load(path), -rows)


@pytest.mark.parametrize(
    ("job", "num_rows", "difference"),
    [
        ({**JOB, "seed": 1}, 10, "seed was 0 and is 1 now"),
        ({"seed": 0}, 10, "batch_size was 4 and is None now"),
        (JOB, 11, r"shape was \[10, 3\] and is \[11, 3\] now"),
    ],
)
def test_refuses_to_resume_another_job(
    path: Path, rows: np.ndarray, job: dict[str, int], num_rows: int, difference: str
):
    with pytest.raises(RuntimeError):
        write(path, rows, stop=4)
    with pytest.raises(OutputError, match=difference):
        NpyWriter(path, (num_rows, 3), rows.dtype, job=job, resume=True)
    assert write(path, rows, resume=True) == 4  # and leaves what there is as it was


@pytest.mark.parametrize("record", [b"", b"[]", b'{"job": {}}', b'{"rows_done": 4, "job": 1}'])
def test_refuses_a_damaged_record(path: Path, rows: np.ndarray, record: bytes):
    with pytest.raises(RuntimeError):
        write(path, rows, stop=4)
    path.with_name("out.npy.partial.json").write_bytes(record)
    with pytest.raises(OutputError, match="damaged"):
        write(path, rows, resume=True)


@pytest.mark.parametrize("keep", [1, 130, 200])
def test_refuses_a_truncated_partial_file(path: Path, rows: np.ndarray, keep: int):
    with pytest.raises(RuntimeError):
        write(path, rows, stop=4)
    partial = path.with_name("out.npy.partial")
    partial.write_bytes(partial.read_bytes()[:keep])
    with pytest.raises(OutputError, match="damaged"):
        write(path, rows, resume=True)


def test_two_processes_do_not_write_one_file(path: Path, rows: np.ndarray):
    with NpyWriter(path, rows.shape, rows.dtype, job=JOB) as writer:
        with pytest.raises(OutputError, match="another process"):
            NpyWriter(path, rows.shape, rows.dtype, job=JOB, resume=True)
        writer.write(rows)
    np.testing.assert_array_equal(np.load(path), rows)


def test_failure_before_the_first_row_leaves_nothing(path: Path, rows: np.ndarray):
    with pytest.raises(RuntimeError):
        write(path, rows, stop=0)
    assert partials(path) == []


def test_full_disk_is_seen_at_the_start_and_leaves_nothing(
    path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    def full(file: object, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(npy, "_reserve", full)
    with pytest.raises(OSError, match="No space") as caught:
        NpyWriter(path, rows.shape, rows.dtype, job=JOB)
    assert caught.value.filename == str(path.with_name("out.npy.partial"))
    assert partials(path) == []


@pytest.mark.parametrize("given", [9, 11])
def test_number_of_rows_must_be_the_one_announced(path: Path, given: int):
    with (
        pytest.raises(OutputError, match=f"got {given} rows where 10 were announced"),
        NpyWriter(path, (10, 3), np.float32, job=JOB) as writer,
    ):
        writer.write(np.zeros((given, 3), np.float32))
    assert not path.exists()
