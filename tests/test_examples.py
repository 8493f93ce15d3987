"""The examples, run as a reader would: those that train on 300 digits, and for seconds."""

import gzip
import hashlib
import importlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from served import START_SECONDS, Process
from shared import randomised

import artifex
from artifex.generative_models.core.sampling.samplers import table_for
from artifex.generative_models.core.sampling.table import O_TO_M, TIME, X_TO_M
from artifex.generative_models.inference import load_exported_model
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.models.gan import prior
from artifex.generative_models.models.vae import VAE

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "unet": {
        "block_out_channels": [4],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "mid_block_type": None,
    },
    "dit": {"num_attention_heads": 1, "attention_head_dim": 16, "num_layers": 1, "patch_size": 7},
}


def shipped(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and metadata of a model that ships."""
    directory = Path(str(resources.files("artifex") / "zoo" / name))
    config, metadata = (
        json.loads((directory / f"{part}.json").read_text()) for part in ("config", "metadata")
    )
    return config, metadata


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
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has an example begin a class of model at weights from NumPy, of which no initialiser is compiled."""

    def begin(script: ModuleType, name: str, **more: object) -> None:
        family = getattr(script, name)

        @wraps(family, assigned=())
        def random(*args: Any, **kwargs: Any) -> Any:
            graphdef, state = nnx.split(randomised(lambda: family(*args, **kwargs, **more)))
            return nnx.merge(graphdef, jax.tree.map(narrowed, state))

        monkeypatch.setattr(script, name, random)

    def narrowed(leaf: jax.Array) -> jax.Array:
        fan_in = leaf.size // leaf.shape[-1]
        return jnp.asarray(np.asarray(leaf) * np.float32(3 / max(9, fan_in) ** 0.5), leaf.dtype)

    return begin


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


@pytest.fixture(autouse=True)
def _exports_are_not_searched_for_captured_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting would trace each endpoint, for arrays that no family captures."""
    monkeypatch.setattr(exporting, "_refuse_captured_weights", lambda model: None)


@pytest.fixture
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Optax leaves dtypes and ranks to JAX to promote; its optimisers begin in one program, not in many."""

    def begins_at_once(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            optimizer = make(*args, **kwargs)
            return optimizer._replace(init=jax.jit(optimizer.init))

        return made

    for name in ("adam", "adamw", "chain", "multi_transform"):
        monkeypatch.setattr(optax, name, begins_at_once(getattr(optax, name)))
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
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_denoiser")
    drawn(script, "Denoiser")
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
    config, metadata = shipped(f"mnist-{kind}")
    assert (config["network"], config["arguments"]) == (chosen.network, chosen.arguments)
    assert (config["scheduler"], config["sampler"]) == (chosen.scheduler, chosen.sampler)
    assert metadata["training_steps"] == chosen.steps


@pytest.mark.parametrize(("kind", "sampler"), [("diffusion", "ddim"), ("flow", "flow_euler")])
def test_samplers_undo_the_noise_of_training(
    kind: str, sampler: str, example: Callable[[str], ModuleType]
) -> None:
    """Told what the network should predict, a sampler estimates the very picture at each of its times."""
    script = example("train_mnist_denoiser")
    x = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 1)).astype(np.float32)
    noised, times, wanted = jax.jit(partial(script.noisy, kind))(x, jax.random.key(1))
    assert len(np.unique(times)) > 32
    table = table_for(script.KINDS[kind].scheduler, 1000, sampler).rows
    rows = table[np.abs(table[:, None, TIME] - np.asarray(times)).argmin(0)]
    estimate = rows[:, X_TO_M, None, None, None] * noised + rows[:, O_TO_M, None, None, None] * wanted
    # Times of a flow lie between those of the sampler, as far as a thousandth of its noise.
    np.testing.assert_allclose(estimate, x, atol={"diffusion": 1e-5, "flow": 5e-3}[kind])


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("more", [[], ["--conditional", "--latent-dim", "4"]])
def test_training_the_vae(
    more: list[str],
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, sizes = example("train_mnist_vae"), []

    def tiny(shape: Any, latent_dim: int, *features: Any, rngs: nnx.Rngs) -> Any:
        *features, num_labels = features
        sizes.append(features)
        return randomised(lambda: VAE(shape, latent_dim, [4], [4], num_labels, rngs=rngs))

    monkeypatch.setattr(script, "VAE", tiny)
    output = data / "out"
    script.main(["--data", f"{data}", "--output", f"{output}", "--epochs", "3", *more])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[0] > losses[1] > losses[2]
    model, _, metadata = load_exported_model(output)
    assert (model.num_labels, model.latent_dim) == ((10, 4) if more else (0, 32))
    ships = json.loads((resources.files("artifex") / "zoo" / "mnist-vae" / "config.json").read_text())
    assert sizes == [[ships["encoder_features"], ships["decoder_features"]]]
    assert metadata["final_loss"] == pytest.approx(losses[2], abs=0.01)  # as it is printed
    assert -losses[1] < metadata["test_elbo"] < -0.9 * losses[2]  # of the same pictures, after the last step


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_flow(
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_realnvp")
    drawn(script, "RealNVP")
    tiny = {"level_squeezes": [7], "level_steps": [1], "level_features": [4]}
    monkeypatch.setattr(script, "FLOW", {**script.FLOW, **tiny})
    monkeypatch.setattr(script, "LOOK", 8)
    said = ["--steps", "24", "--batch-size", "8", "--learning-rate", "1e-2"]
    script.main(["--data", f"{data}", "--output", f"{data}/out", *said])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[0] > losses[1] > losses[2]
    model, _, metadata = load_exported_model(data / "out")
    assert metadata["final_loss"] == losses[2]
    assert metadata["test_bits_per_dim"] < losses[0]  # of pictures that it was trained on
    assert {**model.config, **tiny} == {**model.config, **script.FLOW}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}


def test_scales_before_training_are_those_of_pictures(
    example: Callable[[str], ModuleType],
    digits: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = example("train_mnist_realnvp")
    tiny = {"level_squeezes": [14, 1], "level_steps": [1, 1], "level_features": [2, 2]}
    monkeypatch.setattr(script, "FLOW", {**script.FLOW, **tiny})

    @jax.jit
    def outcomes(x: jax.Array) -> list[jax.Array]:
        x = script.dequantized(x, jax.random.split(jax.random.key(0), len(x)))
        model = script.normalised(x, 0)
        step = model.levels[0][0]
        y, _ = step.norm.forward(script.squeezed(model.scaler.forward(x)[0], 14))
        mixed, _ = step.conv.forward(y)  # after which the coupling changes nothing yet
        z, _ = model.levels[1][0].norm.forward(mixed[..., : y.shape[-1] // 2])
        return [y, z]

    for outcome in outcomes(digits[0][:64, ..., None] / np.float32(255)):
        outcome = np.asarray(outcome, np.float64)
        np.testing.assert_allclose(outcome.mean((0, 1, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(outcome.std((0, 1, 2)), 1, atol=0.02)


def test_the_flow_that_ships_is_what_the_script_trains(example: Callable[[str], ModuleType]) -> None:
    config, metadata = shipped("mnist-realnvp")
    script = example("train_mnist_realnvp")
    assert {**config, **script.FLOW} == config
    assert metadata["training_steps"] == script.STEPS


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_classifier(
    data: Path,
    example: Callable[[str], ModuleType],
    digits: tuple[np.ndarray, np.ndarray],
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_classifier")
    drawn(script, "Classifier")
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
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_autoregressive")
    drawn(script, "Autoregressive")
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
    config, metadata = shipped("mnist-autoregressive")
    assert {name: config[name] for name in script.ARGUMENTS} == script.ARGUMENTS
    assert metadata["training_steps"] == script.STEPS


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_gan(
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_gan")
    drawn(script, "StyleGAN", mapping_layers=1)
    drawn(script, "Discriminator")
    for name, value in {"FEATURES": (6,), "DISCRIMINATOR": (6, 6, 6), "LOOK": 10}.items():
        monkeypatch.setattr(script, name, value)
    script.main(["--data", f"{data}", "--output", f"{data}/out", "--steps", "40", "--batch-size", "16"])
    losses = [line.split()[3:5] for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert float(losses[-1][1]) < 2 * np.log(2)  # that of a coin
    model, _, metadata = load_exported_model(data / "out")
    assert [metadata["final_loss"], metadata["discriminator_loss"]] == list(map(float, losses[-1]))
    z = jax.jit(lambda key: prior(jax.random.split(key, 1000), model.latent_dim))(jax.random.key(1))
    styles_of = jax.jit(lambda label: model.styles(z, jnp.full(len(z), label)))
    for label, mean in enumerate(np.asarray(model.mean_w[...])):
        w = np.asarray(styles_of(label))
        np.testing.assert_allclose(mean, w.mean(0), atol=6 * w.std() / len(w) ** 0.5 + 0.01)


def test_the_gan_that_ships_is_what_the_script_trains(example: Callable[[str], ModuleType]) -> None:
    config, metadata = shipped("mnist-gan")
    script = example("train_mnist_gan")
    assert tuple(config["features"]) == script.FEATURES
    assert (config["num_labels"], metadata["training_steps"]) == (script.NUM_LABELS, script.STEPS)


def test_the_penalty_is_the_squared_length_of_the_slope(example: Callable[[str], ModuleType]) -> None:
    """Of the judge |a . x|² / 2, whose slope is (a . x) a."""
    random = np.random.default_rng(0)
    a, x = random.normal(size=(2, 3, 1)), random.normal(size=(5, 2, 3, 1))
    products = (a * x).sum((1, 2, 3))
    judge = lambda x, label: jnp.square((a.astype(np.float32)[None] * x).sum((1, 2, 3))) / 2  # noqa: E731
    r1 = jax.jit(partial(example("train_mnist_gan").r1, judge))
    found = r1(x.astype(np.float32), np.zeros(5, np.int32))
    np.testing.assert_allclose(found, (products**2).mean() * (a**2).sum(), rtol=1e-5)


def test_a_discriminator_sees_whether_samples_are_alike(example: Callable[[str], ModuleType]) -> None:
    script = example("train_mnist_gan")
    x = np.random.default_rng(0).normal(size=(2 * script.GROUP, 7)).astype(np.float32)
    x[script.GROUP :] = x[-1]
    found = np.asarray(jax.jit(script.variety)(x))
    np.testing.assert_allclose(found[: script.GROUP], x[: script.GROUP].std(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(found[script.GROUP :], 0, atol=1e-3)


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


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_energy(
    data: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_energy")
    drawn(script, "EBM")
    arguments = {**script.ARGUMENTS, "level_features": [8], "level_convs": [0], "num_features": 8}
    monkeypatch.setattr(script, "ARGUMENTS", arguments)
    monkeypatch.setattr(script, "LOOK", 15)
    said = ["--output", f"{data}/out", "--steps", "60", "--batch-size", "8", "--learning-rate", "1e-2"]
    script.main(["--data", f"{data}", *said])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    model, _, metadata = load_exported_model(data / "out")
    assert metadata["final_loss"] == losses[-1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}
    assert model.config == arguments


def test_the_bundled_energy_is_what_the_script_trains(example: Callable[[str], ModuleType]) -> None:
    script = example("train_mnist_energy")
    config, metadata = shipped("mnist-energy")
    assert config.items() >= script.ARGUMENTS.items()
    assert metadata["training_steps"] == script.STEPS


def test_the_energy_of_a_gaussian_is_learned_already(example: Callable[[str], ModuleType]) -> None:
    """Where pixels are independent Gaussians, the network adds nothing, and the loss of each is 1."""
    script = example("train_mnist_energy")
    arguments = {**script.ARGUMENTS, "input_shape": [8, 8, 1], "level_features": [2], "level_convs": [0]}
    model = randomised(lambda: script.EBM(**arguments, rngs=nnx.Rngs(0)))
    for readout in (*model.readouts, model.last_readout):
        readout.kernel[...] = jnp.zeros(readout.kernel.shape)
    normal = np.random.default_rng(0).standard_normal((256, 8, 8, 1), np.float32)
    x = np.float32(arguments["mean"]) + np.float32(arguments["std"]) * normal
    label, key = np.zeros(256, np.int32), jax.random.key(1)
    loss_of = jax.jit(lambda x: script.denoising_loss(model, x, label, key))
    error = np.sqrt(2 / normal.size)  # of a mean of squares
    assert loss_of(x) == pytest.approx(1, abs=5 * error)
    assert loss_of(x + np.float32(0.3)) > 1.05


@pytest.mark.usefixtures("as_users_have_it")
def test_training_the_vqvae(
    data: Path,
    example: Callable[[str], ModuleType],
    digits: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn: Callable[..., None],
) -> None:
    script = example("train_mnist_vqvae")
    drawn(script, "VQVAE")
    tiny = {"num_codes": 8, "code_features": 3, "level_features": [8, 8], "num_blocks": 0}
    prior = {"prior_features": 8, "prior_layers": 1, "prior_heads": 1}
    monkeypatch.setattr(script, "ARGUMENTS", {**script.ARGUMENTS, **tiny, **prior})
    monkeypatch.setattr(script, "LOOK", 20)
    said = ["--steps", "60", "--prior-steps", "60", "--batch-size", "16"]
    script.main(["--data", f"{data}", "--output", f"{data}/out", *said])
    lines = capsys.readouterr().out.splitlines()
    for part in ("autoencoder", "prior"):
        losses = [float(line.split()[4]) for line in lines if line.startswith(f"{part} step")]
        assert len(losses) == 3
        assert losses[-1] < 0.9 * losses[0]
    metadata = load_exported_model(data / "out")[2]
    assert metadata["final_loss"] == losses[-1]
    pipeline, x = artifex.load(data / "out"), digits[0][..., None].astype(np.float32) / 255
    found = np.asarray(pipeline.call("reconstruct", x=x)["x"])
    errors = np.mean((np.float64(x) - found) ** 2, (1, 2, 3))
    assert metadata["test_psnr"] == pytest.approx(-10 * np.log10(errors).mean(), abs=0.01)


def test_what_ships_of_the_vqvae_is_what_the_script_trains(example: Callable[[str], ModuleType]) -> None:
    script = example("train_mnist_vqvae")
    config, metadata = shipped("mnist-vqvae")
    assert config == script.ARGUMENTS
    steps = metadata["training_steps"], metadata["prior_training_steps"]
    assert steps == (script.STEPS, script.PRIOR_STEPS)


def test_the_gradient_of_the_decoder_goes_straight_to_the_encoder(
    example: Callable[[str], ModuleType],
) -> None:
    """Without the commitment the encoder's last bias gets what the decoder's gradient by its vectors is."""
    script = example("train_mnist_vqvae")
    arguments = {"code_features": 3, "level_features": [4], "num_blocks": 0, "prior_features": 4}
    model = randomised(
        lambda: script.VQVAE((4, 4, 1), 5, **arguments, prior_layers=1, prior_heads=1, rngs=nnx.Rngs(0))
    )
    x = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 1), np.float32))

    @jax.jit
    def outcome(model: Any) -> Any:
        codes = model.encode(x)
        return model.encoder(x), codes, model.vectors(codes)

    @jax.jit
    @jax.value_and_grad
    def likelihood_and_slope(vectors: jax.Array) -> jax.Array:
        p = nnx.sigmoid(model.decoder(vectors))
        return jnp.mean(jnp.sum(x * jnp.log(p) + (1 - x) * jnp.log1p(-p), (1, 2, 3)))

    z, codes, vectors = map(np.asarray, outcome(model))
    likelihood, slope = likelihood_and_slope(vectors)
    graphdef, params = nnx.split(model)
    loss_of = jax.value_and_grad(
        lambda params: script.autoencoder_loss(nnx.merge(graphdef, params), x), has_aux=True
    )
    (loss, (found, of_codes)), grads = jax.jit(loss_of)(params)
    np.testing.assert_array_equal(of_codes, codes)
    np.testing.assert_allclose(found, z, rtol=1e-5)
    distance = ((z - vectors) ** 2).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(loss, 0.25 * distance - likelihood, rtol=1e-5)

    by_vectors = -slope + 2 * 0.25 * (z - vectors) / len(x)
    np.testing.assert_allclose(grads["encoder"]["head"]["bias"][...], by_vectors.sum((0, 1, 2)), rtol=1e-4)
    assert not np.any(grads["codebook"][...])  # which moves by averages alone


def test_the_codebook_is_the_averages_of_its_vectors(example: Callable[[str], ModuleType]) -> None:
    """Equations 6 to 8 of van den Oord et al. 2017; a code that nothing is near begins anew at a vector."""
    script = example("train_mnist_vqvae")
    rng = np.random.default_rng(0)
    z, codes = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    count, total = rng.uniform(5, 9, 4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    count[3] = 0.1
    found = jax.jit(script.Uses.after)(script.Uses(count, total), z, codes, jax.random.key(0))
    for code in range(3):
        near = z[codes == code]
        assert found.count[code] == pytest.approx(0.99 * count[code] + 0.01 * len(near), rel=1e-5)
        wanted = (0.99 * total[code] + 0.01 * near.sum(0)) / found.count[code]
        np.testing.assert_allclose(found.codebook[code], wanted, rtol=1e-4, atol=1e-6)
    assert found.count[3] == 10
    assert np.isclose(z, found.codebook[3], rtol=1e-5).all(1).any()
