"""The examples, run as a reader would: those that train on 300 digits, and for seconds."""

import gzip
import hashlib
import importlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType

import forked
import jax
import numpy as np
import pytest
from flax import nnx
from served import START_SECONDS, Process

import artifex
from artifex.generative_models.core.sampling.samplers import table_for
from artifex.generative_models.core.sampling.table import O_TO_M, TIME, X_TO_M
from artifex.generative_models.inference import load_exported_model

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "unet": {
        "block_out_channels": [4],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "attention_head_dim": 4,
        "add_attention": False,
    },
    "dit": {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "patch_size": 7},
}


def test_the_triton_client():
    with Process("mnist-vae", "--batch-size", "4") as server:
        server.ready("mnist-vae")
        addresses = ["--http", f"127.0.0.1:{server.port}", "--grpc", f"127.0.0.1:{server.grpc_port}"]
        client = [EXAMPLES / "triton_client.py", *addresses]
        said = forked.run(client, check=True, timeout=START_SECONDS).stdout
        assert "drawn again they are the same" in said
        assert said.count("gRPC: stream, sample of seed") == 3
        assert server.stop() == 0


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """An example as a module, by its name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES:
            del sys.modules[name]


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [300, 28, 28] and labels [300]."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        return archive["images"][..., 0], archive["labels"]


@pytest.fixture
def data(
    tmp_path: Path, example: Callable[[str], ModuleType], digits: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A folder of IDX files: the digits that ship are those of training and those of the test."""
    mnist = example("mnist")
    for name in mnist.SHA256:
        array = digits["labels" in name]
        content = struct.pack(f">i{array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(mnist.SHA256, name, hashlib.sha256(content).hexdigest())
    return tmp_path


@pytest.fixture
def as_users_have_it() -> Iterator[None]:
    """Optax leaves dtypes and ranks to JAX to promote."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(("kind", "batch_size"), [("diffusion", 7), ("flow", 8)])  # on one device, and on two
def test_training_a_denoiser(
    kind: str,
    batch_size: int,
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = example("train_mnist_denoiser")
    chosen = script.KINDS[kind]
    arguments = {**chosen.arguments, **TINY[chosen.network]}
    monkeypatch.setitem(script.KINDS, kind, chosen._replace(arguments=arguments, rate=1e-2))
    monkeypatch.setattr(script, "LOOK", 6)
    output = data / "out"
    said = ["--output", f"{output}", "--steps", "24", "--batch-size", f"{batch_size}"]
    script.main([kind, "--data", f"{data}", *said])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    model, _, metadata = load_exported_model(output)
    assert metadata["final_loss"] == losses[-1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}
    assert model.config["arguments"] == arguments


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_what_ships_is_what_the_script_trains(kind: str, example: Callable[[str], ModuleType]) -> None:
    chosen = example("train_mnist_denoiser").KINDS[kind]
    directory = Path(str(resources.files("artifex") / "zoo" / f"mnist-{kind}"))
    config, metadata = (
        json.loads((directory / f"{name}.json").read_text()) for name in ("config", "metadata")
    )
    assert (config["network"], config["arguments"]) == (chosen.network, chosen.arguments)
    assert (config["scheduler"], config["sampler"]) == (chosen.scheduler, chosen.sampler)
    assert metadata["training_steps"] == chosen.steps


@pytest.mark.parametrize(("kind", "sampler"), [("diffusion", "ddim"), ("flow", "flow_euler")])
def test_samplers_undo_the_noise_of_training(
    kind: str, sampler: str, example: Callable[[str], ModuleType]
) -> None:
    """Told what the network should predict, a sampler estimates the very picture at each of its times."""
    script = example("train_mnist_denoiser")
    x = jax.random.uniform(jax.random.key(0), (64, 4, 4, 1), minval=-1)
    noised, times, wanted = script.noisy(kind, x, jax.random.key(1))
    assert len(np.unique(times)) > 32
    table = table_for(script.KINDS[kind].scheduler, 1000, sampler).rows
    rows = table[np.abs(table[:, None, TIME] - np.asarray(times)).argmin(0)]
    estimate = rows[:, X_TO_M, None, None, None] * noised + rows[:, O_TO_M, None, None, None] * wanted
    # Times of a flow lie between those of the sampler, as far as a thousandth of its noise.
    np.testing.assert_allclose(estimate, x, atol={"diffusion": 1e-5, "flow": 5e-3}[kind])


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_vae(
    data: Path, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    output = data / "out"
    example("train_mnist_vae").main(["--data", f"{data}", "--output", f"{output}", "--epochs", "3"])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[0] > losses[1] > losses[2]
    metadata = load_exported_model(output)[2]
    assert metadata["final_loss"] == pytest.approx(losses[2], abs=0.01)  # as it is printed
    assert -losses[1] < metadata["test_elbo"] < -0.9 * losses[2]  # of the same pictures, after the last step


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_classifier(
    data: Path, example: Callable[[str], ModuleType], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    script = example("train_mnist_classifier")
    moments = data / "moments.npz"
    script.main(["--data", f"{data}", "--output", f"{data}/out", "--epochs", "8", "--moments", f"{moments}"])
    pipeline, accuracy = artifex.load(data / "out"), load_exported_model(data / "out")[2]["test_accuracy"]
    found = pipeline.executor("classify", {"x": digits[0][..., None]})["label"]
    assert (found == digits[1]).mean() == pytest.approx(accuracy, abs=1e-4)  # as it is rounded
    assert accuracy > 0.3  # of pictures that it was trained on, for 24 steps
    features = np.asarray(pipeline.executor("features", {"x": digits[0][..., None]})["features"], np.float64)
    with np.load(moments) as archive:
        np.testing.assert_allclose(archive["test_mean"], features.mean(0), rtol=1e-4)
        np.testing.assert_allclose(archive["test_covariance"], np.cov(features.T), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_autoregressive_model(
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = example("train_mnist_autoregressive")
    tiny = {**script.ARGUMENTS, "features": 8, "num_layers": 1, "num_heads": 1, "levels": 2}
    monkeypatch.setattr(script, "ARGUMENTS", tiny)
    monkeypatch.setattr(script, "RATE", 3e-2)
    monkeypatch.setattr(script, "LOOK", 6)
    monkeypatch.setattr(script, "TESTED", 40)
    output = data / "out"
    script.main(["--data", f"{data}", "--output", f"{output}", "--steps", "24", "--batch-size", "14"])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.6 * losses[0]
    model, _, metadata = load_exported_model(output)
    assert metadata["final_loss"] == losses[-1]
    assert metadata["test_bits_per_dim"] < losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}
    assert model.config["features"] == 8


def test_the_autoregressive_model_that_ships(example: Callable[[str], ModuleType]) -> None:
    script = example("train_mnist_autoregressive")
    directory = Path(str(resources.files("artifex") / "zoo" / "mnist-autoregressive"))
    config, metadata = (
        json.loads((directory / f"{name}.json").read_text()) for name in ("config", "metadata")
    )
    assert {name: config[name] for name in script.ARGUMENTS} == script.ARGUMENTS
    assert metadata["training_steps"] == script.STEPS


def test_pictures_are_moved_by_two_pixels_at_most(example: Callable[[str], ModuleType]) -> None:
    script = example("train_mnist_classifier")
    picture = np.zeros((1, 9, 9, 1), np.float32)
    picture[0, 4, 4] = 1
    moved = script.shifted(np.repeat(picture, 500, 0), np.random.default_rng(0))
    _, rows, columns, _ = np.nonzero(moved)
    assert set(zip(rows, columns, strict=True)) == {(i, j) for i in range(2, 7) for j in range(2, 7)}


def test_picking_the_digits_that_ship(
    data: Path, example: Callable[[str], ModuleType], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    example("pick_mnist_digits").main(["--data", f"{data}", "--output", f"{data}/digits.npz"])
    with np.load(data / "digits.npz") as archive:
        np.testing.assert_array_equal(archive["images"][..., 0], digits[0])
        np.testing.assert_array_equal(archive["labels"], digits[1])


def test_other_pictures_are_refused(data: Path, example: Callable[[str], ModuleType]) -> None:
    mnist = example("mnist")
    path = data / f"{mnist.PICTURES}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"\1"))
    with pytest.raises(SystemExit, match="SHA-256 differs"):
        mnist.read_idx(data, mnist.PICTURES)
