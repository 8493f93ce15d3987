"""Jobs on a real Ray: the output of one process, whatever is killed."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed_ray import RAY_WARNS, kill_a_worker, wait_until, workers
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
    """The rows of an array, or of a folder of Parquet parts with each of them once, in order."""
    if output.suffix == ".npy":
        return np.load(output)
    folder = output
    table = pq.read_table(folder)
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


def parquet_folder(folder: Path, pictures: np.ndarray, files: Path) -> Path:
    """Two files, of encoded pictures in row groups of 11."""
    folder.mkdir()
    encoded = [path.read_bytes() for path in sorted(files.iterdir())]
    for name, part in (("a", encoded[:30]), ("b", encoded[30:])):
        table = pa.table({"image": pa.array(part, pa.binary()), "label": list(range(len(part)))})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=11)
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, small: np.ndarray) -> dict[str, Path]:
    """The same pictures in every form."""
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "array.npy", small)
    files = pictures_folder(folder / "files", small)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(small.reshape(-1)), 64)
    pq.write_table(pa.table({"image": flat}), folder / "lists.parquet", row_group_size=13)
    return {
        "array": folder / "array.npy",
        "files": files,
        "parquet": parquet_folder(folder / "encoded", small, files),
        "lists": folder / "lists.parquet",
    }


@pytest.fixture(scope="module")
def latents(plain: InferencePipeline, small: np.ndarray) -> np.ndarray:
    return np.asarray(plain.encode(small))


@pytest.mark.slow
def test_encodes_what_one_process_does(
    ray: object, tiny: Path, tmp_path: Path, sources: dict[str, Path], latents: np.ndarray
):
    facts = encode_dataset(tiny, sources["parquet"], tmp_path / "out", num_actors=2, **SHARDS)
    assert (facts["rows"], facts["resumed_at"], facts["num_actors"]) == (70, 0, 2)
    assert facts["output"] == str(tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out", "mean"), latents)


@pytest.mark.slow
def test_generates_what_one_process_does(ray: object, tiny: Path, tmp_path: Path, plain: InferencePipeline):
    generate_dataset(tiny, 22, tmp_path / "out.parquet", seed=7, temperature=0.5, **SHARDS)
    chunks = plain.generate_chunks(22, key=sample_key(7), temperature=0.5)
    found = read(tmp_path / "out.parquet", "x")
    np.testing.assert_array_equal(found, np.concatenate(list(chunks)))
    assert len(np.unique(found, axis=0)) > 1


@pytest.mark.slow
def test_every_process_is_told_the_fields(ray: object, drawer: Path, tmp_path: Path):
    said = {"label": [number % 4 for number in range(22)], "sampler": "euler", "num_steps": 2}
    generate_dataset(drawer, 22, tmp_path / "out.npy", seed=7, given=said, num_actors=2, **SHARDS)
    wanted = load_pipeline(drawer, batch_size=4).generate(22, rngs=7, **said)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


@pytest.mark.slow
def test_any_family_is_drawn_from(ray: object, tmp_path: Path):
    export = export_model(FAMILIES["autoregressive"](), tmp_path / "model", step=0)
    generate_dataset(export, 6, tmp_path / "out.npy", seed=7, given={"label": 1}, **SHARDS)
    wanted = load_pipeline(export, batch_size=4).generate(6, rngs=7, label=1)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


def blocked(folder: Path, number: int) -> bytes:
    """Puts a pipe in a picture's place, at which whoever reads it waits; its contents."""
    path = folder / f"{number:03}.png"
    contents = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    return contents


def is_read(path: Path) -> bool:
    """Whether somebody waits at a pipe; it is told nothing."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return True
    return False


def unblock(folder: Path, number: int, contents: bytes, kill: Callable[[], None]) -> None:
    """Waits until somebody waits at the pipe, has it killed, and puts the picture back."""
    path = folder / f"{number:03}.png"
    opened: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody reads it yet
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    wait_until(is_read)
    try:
        kill()
        mended = path.with_suffix(".mended")
        mended.write_bytes(contents)
        mended.replace(path)
    finally:
        os.close(opened[0])


@pytest.mark.slow
def test_a_killed_actor_loses_and_repeats_no_row(
    ray: object,
    tiny: Path,
    tmp_path: Path,
    small: np.ndarray,
    latents: np.ndarray,
):
    folder = pictures_folder(tmp_path / "files", small)
    contents = blocked(folder, 44)
    with ThreadPoolExecutor(1) as threads:
        unblocked = threads.submit(unblock, folder, 44, contents, kill_a_worker)
        encode_dataset(tiny, folder, tmp_path / "out", **SHARDS)
        unblocked.result()
    np.testing.assert_array_equal(read(tmp_path / "out", "mean"), latents)


@pytest.mark.slow
def test_a_shard_that_kills_its_process_is_left_out_and_named(
    ray: object, tiny: Path, tmp_path: Path, small: np.ndarray, latents: np.ndarray
):
    folder, output = pictures_folder(tmp_path / "files", small), tmp_path / "out.npy"
    contents = blocked(folder, 44)
    picture, killed = folder / "044.png", []

    def kill_those_who_read() -> None:
        while len(killed) < 3:
            wait_until(lambda: workers() and is_read(picture))
            kill_a_worker()
            killed.append(None)

    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill_those_who_read)
        with pytest.raises(OutputError, match=r"rows 40 to 47 are missing: .* ended 3 times"):
            encode_dataset(tiny, folder, output, **SHARDS)
        killing.result()
    picture.unlink()
    picture.write_bytes(contents)
    assert encode_dataset(tiny, folder, output, resume=True, **SHARDS)["resumed_at"] == 62
    np.testing.assert_array_equal(np.load(output), latents)


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
def test_a_killed_driver_is_resumed(
    ray: object, tiny: Path, tmp_path: Path, sources: dict[str, Path], latents: np.ndarray
):
    output = tmp_path / "out.npy"
    command = ["-c", DRIVER, tiny, sources["array"], output, get_runtime_context().gcs_address]
    assert forked.run(command, timeout=START_SECONDS).returncode == -signal.SIGKILL
    assert not output.exists()
    facts = encode_dataset(tiny, sources["array"], output, resume=True, num_actors=1, **SHARDS)
    assert 24 <= facts["resumed_at"] < 70
    np.testing.assert_array_equal(np.load(output), latents)


@pytest.mark.slow
def test_what_goes_wrong_in_an_actor_is_raised_here_and_the_rest_is_kept(
    ray: object, tiny: Path, tmp_path: Path, small: np.ndarray, latents: np.ndarray
):
    folder, output = pictures_folder(tmp_path / "files", small), tmp_path / "out.npy"
    (folder / "050.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"050\.png: not a picture") as caught:
        encode_dataset(tiny, folder, output, **SHARDS)
    assert "to resume from" in caught.value.__notes__[0]
    (done, *_) = json.loads(output.with_name("out.npy.partial.json").read_text())["rows_done"]
    kept = np.memmap(output.with_name("out.npy.partial"), np.float32, "r", offset=128, shape=(70, 4))
    np.testing.assert_array_equal(kept[slice(*done)], latents[slice(*done)])


def test_what_cannot_be_done_leaves_nothing(ray: object, tiny: Path, tmp_path: Path):
    with pytest.raises(InputError, match="num_actors: expected at least 1, got 0"):
        generate_dataset(tiny, 4, tmp_path / "out.npy", num_actors=0)
    with pytest.raises(InputError, match="num_samples: expected at least 1, got 0"):
        generate_dataset(tiny, 0, tmp_path / "out.npy")
    with pytest.raises(ConfigError, match="no model 'nobody'"):
        generate_dataset("nobody", 4, tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []
