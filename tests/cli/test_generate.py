import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def pipeline(model: Path) -> InferencePipeline:
    return load_pipeline(model, batch_size=4)


def samples(pipeline: InferencePipeline, num_samples: int, seed: int, temperature: float = 1.0) -> np.ndarray:
    return np.asarray(pipeline.generate(num_samples, rngs=nnx.Rngs(seed), temperature=temperature))


def test_array_holds_the_samples_of_the_seed(model: Path, pipeline: InferencePipeline, cli: Cli):
    cli("generate", model, "-n", 10, "-o", "out.npy", "--seed", 5, "--temperature", 0.7, "--batch-size", 4)
    np.testing.assert_array_equal(np.load("out.npy"), samples(pipeline, 10, 5, 0.7))


def test_folder_holds_a_png_each(model: Path, pipeline: InferencePipeline, cli: Cli):
    cli("generate", model, "-n", 5, "-o", "new/folder.v1/", "--batch-size", 4)
    files = sorted(Path("new/folder.v1").iterdir())
    assert [file.name for file in files] == [f"{number:06}.png" for number in range(5)]
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    np.testing.assert_array_equal(pictures, samples(pipeline, 5, 0))


def test_grid_holds_the_samples_row_by_row(model: Path, pipeline: InferencePipeline, cli: Cli):
    cli("generate", model, "-n", 5, "-o", "out.png", "--batch-size", 4)
    grid = np.asarray(Image.open("out.png"))
    assert grid.shape == (2 * 178 - 2, 3 * 178 - 2)  # two rows of three, 22 times as large, to be seen
    cli("generate", model, "-n", 5, "-o", "out.png", "--batch-size", 4, "--scale", 1)
    grid, large = np.asarray(Image.open("out.png")), grid
    assert grid.shape == (18, 28)  # two rows of three, two pixels apart
    np.testing.assert_array_equal(large[:176:22, 356:532:22], grid[:8, 20:28])
    expected = samples(pipeline, 5, 0)[..., 0]
    np.testing.assert_array_equal(grid[:8, 20:28], expected[2])
    np.testing.assert_array_equal(grid[10:18, 10:18], expected[4])
    assert (grid[8:10] == 255).all()
    assert sorted(path.name for path in Path().iterdir()) == ["out.png"]


def test_grid_of_one_is_the_picture(model: Path, pipeline: InferencePipeline, cli: Cli):
    cli("generate", model, "-n", 1, "-o", "out.png", "--batch-size", 4)
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), samples(pipeline, 1, 0)[0, ..., 0])


def test_devices_and_batch_size_do_not_change_a_sample(model: Path, pipeline: InferencePipeline, cli: Cli):
    for devices in ("2", "all"):
        cli("generate", model, "-n", 7, "-o", "out.npy", "--devices", devices, "--batch-size", 3)
        difference = np.load("out.npy").astype(int) - samples(pipeline, 7, 0)
        assert np.abs(difference).max() <= 1  # batch sizes differ in the last bits, which rounding may show


def test_json_is_one_line_of_facts(model: Path, cli: Cli, folder: Path):
    facts = json.loads(
        cli("generate", model, "-n", 7, "-o", "out.npy", "--seed", 9, "--batch-size", 4, "--json")
    )
    assert facts.pop("seconds") > 0
    assert facts.pop("rows_per_second") > 0
    assert facts.pop("compile_seconds") > 0  # though its last batch has the size of the others
    assert facts == {
        "output": str(folder / "out.npy"),
        "rows": 7,
        "resumed_at": 0,
        "model": str(model),
        "seed": 9,
        "temperature": 1.0,
    }


def test_resume_refuses_another_seed(
    model: Path, cli: Cli, failing_cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    from artifex.generative_models.inference.offline.npy import NpyWriter

    def fail(self: NpyWriter) -> None:
        raise OSError("the cable was pulled")

    with monkeypatch.context() as patch:
        patch.setattr(NpyWriter, "_finish", fail)
        failing_cli("generate", model, "-n", 8, "-o", "out.npy", "--batch-size", 4)
    again = ("generate", model, "-n", 8, "-o", "out.npy", "--resume", "--batch-size")
    assert "seed was 0 and is 1 now" in failing_cli(*again, 4, "--seed", 1)
    assert "batch_size was 4 and is 3 now" in failing_cli(*again, 3)
    with jax.threefry_partitionable(False):
        assert "settings was" in failing_cli(*again, 4)
    cli(*again, 4)
    assert np.load("out.npy").shape == (8, 8, 8, 1)


def test_bundled_model_draws_what_the_pipeline_draws(cli: Cli):
    cli("generate", "mnist-vae", "-n", 4, "-o", "out.npy", "--batch-size", 4)
    np.testing.assert_array_equal(np.load("out.npy"), samples(load_pipeline("mnist-vae", batch_size=4), 4, 0))
