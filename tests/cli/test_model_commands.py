import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.inference import load_exported_model
from artifex.generative_models.models.vae import VAE

Cli = Callable[..., str]


def test_inspect_tells_the_facts(model: Path, cli: Cli):
    facts = json.loads(cli("inspect", model, "--json"))
    vae, config, metadata = load_exported_model(model)
    assert facts["model_type"] == "vae"
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(vae)))
    assert facts["bytes_on_disk"] == sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    assert facts["config"] == config
    assert facts["training"] | {"model_type": "vae"} == metadata
    assert [device["id"] for device in facts["devices"]] == [0, 1]
    assert facts["endpoints"].keys() == {"encode", "decode", "reconstruct", "generate", "elbo"}
    picture = {"shape": [8, 8, 1], "dtype": "float32", "default": None, "doc": ""}
    assert facts["endpoints"]["decode"]["outputs"] == {"x": picture}
    assert facts["endpoints"]["generate"]["inputs"]["temperature"]["default"] == 1.0


def test_inspect_shows_the_facts(model: Path, cli: Cli):
    shown = " ".join(cli("inspect", model).split())
    for fact in (
        "encode x float32[batch, 8, 8, 1]",
        "temperature float32[batch] = 1",
        "final_loss 1.5",
        "cpu:1",
    ):
        assert fact in shown


@pytest.fixture(scope="module")
def trained(tiny_vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run with checkpoints of two steps, and the config of its model."""
    manager, path = setup_checkpoint_manager(tmp_path_factory.mktemp("trained") / "run")
    with manager:
        for step in (10, 20):
            save_checkpoint(manager, tiny_vae, step)
    return Path(path), dict(tiny_vae.config)


@pytest.fixture
def checkpoint(trained: tuple[Path, dict[str, object]], folder: Path) -> Path:
    path, config = trained
    Path("config.json").write_text(json.dumps(config))
    return shutil.copytree(path, folder / "run")


@pytest.mark.usefixtures("exports_unsearched")
@pytest.mark.parametrize(("args", "step"), [([], 20), (["--step", "10"], 10)])
def test_export_makes_a_model_of_a_checkpoint(checkpoint: Path, cli: Cli, args: list[str], step: int):
    said = cli(
        "export", checkpoint, "exported", "--config", "config.json", "--final-loss", 0.5, *args, "--json"
    )
    _, _, metadata = load_exported_model("exported")
    assert json.loads(said)["step"] == metadata["step"] == metadata["training_steps"] == step
    assert metadata["final_loss"] == 0.5
    assert metadata["image_range"] == [0.0, 1.0]
    cli("generate", "exported", "-n", 1, "--batch-size", 4)


def test_export_takes_the_image_range(checkpoint: Path, cli: Cli):
    args = ("--config", "config.json", "--final-loss", 0.5, "--image-range", -1, 1, "--training-steps", 99)
    cli("export", checkpoint, "exported", *args)
    _, _, metadata = load_exported_model("exported")
    assert metadata["image_range"] == [-1.0, 1.0]
    assert metadata["training_steps"] == 99


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "out", "--config", "missing.json"], "cannot read missing.json"),
        (["run", "out", "--config", "config.json", "--step", "15"], "no step 15 in"),
        (["nowhere", "out", "--config", "config.json"], "no checkpoint directory at"),
        (["run", "out", "--config", "config.json", "--model-type", "gan"], "unknown model_type 'gan'"),
        (["run", "run", "--config", "config.json"], "run exists and is not an export"),
        (["run", "out", "--config", "wider.json"], "the checkpoint in"),
        (["run", "out", "--config", "config.json", "--final-loss", "nan"], "metadata.json: "),
        (["run", "out", "--config", "config.json", "--image-range", "1", "0"], "image_range: "),
    ],
)
@pytest.mark.usefixtures("exports_unsearched")
def test_export_says_one_line(checkpoint: Path, failing_cli: Cli, args: list[str], message: str):
    config = json.loads(Path("config.json").read_bytes())
    Path("wider.json").write_text(json.dumps(config | {"latent_dim": 5}))
    loss = [] if "--final-loss" in args else ["--final-loss", "0.5"]
    assert message in failing_cli("export", *args, *loss)
    assert not Path("out").exists()


@pytest.mark.parametrize("damage", ["config.json", "metadata.json", "checkpoints"])
def test_damaged_model_says_one_line(model: Path, folder: Path, failing_cli: Cli, damage: str):
    shutil.copytree(model, "copy")
    if damage == "checkpoints":
        shutil.rmtree("copy/checkpoints")
    else:
        Path("copy", damage).write_text("{")
    assert damage in failing_cli("inspect", "copy")


def test_demo_draws_and_times(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("artifex.cli.demo_models._TIMED_ROWS", 128)
    facts = json.loads(cli("demo", "-o", "new/figure.png", "--json"))
    assert facts["output"] == str(folder / "new/figure.png")
    assert facts["samples_per_second"] > 0
    assert facts["images_encoded_per_second"] > 0
    figure = np.asarray(Image.open("new/figure.png"))
    assert figure.shape[2] == 3
    assert figure.min() < 30  # there is ink on the paper
    assert (figure[0] == 255).all()


@pytest.fixture
def halves(tiny_vae: VAE, folder: Path) -> None:
    """A checkpoint in bfloat16 of a family that has float32."""
    graphdef, state = nnx.split(tiny_vae)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), state)
    with setup_checkpoint_manager("run")[0] as manager:
        save_checkpoint(manager, nnx.merge(graphdef, half), 7)
    Path("config.json").write_text(json.dumps(dict(tiny_vae.config)))


@pytest.mark.usefixtures("exports_unsearched")
def test_export_casts_a_checkpoint_to_the_dtype_of_its_family(halves: None, cli: Cli, failing_cli: Cli):
    args = ("export", "run", "exported", "--config", "config.json")
    assert "dtype= or --dtype to cast" in failing_cli(*args)
    assert "'vae' has float32 weights by this config" in failing_cli(*args, "--dtype", "bfloat16")
    assert not Path("exported").exists()
    cli(*args, "--dtype", "float32")
    assert "final_loss" not in cli("inspect", "exported")
    leaves = jax.tree.leaves(nnx.state(load_exported_model("exported")[0]))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


@pytest.mark.usefixtures("exports_unsearched")
def test_export_takes_an_item(checkpoint: Path, cli: Cli, failing_cli: Cli):
    args = ("export", "run", "exported", "--config", "config.json", "--item")
    assert "no item 'ema' in" in failing_cli(*args, "ema")
    assert json.loads(cli(*args, "model", "--json"))["final_loss"] is None


def test_what_jax_notes_on_an_error_is_left_out(checkpoint: Path, failing_cli: Cli):
    config = json.loads(Path("config.json").read_bytes())
    Path("config.json").write_text(json.dumps(config | {"latent_dim": -1}))
    said = failing_cli("export", "run", "exported", "--config", "config.json")
    assert said == "latent_dim: expected integers from 1 to 65536, got -1"
