"""Commands that are killed, interrupted or run out of disk, in processes of their own."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from forked import Python

from artifex.generative_models.inference.pipeline import load_pipeline

Spawn = Callable[..., Python]

DIES = """
import os, signal
from artifex.generative_models.inference.offline import npy
npy._FLUSH_SECONDS = {record_seconds}
write = npy.NpyWriter.write
def dying_write(self, rows):
    write(self, rows)
    if self.rows_done == {rows}:
        os.kill(os.getpid(), signal.SIGKILL)
npy.NpyWriter.write = dying_write
"""


def kill(process: Python, output: Path) -> None:
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    assert output.with_name(f"{output.name}.partial").exists()


@pytest.mark.parametrize(
    ("record_seconds", "first_row"), [(0, 32), (3600, 0)], ids=["rows on record", "none on record"]
)
def test_killed_generate_resumes_to_the_same_bits(
    model: Path, folder: Path, cli: Callable[..., str], spawn: Spawn, record_seconds: int, first_row: int
):
    args = ["generate", model, "-n", 70, "--batch-size", 16, "--seed", 7]
    output = folder / "samples.npy"
    kill(spawn(*args, "-o", output, before=DIES.format(record_seconds=record_seconds, rows=32)), output)
    said = cli(*args, "-o", output, "--resume")
    assert ("from 32 on" in said) == (first_row == 32)
    cli(*args, "-o", "whole.npy")
    assert output.read_bytes() == Path("whole.npy").read_bytes()
    samples = load_pipeline(model, batch_size=16).generate(70, rngs=nnx.Rngs(7))
    np.testing.assert_array_equal(np.load(output), np.asarray(samples))


@pytest.mark.parametrize("kind", ["array", "folder"])
def test_killed_encode_resumes_to_the_same_bits(
    model: Path, folder: Path, small: np.ndarray, cli: Callable[..., str], spawn: Spawn, kind: str
):
    if kind == "array":
        np.save("images.npy", small)
    else:
        from PIL import Image

        Path("images.npy").mkdir()
        for number, picture in enumerate(small):
            Image.fromarray(picture[..., 0]).save(f"images.npy/{number:03}.png")
    args = ["encode", model, "images.npy", "--batch-size", 16]
    output = folder / "latents.npy"
    kill(spawn(*args, before=DIES.format(record_seconds=0, rows=48)), output)
    assert "from 48 on" in cli(*args, "--resume")
    cli(*args, "-o", "whole.npy")
    assert output.read_bytes() == Path("whole.npy").read_bytes()


def test_interrupt_says_one_line(model: Path, folder: Path, spawn: Spawn):
    output = folder / "samples.npy"
    process = spawn("generate", model, "-n", 5_000_000, "-o", output)
    deadline = time.monotonic() + 120
    while not output.with_name("samples.npy.partial.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.startswith("artifex: interrupted")
    assert stderr.count("\n") == 1
    assert not output.exists()


def test_interrupt_that_a_finaliser_swallows_is_not_lost(model: Path, spawn: Spawn):
    swallows = """
import time
from artifex.generative_models.inference import pipeline
class Swallows:
    def __del__(self):
        raise KeyboardInterrupt
def load(*args, **kwargs):
    Swallows()
    time.sleep(60)
pipeline.load_pipeline = load
"""
    process = spawn("generate", model, before=swallows)
    assert process.communicate() == ("", "artifex: interrupted\n")
    assert process.returncode == 130


@pytest.mark.parametrize("output", ["samples.npy", "samples.png", "samples"])
def test_full_disk_says_one_line(model: Path, folder: Path, spawn: Spawn, output: str):
    no_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    process = spawn("generate", model, "-n", 4, "-o", output, before=no_room)
    stdout, stderr = process.communicate()
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.startswith("artifex: error: ")
    assert "File too large" in stderr
    assert stderr.count("\n") == 1
    assert [path for path in folder.rglob("*") if path.is_file()] == []
