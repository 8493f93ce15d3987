import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from shared import randomised

import artifex
from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.core.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    UnknownModelTypeError,
)
from artifex.generative_models.inference import export_model, load_exported_model, load_model_for_inference
from artifex.generative_models.inference.formats.loading import (
    bundled_models,
    check_image_range,
    find_model,
    latest_step,
)
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.classifier import Classifier
from artifex.generative_models.models.vae import VAE


def build() -> VAE:
    return randomised(lambda: VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model() -> VAE:
    return build()


@pytest.fixture(scope="module")
def other(model: VAE) -> VAE:
    """The same model with other weights."""
    graphdef, state = nnx.split(model)
    values = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(1), state)
    return nnx.merge(graphdef, jax.device_put(values))


def in_dtype(state: nnx.State, dtype: Any) -> nnx.State:
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), state))


@pytest.fixture(scope="module")
def exported(model: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exports") / "vae"
    return export_model(model, directory, step=5, training_steps=100, final_loss=1)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """An export to spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def spoil(path: Path, **changes: Any) -> None:
    """Changes facts of a JSON file; `...` takes one out."""
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))


def assert_same_weights(found: nnx.Module, wanted: nnx.Module) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(found), nnx.state(wanted))


def test_an_export(exported: Path, model: VAE) -> None:
    loaded, config, metadata = load_exported_model(exported)
    assert_same_weights(loaded, model)
    assert config == model.config
    assert (metadata["model_type"], metadata["step"], metadata["final_loss"]) == ("vae", 5, 1)


def test_a_checkpoint_directory(exported: Path, model: VAE) -> None:
    config = {
        "input_shape": (8, 8, 1),
        "latent_dim": 4,
        "encoder_features": [4, 8],
        "decoder_features": [8, 4],
    }
    assert_same_weights(load_model_for_inference(exported / "checkpoints", config), model)
    assert_same_weights(load_model_for_inference(str(exported / "checkpoints"), config, step=5), model)
    with pytest.raises(CheckpointNotFoundError, match="no step 6"):
        load_model_for_inference(exported / "checkpoints", config, step=6)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint directory"):
        load_model_for_inference(exported / "missing", config)
    with pytest.raises(CheckpointMismatchError, match="decoder/stem/kernel"):
        load_model_for_inference(exported / "checkpoints", config | {"latent_dim": 5})


def test_the_step_is_the_one_the_export_names(copy: Path, model: VAE, other: VAE) -> None:
    with setup_checkpoint_manager(copy / "checkpoints")[0] as manager:
        save_checkpoint(manager, other, 9)
    assert_same_weights(load_exported_model(copy)[0], model)
    assert_same_weights(load_exported_model(copy, step=9)[0], other)


def test_dtype_and_sharding(exported: Path, model: VAE) -> None:
    everywhere = NamedSharding(DeviceManager().mesh(), PartitionSpec())
    loaded, _, _ = load_exported_model(exported, dtype=jnp.bfloat16, sharding=everywhere)
    wanted = in_dtype(nnx.state(model), jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), wanted)
    assert {leaf.sharding for leaf in jax.tree.leaves(nnx.state(loaded))} == {everywhere}


def test_weights_go_to_the_default_device(exported: Path) -> None:
    with jax.default_device(jax.devices()[1]):
        loaded, _, _ = load_exported_model(exported)
    assert {d for leaf in jax.tree.leaves(nnx.state(loaded)) for d in leaf.devices()} == {jax.devices()[1]}


def test_a_bundled_model() -> None:
    assert bundled_models() == [
        "mnist-autoregressive",
        "mnist-classifier",
        "mnist-diffusion",
        "mnist-energy",
        "mnist-flow",
        "mnist-gan",
        "mnist-realnvp",
        "mnist-vae",
        "mnist-vqvae",
    ]
    loaded, config, metadata = load_exported_model("mnist-vae")
    assert loaded.input_shape == (28, 28, 1)
    assert config == loaded.config
    assert metadata["dataset"]["licence"] == "CC BY-SA 3.0"
    assert find_model("mnist-vae").name == "mnist-vae"


def test_bundled_names_are_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-vae").mkdir()
    assert (find_model("mnist-vae") / "metadata.json").is_file()
    assert find_model("./mnist-vae").resolve() == tmp_path / "mnist-vae"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/mnist-vae") == tmp_path / "mnist-vae"


@pytest.mark.parametrize(
    "name", ["mnist", "MNIST-VAE", "mnist-vae/missing", "../mnist-vae", "no/such", "nul\0l"]
)
def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"neither a directory nor a bundled model \(mnist-a.*, mnist-vqvae\)"
    ):
        load_exported_model(name)


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"", "is not JSON"), (b"[]", "expected a JSON object"), (b"NaN", "is not JSON")],
)
def test_files_that_cannot_be_read(copy: Path, name: str, content: bytes | None, message: str) -> None:
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_exported_model(copy)
    assert str(copy / name) in str(error.value)


WRONG = {
    "model_type": [..., None, 1, ["vae"]],
    "step": [..., None, "5", 5.0, True],
    "training_steps": ["many", 1.5, False],
    "final_loss": ["low", [1.0], True],
    "image_range": [..., "01", {"low": 0}],
    "compute_dtype": [1, "int32", "float8"],
}


def test_weights_may_be_stored_in_fewer_bits_than_they_compute_in(tmp_path: Path) -> None:
    graphdef, state = nnx.split(randomised(lambda: Classifier((4, 4, 1), 2, [2], 3, rngs=nnx.Rngs(0))))
    half = in_dtype(state, jnp.bfloat16)
    path = export_model(nnx.merge(graphdef, half), tmp_path / "half", step=1, compute_dtype="float32")
    wanted = in_dtype(half, np.float32)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load_exported_model(path)[0]), wanted)
    leaves = jax.tree.leaves(nnx.state(load_pipeline(path).model))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    kept = load_exported_model(path, dtype=jnp.bfloat16)[0]  # what the caller says comes first
    jax.tree.map(np.testing.assert_array_equal, nnx.state(kept), half)


def test_facts_of_the_training_may_be_unknown(copy: Path, model: VAE, tmp_path: Path) -> None:
    spoil(copy / "metadata.json", training_steps=..., final_loss=None)
    assert_same_weights(load_exported_model(copy)[0], model)
    metadata = load_exported_model(export_model(model, tmp_path / "unknown", step=3))[2]
    assert metadata.keys().isdisjoint({"training_steps", "final_loss"})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_fact_that_is_missing_or_of_the_wrong_type(copy: Path, name: str, value: Any) -> None:
    spoil(copy / "metadata.json", **{name: value})
    got = repr(None if value is ... else value)
    with pytest.raises(ConfigError) as error:
        load_exported_model(copy)
    assert f"metadata.json: {name}: expected " in str(error.value)
    assert str(error.value).endswith(f"got {got}")


@pytest.mark.parametrize(
    "image_range",
    [
        [],
        [0],
        [0, 1, 2],
        [1, 0],
        [0, 0],
        ["0", "1"],
        [False, True],
        [None, 1],
        [0, 1e6],
        [0, 10**400],
        [[0], [1]],
    ],
    ids=lambda image_range: repr(image_range)[:20],
)
def test_an_image_range_that_is_none(copy: Path, image_range: Any) -> None:
    spoil(copy / "metadata.json", image_range=image_range)
    with pytest.raises(ConfigError, match="image_range: expected"):
        load_exported_model(copy)


@pytest.mark.parametrize("image_range", [(0, 1), [-1, 1], [-0.5, 0.5]])
def test_image_ranges(image_range: Any) -> None:
    assert check_image_range(image_range) == tuple(map(float, image_range))


@pytest.mark.parametrize("step", [-1, 0, 6, 10**30])
def test_a_step_that_is_not_there(copy: Path, step: int) -> None:
    spoil(copy / "metadata.json", step=step)
    with pytest.raises(CheckpointNotFoundError, match=rf"no step {step} in .*; there are 5$"):
        load_exported_model(copy)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"latent_dim": ...}, ConfigError, r"missing keys \['latent_dim'\]"),
        ({"dropout": 0.1}, ConfigError, r"unknown keys \['dropout'\]"),
        ({"latent_dim": "4"}, ConfigError, "latent_dim: expected"),
        ({"latent_dim": 2**16}, CheckpointMismatchError, r"decoder/stem/kernel: model has \(65536, 32\)"),
        ({"input_shape": [2**14] * 3}, CheckpointMismatchError, "encoder/head/kernel: model has"),
    ],
)
def test_configs_that_do_not_fit(
    copy: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    spoil(copy / "config.json", **changes)
    with pytest.raises(error, match=message):
        load_exported_model(copy)


@pytest.mark.parametrize(
    "model_type", ["gan", "__import__('os').system('x')", "os:system", "this", "../../etc", "vae:VAE"]
)
def test_nothing_is_imported_because_a_file_says_so(copy: Path, model_type: str) -> None:
    load_exported_model(copy)
    spoil(copy / "metadata.json", model_type=model_type)
    before = set(sys.modules)
    with pytest.raises(UnknownModelTypeError, match=r"installed are autoencoder_tiny, .*vae"):
        load_exported_model(copy)
    assert set(sys.modules) == before


def test_weights_alone_without_their_export(tmp_path: Path, model: VAE) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", nnx.state(model))
    assert_same_weights(load_model_for_inference(tmp_path / "plain", model.config), model)
    with pytest.raises(ConfigError, match=r"cannot read .*metadata\.json"):
        load_exported_model(tmp_path / "plain")


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [([], None), (["5"], 5), (["5", "40", "9"], 40), (["0"], 0), (["5", "x", "9.tmp"], 5)],
)
def test_the_latest_step_is_the_largest_number(tmp_path: Path, steps: list[str], wanted: int | None) -> None:
    assert latest_step(tmp_path) is None
    for step in steps:
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
    if wanted is not None:
        (tmp_path / "checkpoints" / "99").touch()  # no directory, so no step
    assert latest_step(tmp_path) == wanted


def test_the_latest_step_is_that_of_an_export_to_which_one_is_added(copy: Path, other: VAE) -> None:
    assert latest_step(copy) == 5
    with setup_checkpoint_manager(copy / "checkpoints")[0] as manager:
        save_checkpoint(manager, other, 12)
    assert latest_step(copy) == 12


def test_a_cached_pipeline_is_of_the_step_asked_for_each_time(copy: Path, model: VAE, other: VAE) -> None:
    with setup_checkpoint_manager(copy / "checkpoints")[0] as manager:
        save_checkpoint(manager, other, 9)
    for _ in range(2):  # the second time from what was kept
        for step, wanted in ((None, model), (9, other), (5, model)):
            found = load_pipeline(copy, batch_size=1, step=step).executor.weights
            for leaf, expected in zip(found, jax.tree.leaves(nnx.state(wanted)), strict=True):
                np.testing.assert_array_equal(leaf, expected)
    with pytest.raises(CheckpointNotFoundError):
        load_pipeline(copy, step=7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("checkpoint_100", "weights that Flax wrote as msgpack .*msgpack_restore"),
        ("model.safetensors", "safetensors weights .*artifex convert"),
        ("pytorch_model.bin", "PyTorch weights .*convert"),
        ("notes.txt", "no export; a directory of checkpoints becomes one by `artifex export`"),
    ],
)
def test_what_is_no_export_is_told(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).touch()
    for load in (load_exported_model, artifex.load):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} is a file, not an export"):
        load_exported_model(tmp_path / name)
    with pytest.raises(CheckpointNotFoundError, match=f"no checkpoint directory at .*{name}"):
        load_model_for_inference(tmp_path / name, {"input_shape": [8, 8, 1], "latent_dim": 4})
