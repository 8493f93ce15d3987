"""Jobs on a real Ray: the output of one process, whatever is killed."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed_ray import RAY_WARNS, kill_the_reader, wait_until, workers
from every_family import FAMILIES
from PIL import Image
from ray import get_runtime_context
from served import START_SECONDS

from artifex.generative_models.core.errors import ConfigError, InputError, OutputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import InferencePipeline, export_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.ray import encode_dataset, generate_dataset

pytestmark = RAY_WARNS

SHARDS = {"batch_size": 4, "rows_per_shard": 8}  # 70 rows are 9 shards, the last of 6


def read(output: Path, column: str) -> np.ndarray:
    """The rows of a folder of Parquet parts with each of them once, in order."""
    table = pq.read_table(output)
    rows = table["row"].to_numpy()
    assert sorted(rows) == list(range(len(rows)))
    values = table[column].combine_chunks()
    values = (
        values.to_numpy_ndarray()
        if isinstance(values, pa.FixedShapeTensorArray)
        else values.flatten().to_numpy().reshape(len(rows), -1)
    )
    return values[np.argsort(rows)]


def pictures_folder(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture[..., 0]).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def latents(plain: InferencePipeline, small: np.ndarray) -> np.ndarray:
    return np.asarray(plain.encode(small))


@pytest.mark.slow
def test_two_draw_what_one_process_does_of_any_family_with_its_fields(ray: object, tmp_path: Path):
    export = export_model(FAMILIES["autoregressive"](), tmp_path / "model", step=0)
    output = tmp_path / "out.parquet"
    said = {"label": [number % 3 for number in range(22)]}
    facts = generate_dataset(export, 22, output, seed=7, temperature=0.5, given=said, num_actors=2, **SHARDS)
    assert (facts["rows"], facts["resumed_at"], facts["num_actors"]) == (22, 0, 2)
    assert facts["output"] == str(output)
    one = load_pipeline(export, batch_size=4)
    chunks = one.generate_chunks(22, key=sample_key(7), temperature=0.5, given=said)
    found = read(output, "x")
    np.testing.assert_array_equal(found, np.concatenate(list(chunks)))
    assert len(np.unique(found, axis=0)) > 1


def blocked(folder: Path, number: int) -> bytes:
    """Puts a pipe in a picture's place, at which whoever reads it waits; its contents."""
    path = folder / f"{number:03}.png"
    contents = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    return contents


@contextlib.contextmanager
def killed_at(path: Path) -> Iterator[None]:
    """Kills the actor that comes to a pipe, when it waits there."""
    opened: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody reads it yet
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(is_read)
    try:  # until it is closed here, who reads is not told that nothing comes
        kill_the_reader(path)
        yield
    finally:
        os.close(opened[0])


def unblock(folder: Path, number: int, contents: bytes) -> None:
    """Waits until an actor waits at the pipe, kills it, and puts the picture back."""
    path = folder / f"{number:03}.png"
    with killed_at(path):
        mended = path.with_suffix(".mended")
        mended.write_bytes(contents)
        mended.replace(path)


@pytest.mark.slow
def test_a_killed_actor_loses_and_repeats_no_row_and_what_goes_wrong_in_one_is_raised_here(
    ray: object, tiny: Path, tmp_path: Path, small: np.ndarray, latents: np.ndarray
):
    folder, output = pictures_folder(tmp_path / "files", small), tmp_path / "out"
    contents = blocked(folder, 12)
    (folder / "060.png").write_bytes(b"no picture")
    with ThreadPoolExecutor(1) as threads:
        unblocked = threads.submit(unblock, folder, 12, contents)
        with pytest.raises(InputError, match=r"060\.png: not a picture") as caught:
            encode_dataset(tiny, folder, output, **SHARDS)
        unblocked.result()
    assert "rows are kept in" in caught.value.__notes__[0]
    kept = pq.read_table(output)
    rows = kept["row"].to_numpy()
    assert len({*rows}) == len(rows)
    assert {*range(56)} <= {*rows} <= {*range(56), *range(64, 70)}
    np.testing.assert_array_equal(np.array(kept["mean"].to_pylist(), np.float32), latents[rows])


DRIVER = """
import os, signal, sys
from artifex.generative_models.inference.offline import npy
from artifex.generative_models.inference.offline.npy import NpyWriter
from artifex.ray import encode_dataset
npy._FLUSH_SECONDS = 0.0
wrote = NpyWriter.wrote
def dying(self, start, stop):
    wrote(self, start, stop)
    if self.rows_done >= 24:
        os.kill(os.getpid(), signal.SIGKILL)
NpyWriter.wrote = dying
model, source, output, address = sys.argv[1:]
encode_dataset(model, source, output, address=address, batch_size=4, rows_per_shard=8)
"""


@pytest.mark.slow
def test_a_killed_driver_is_resumed_and_a_shard_that_kills_its_process_is_left_out_and_named(
    ray: object, tiny: Path, tmp_path: Path, small: np.ndarray, latents: np.ndarray
):
    folder, output = pictures_folder(tmp_path / "files", small), tmp_path / "out.npy"
    command = ["-c", DRIVER, tiny, folder, output, get_runtime_context().gcs_address]
    assert forked.run(command, timeout=START_SECONDS).returncode == -signal.SIGKILL
    assert not output.exists()
    done = json.loads(output.with_name("out.npy.partial.json").read_text())["rows_done"]
    assert 24 <= sum(stop - start for start, stop in done) < 70
    wait_until(lambda: not workers())  # those that the driver left
    contents = blocked(folder, 44)
    picture, killed = folder / "044.png", []

    def kill_those_who_read() -> None:
        while len(killed) < 3:
            with killed_at(picture):
                killed.append(None)

    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill_those_who_read)
        with pytest.raises(OutputError, match=r"rows 40 to 47 are missing: .* ended 3 times") as caught:
            encode_dataset(tiny, folder, output, resume=True, **SHARDS)
        killing.result()
    assert "to resume from" in caught.value.__notes__[0]
    written = json.loads(output.with_name("out.npy.partial.json").read_text())["rows_done"]
    assert written == [[0, 40], [48, 70]]
    kept = np.memmap(output.with_name("out.npy.partial"), np.float32, "r", offset=128, shape=(70, 4))
    for start, stop in written:
        np.testing.assert_array_equal(kept[start:stop], latents[start:stop])
    picture.unlink()
    picture.write_bytes(contents)
    assert encode_dataset(tiny, folder, output, resume=True, num_actors=1, **SHARDS)["resumed_at"] == 62
    np.testing.assert_array_equal(np.load(output), latents)


def test_what_cannot_be_done_leaves_nothing(ray: object, tiny: Path, tmp_path: Path):
    with pytest.raises(InputError, match="num_actors: expected at least 1, got 0"):
        generate_dataset(tiny, 4, tmp_path / "out.npy", num_actors=0)
    with pytest.raises(InputError, match="num_samples: expected at least 1, got 0"):
        generate_dataset(tiny, 0, tmp_path / "out.npy")
    with pytest.raises(ConfigError, match="no model 'nobody'"):
        generate_dataset("nobody", 4, tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []
