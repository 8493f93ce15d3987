"""Models from one format to another, and pictures of any size through those that take them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from shared import randomised

from artifex.generative_models.core import denoisers
from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.inference import load_exported_model
from artifex.generative_models.inference.formats.safetensors import stored_arrays, write_arrays
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.denoiser import Denoiser
from artifex.generative_models.models.vae import VAE

Cli = Callable[..., str]
GOLDEN = Path(__file__).parents[1] / "golden" / "diffusers"
WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = GOLDEN / "autoencoder-tiny"

pytestmark = pytest.mark.usefixtures("exports_unsearched")


def leaves(model):
    return jax.tree.leaves(nnx.state(model))


def assert_equal(model, other):
    for ours, theirs in zip(leaves(model), leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_there_and_back(cli: Cli):
    facts = json.loads(cli("convert", TINY, "ours", "--json"))
    assert facts["format"] == "artifex"
    assert Path(facts["output"]) == Path("ours").absolute()
    model, _, metadata = load_exported_model("ours")
    assert metadata["model_type"] == "autoencoder_tiny"
    assert metadata["image_range"] == [-1, 1]
    assert_equal(model, load_exported_model(TINY)[0])
    cli("convert", "ours", "theirs", "--format", "diffusers")
    before, after = stored_arrays(TINY / WEIGHTS), stored_arrays(Path("theirs", WEIGHTS))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array.read(), after[name].read())


@pytest.mark.parametrize("form", ["artifex", "diffusers"])
def test_narrower_weights_that_compute_in_float32(cli: Cli, form: str):
    cli("convert", GOLDEN / "pipeline-dit", "narrow", "--format", form, "--dtype", "bfloat16")
    wide, narrow = (load_exported_model(path)[0] for path in (GOLDEN / "pipeline-dit", "narrow"))
    for ours, theirs in zip(leaves(narrow), leaves(wide), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(jnp.bfloat16).astype(np.float32))
    assert load_exported_model("narrow")[2]["image_range"] is None


@pytest.fixture
def own(folder: Path) -> VAE:
    """A VAE in a file with names of its own, its kernels turned as in PyTorch."""
    vae = randomised(lambda: VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0)))
    arrays = {"step": np.zeros(1, np.float32)}
    for path, leaf in nnx.to_flat_state(nnx.state(vae)):
        half, *layers, kind = map(str, path)
        values = np.asarray(leaf[...])
        name = ".".join(["net", half, *layers, {"kernel": "w", "bias": "b"}[kind]])
        arrays[name] = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values
    write_arrays(folder / "own.safetensors", arrays)
    (folder / "c.json").write_text(json.dumps(dict(vae.config)))
    return vae


NAMES = {
    "step": None,
    "net.*.convs.*.w": {"to": "*.convs.*.kernel", "axes": [2, 3, 1, 0]},
    "net.*.ups.*.w": {"to": "*.ups.*.kernel", "axes": [2, 3, 1, 0]},
    "net.*.w": "*.kernel",
    "net.*.b": "*.bias",
}
FILE = ("convert", "own.safetensors", "out", "--family", "vae", "--config", "c.json", "--map", "n.json")


def test_a_map_of_names(own: VAE, cli: Cli, folder: Path):
    (folder / "n.json").write_text(json.dumps(NAMES))
    cli(*FILE)
    model, _, metadata = load_exported_model("out")
    assert metadata["image_range"] == [0, 1]
    assert_equal(model, own)
    cli(*FILE, "--image-range", -1, 1)
    assert load_exported_model("out")[2]["image_range"] == [-1, 1]


def test_published_names_need_no_map(cli: Cli):
    config = GOLDEN / "unet-ddpm" / "config.json"
    said = json.loads(config.read_text())
    known = {key: value for key, value in said.items() if not key.startswith("_")}
    Path("c.json").write_text(json.dumps(known))
    Path("s.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    weights = GOLDEN / "unet-ddpm" / WEIGHTS
    cli("convert", weights, "out", "--family", "unet", "--config", "c.json", "--scheduler", "s.json")
    model, _, metadata = load_exported_model("out")
    assert metadata["image_range"] == [-1, 1]
    assert_equal(model, load_exported_model(GOLDEN / "unet-ddpm")[0])
    assert "generate" in model.endpoints()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": "step"}, ["left over: step"]),
        ({"net.*.b": None}, ["missing: decoder.stem.bias"]),
        (
            {"net.*.convs.*.w": "*.convs.*.kernel"},
            ["of another shape: net.encoder.convs.0.w is [4, 1, 2, 2]"],
        ),
        ({"net.*.b": "*.nothing"}, ["missing: decoder.stem.bias", "left over: net.decoder.stem.b"]),
        ({"step": "decoder.stem.bias"}, ["become the same weight"]),
        ({"net.*.w": "*.*.kernel"}, ["net.*.w: *.*.kernel has more * than the pattern"]),
        ({"net.*.w": 3}, ["net.*.w: expected a name, an object or null, got 3"]),
        ({"net.*.w": {"axes": [0]}}, ['net.*.w: expected {"to": name']),
        (
            {"net.*.w": {"to": "*.kernel", "axes": [0, 2]}},
            ["axes: expected an order such as [1, 0], got [0, 2]"],
        ),
        ({"net.*.w": {"to": "*.kernel", "axes": [0]}}, ["axes: expected 2 of them, got [0]"]),
    ],
)
def test_maps_that_do_not_fit(own: VAE, failing_cli: Cli, folder: Path, changes: dict, words: list[str]):
    (folder / "n.json").write_text(json.dumps(NAMES | changes))
    said = failing_cli(*FILE)
    for word in words:
        assert word in said
    assert not Path("out").exists()


def test_what_is_said_of_the_wrong_kind_of_source(own: VAE, failing_cli: Cli):
    assert "families: " in failing_cli("convert", "own.safetensors", "out")
    assert "--map" in failing_cli("convert", TINY, "out", "--map", "n.json")
    assert "--variant" in failing_cli(*FILE[:-2], "--variant", "fp16")
    assert "--scheduler" in failing_cli(*FILE[:-2], "--scheduler", "c.json")
    assert "no form in diffusers" in failing_cli("convert", "mnist-vae", "out", "--format", "diffusers")
    assert "no.safetensors is not there" in failing_cli("convert", "no.safetensors", *FILE[2:-2])


def test_a_checkpoint_becomes_a_directory_of_diffusers(cli: Cli):
    model, config, _ = load_exported_model(GOLDEN / "unet-ddpm")
    manager, path = setup_checkpoint_manager("run")
    with manager:
        save_checkpoint(manager, model, 10)
    Path("c.json").write_text(json.dumps(config))
    cli("export", path, "out", "--config", "c.json", "--model-type", "denoiser", "--format", "diffusers")
    assert_equal(load_exported_model("out")[0], model)


def test_inspect_says_what_runs_and_what_does_not(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(denoisers, "find_spec", lambda name: None)  # no diffrax, which takes long to trace
    shown = " ".join(cli("inspect", GOLDEN / "pipeline-dit").split())
    for fact in (
        "DiTPipeline of diffusers, denoiser",
        "transformer DiTTransformer2DModel",
        "vae AutoencoderKL: DiTPipeline is run without it",
        "generate num_steps",
    ):
        assert fact in shown
    shutil.copytree(GOLDEN / "pipeline-ddim", folder / "other")
    index = folder / "other" / "model_index.json"
    parts = json.loads(index.read_text()) | {"safety_checker": ["stable_diffusion", "SafetyChecker"]}
    index.write_text(json.dumps(parts | {"_class_name": "StableDiffusionPipeline"}))
    shown = " ".join(cli("inspect", "other").split())
    assert "StableDiffusionPipeline of diffusers, which is not run here" in shown
    assert "unet UNet2DModel, as a model of its own" in shown
    assert "safety_checker SafetyChecker is not run here" in shown
    assert json.loads(cli("inspect", "other", "--json"))["parts"]["is_run"] is False


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def mixed(folder: Path) -> list[np.ndarray]:
    """Pictures of two sizes in one folder, and one turned by its camera."""
    random = np.random.default_rng(0)
    shapes = [(8, 8), (8, 12), (8, 8)]
    pictures = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    (folder / "mixed").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "mixed" / f"{number}.png")
    return pictures


def test_folders_of_mixed_sizes(mixed: list[np.ndarray], cli: Cli):
    facts = json.loads(cli("reconstruct", TINY, "mixed", "-o", "out/", "--batch-size", 2, "--json"))
    assert (facts["rows"], facts["sizes"]) == (3, 2)
    pipeline = load_pipeline(TINY, batch_size=2)
    for number, picture in enumerate(mixed):
        with Image.open(f"out/{number:06}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), pipeline.reconstruct(picture[None])[0])
    cli("encode", TINY, "mixed", "-o", "latents", "--batch-size", 2)
    assert [np.load(f"latents/{number:06}.npy").shape for number in range(3)] == [
        (2, 2, 4),
        (2, 3, 4),
        (2, 2, 4),
    ]


def test_pictures_of_one_size_that_is_not_the_usual(mixed: list[np.ndarray], cli: Cli):
    cli("encode", TINY, "mixed/1.png", "-o", "latents.npy", "--batch-size", 2)
    assert np.load("latents.npy").shape == (1, 2, 3, 4)
    cli("decode", TINY, "latents.npy", "-o", "back/", "--batch-size", 2)
    assert size_of("back/000000.png") == (12, 8)
    np.save("mixed.npy", mixed[1][None])
    cli("reconstruct", TINY, "mixed.npy", "-o", "pair.png", "--batch-size", 2, "--scale", 1)
    assert size_of("pair.png") == (12, 16)
    cli("interpolate", TINY, "mixed/0.png", "mixed/2.png", "--steps", 3, "-o", "walk/")
    assert size_of("walk/000002.png") == (8, 8)


def test_sizes_that_do_not_fit(mixed: list[np.ndarray], failing_cli: Cli):
    said = failing_cli("reconstruct", TINY, "mixed", "-o", "out.png")
    assert "pictures of 2 sizes (8 x 8, 12 x 8) go to a folder" in said
    assert "pictures of 2 sizes" in failing_cli("encode", TINY, "mixed", "-o", "latents.npy")
    Image.new("RGB", (10, 8)).save("mixed/3.png")
    said = failing_cli("reconstruct", TINY, "mixed", "-o", "out/")
    assert "mixed/3.png: reconstruct: width: expected a multiple of 4, got 10" in said
    assert not Path("out").exists()
    Path("mixed/4.png").write_bytes(b"no picture")
    assert "mixed/4.png: not a picture" in failing_cli("reconstruct", TINY, "mixed", "-o", "out/")
    assert "12 x 8 pixels" in failing_cli("interpolate", TINY, "mixed/0.png", "mixed/1.png")


def test_latents_are_no_pictures(cli: Cli):
    cli("generate", GOLDEN / "pipeline-dit", "-n", 2, "-o", "samples.npy", "--set", "num_steps=2")
    samples = np.load("samples.npy")
    assert samples.shape == (2, 4, 4, 4)
    assert samples.dtype == np.float32


def test_a_pipeline_keeps_what_only_we_know(cli: Cli, folder: Path):
    network = {**load_exported_model(GOLDEN / "dit")[1]["arguments"], "num_embeds_ada_norm": 4}
    scheduler = {"_class_name": "DDIMScheduler"}
    model = randomised(lambda: Denoiser("dit", network, scheduler, 3, 7, "euler", 1.5, rngs=nnx.Rngs(0)))
    manager, path = setup_checkpoint_manager("run")
    with manager:
        save_checkpoint(manager, model, 10)
    Path("c.json").write_text(json.dumps(dict(model.config)))
    cli("export", path, "out", "--config", "c.json", "--model-type", "denoiser", "--format", "diffusers")
    assert load_exported_model("out")[1] == model.config
    assert folder.joinpath("out", "model_index.json").is_file()
