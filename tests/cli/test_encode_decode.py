import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from shared import randomised

from artifex.generative_models.inference import export_model
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline
from artifex.generative_models.models.vqvae import VQVAE

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def pipeline(model: Path) -> InferencePipeline:
    return load_pipeline(model, batch_size=4)


@pytest.fixture
def images(small: np.ndarray, folder: Path) -> np.ndarray:
    np.save("images.npy", small[:10])
    return small[:10]


@pytest.fixture
def latents(pipeline: InferencePipeline, images: np.ndarray) -> np.ndarray:
    return np.asarray(pipeline.encode(images))


def test_encode_writes_the_means(model: Path, latents: np.ndarray, cli: Cli):
    facts = json.loads(cli("encode", model, "images.npy", "--batch-size", 4, "--json"))
    assert facts["rows"] == 10
    np.testing.assert_array_equal(np.load("latents.npy"), latents)


def test_dtype_is_that_of_the_computation(model: Path, latents: np.ndarray, cli: Cli):
    cli("encode", model, "images.npy", "--dtype", "bfloat16", "--batch-size", 4)
    halves = np.load("latents.npy")
    assert halves.dtype == np.float32
    error = np.abs(halves - latents).max()
    assert 0 < error < 2**-5 * np.abs(latents).max()  # bfloat16 keeps 8 bits, and rounds layer by layer


def test_encode_writes_arrays_only(model: Path, images: np.ndarray, failing_cli: Cli):
    assert failing_cli("encode", model, "images.npy", "-o", "latents.txt").startswith("latents.txt: ")


def test_decode_inverts_to_the_pictures_of_the_pipeline(
    model: Path, pipeline: InferencePipeline, latents: np.ndarray, cli: Cli
):
    np.save("z.npy", latents)
    cli("decode", model, "z.npy", "-o", "out.npy", "--batch-size", 4)
    np.testing.assert_array_equal(np.load("out.npy"), np.asarray(pipeline.decode(latents)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5), np.float32), r"z.npy: expected shape [rows, 4], got [3, 5]"),
        (np.zeros(4, np.float32), r"z.npy: expected shape [rows, 4], got [4]"),
        (np.zeros((0, 4), np.float32), r"z.npy: expected shape [rows, 4], got [0, 4]"),
        (np.zeros((3, 4), np.int32), "z.npy: expected a floating-point array, got int32"),
        (np.full((3, 4), np.nan, np.float32), "decode: z: row 0 has a NaN or infinite value as float32"),
    ],
)
def test_decode_refuses(model: Path, failing_cli: Cli, array: np.ndarray, message: str):
    np.save("z.npy", array)
    assert failing_cli("decode", model, "z.npy") == message
    assert [path.name for path in Path().iterdir()] == ["z.npy"]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported, untrained model whose latents are codes from 0 to 4."""
    model = randomised(
        lambda: VQVAE(
            (8, 8, 1), 5, 2, [4, 4], 0, prior_features=4, prior_layers=1, prior_heads=1, rngs=nnx.Rngs(0)
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_refuse_captured_weights", lambda model: None)  # which would trace it
        return export_model(model, tmp_path_factory.mktemp("models") / "codes", step=1)


def test_codes_are_written_and_decoded(coder: Path, images: np.ndarray, cli: Cli):
    pipeline = load_pipeline(coder, batch_size=4)
    facts = json.loads(cli("encode", coder, "images.npy", "-o", "codes.npy", "--batch-size", 4, "--json"))
    assert facts["rows"] == 10
    codes = np.load("codes.npy")
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, np.asarray(pipeline.encode(images)))
    cli("decode", coder, "codes.npy", "-o", "out.npy", "--batch-size", 4)
    np.testing.assert_array_equal(np.load("out.npy"), pipeline.reconstruct(images))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 2, 2), 5), "decode: codes: expected integers from 0 to 4, got 5 to 5"),
        (np.full((3, 2, 2), -1), "decode: codes: expected integers from 0 to 4, got -1 to -1"),
        (np.zeros((3, 2, 2), np.float32), "c.npy: expected an array of integers, got float32"),
        (np.zeros((3, 4), np.int32), "c.npy: expected shape [rows, 2, 2], got [3, 4]"),
    ],
)
def test_decode_refuses_what_are_no_codes(coder: Path, failing_cli: Cli, array: np.ndarray, message: str):
    np.save("c.npy", array)
    assert failing_cli("decode", coder, "c.npy") == message
    assert [path.name for path in Path().iterdir()] == ["c.npy"]


def test_reconstruct_grid_shows_pictures_above_reconstructions(
    model: Path, pipeline: InferencePipeline, images: np.ndarray, cli: Cli
):
    cli("reconstruct", model, "images.npy", "-o", "out.png", "--batch-size", 4, "--scale", 2)
    grid = np.asarray(Image.open("out.png"))
    left = grid.shape[1] - 5 * (16 + 2) + 2  # where the words beside them end
    assert (grid[:, :left] < 128).any()
    grid = grid[:, left:]
    np.testing.assert_array_equal(grid[:16:2, 18:34:2], images[1, ..., 0])
    np.testing.assert_array_equal(grid[16:32:2, 18:34:2], np.asarray(pipeline.reconstruct(images))[1, ..., 0])


def test_reconstruct_scales_originals_that_are_floating_point(model: Path, images: np.ndarray, cli: Cli):
    cli("reconstruct", model, "images.npy", "-o", "bytes.png", "--batch-size", 4)
    np.save("images.npy", images.astype(np.float32) / 255)
    cli("reconstruct", model, "images.npy", "-o", "floats.png", "--batch-size", 4)
    np.testing.assert_array_equal(np.asarray(Image.open("floats.png")), np.asarray(Image.open("bytes.png")))


def test_reconstruct_array_holds_reconstructions_alone(
    model: Path, pipeline: InferencePipeline, images: np.ndarray, cli: Cli
):
    cli("reconstruct", model, "images.npy", "-o", "out.npy", "--batch-size", 4)
    np.testing.assert_array_equal(np.load("out.npy"), np.asarray(pipeline.reconstruct(images)))


def test_interpolate_goes_from_one_picture_to_the_other(
    model: Path, images: np.ndarray, cli: Cli, failing_cli: Cli
):
    Image.fromarray(images[3, ..., 0]).save("three.png")
    cli("interpolate", model, "images.npy:2", "three.png", "--steps", 5, "-o", "line.npy")
    pipeline = load_pipeline(model, batch_size=5)
    expected = pipeline.interpolate(images[2] / np.float32(255), images[3] / np.float32(255), 5)
    difference = np.load("line.npy").astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1  # the ends are scaled by another formula here
    cli(
        "interpolate",
        model,
        "images.npy:2",
        "images.npy:3",
        "--steps",
        5,
        "--mode",
        "spherical",
        "-o",
        "arc.npy",
    )
    arc = pipeline.interpolate(images[2], images[3], 5, "spherical")
    np.testing.assert_array_equal(np.load("arc.npy"), arc)
    cli("interpolate", model, "images.npy:2", "three.png", "--steps", 5, "-o", "line.png")
    assert np.asarray(Image.open("line.png")).shape == (104, 5 * 106 - 2)
    assert failing_cli("interpolate", model, "images.npy:10", "three.png").startswith(
        "images.npy:10: there are 10"
    )


def test_a_model_that_interpolates_latents_alone_says_so(images: np.ndarray, failing_cli: Cli):
    said = failing_cli("interpolate", "mnist-gan", "images.npy:0", "images.npy:1")
    assert said.startswith("interpolate: x is not taken; it takes z, z_end, label, weight, truncation")
