import json
from importlib import resources

import jax
import numpy as np
import pytest
from flax import nnx
from said import call, rows_of
from shared import TOLERANCE, randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.ebm import EBM

ARGUMENTS = {
    "input_shape": (7, 5, 2),
    "num_labels": 3,
    "level_features": [4, 5],
    "level_convs": [0, 1],
    "num_features": 6,
    "embed_dim": 4,
    "mean": -0.5,
    "std": 0.7,
    "num_steps": 4,
}
SIGMA = np.array([0.1, 0.5, 2.0, 6.0])
LABEL = np.array([0, 2, 3, 1])  # 3 is any
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model() -> EBM:
    return randomised(lambda: EBM(**ARGUMENTS, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def executor(model: EBM) -> Executor:
    return Executor(model, batch_sizes=(4,))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 7, 5, 2))


def weights(model: EBM) -> dict[str, np.ndarray]:
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]:
        found[".".join(str(key.key) for key in path)] = np.asarray(leaf, np.float64)
    return found


def numpy_energy(given: Weights, x: np.ndarray, sigma: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The energy in float64, with convolutions and patches written out."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ given[f"{name}.kernel"] + given.get(f"{name}.bias", 0)

    def swish(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def told_swish(x: np.ndarray, film: np.ndarray) -> np.ndarray:
        scale, shift = np.split(film.reshape(len(film), *[1] * (x.ndim - 2), -1), 2, axis=-1)
        return swish((1 + scale) * x + shift)

    angles = 2 * np.pi * np.log(sigma)[:, None] * given["embed_noise.weight"]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    told = linear("embed.linear_2", swish(linear("embed.linear_1", waves)))
    told = swish(told + given["embed_label.embedding_table.embedding"][label])
    mean, std = ARGUMENTS["mean"], ARGUMENTS["std"]
    variance = sigma**2 + std**2
    features = (x - mean) / np.sqrt(variance)[:, None, None, None]
    gaussian = ((x - mean) ** 2).sum((1, 2, 3)) / (2 * variance)
    total = 0.0
    for level, num_convs in enumerate(ARGUMENTS["level_convs"]):
        _, height, width, channels = features.shape
        patches = np.zeros((len(x), -(-height // 2), -(-width // 2), 4 * channels))
        for i, j in np.ndindex(height, width):
            place = 2 * (i % 2) + j % 2
            patches[:, i // 2, j // 2, place * channels : (place + 1) * channels] = features[:, i, j]
        film = [linear(f"levels.{level}.films.{k}", told) for k in range(num_convs + 1)]
        features = told_swish(linear(f"levels.{level}.patches", patches), film[0])
        for k in range(num_convs):
            kernel, bias = (given[f"levels.{level}.convs.{k}.{part}"] for part in ("kernel", "bias"))
            padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
            convolved = np.zeros_like(features) + bias
            for i, j in np.ndindex(features.shape[1:3]):
                convolved[:, i, j] += np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3)
            features = features + told_swish(convolved, film[k + 1])
        total = total + linear(f"readouts.{level}", features.reshape(len(x), -1))[:, 0]
    last = told_swish(linear("last", features.reshape(len(x), -1)), linear("last_film", told))
    total = total + linear("last_readout", last)[:, 0]
    return gaussian + std / sigma * total


def test_the_energy_is_what_its_layers_say(model: EBM, executor: Executor, x: np.ndarray) -> None:
    given = {"x": x.astype(np.float32)}
    expected = numpy_energy(weights(model), x, SIGMA, LABEL)
    inputs = {**given, "sigma": SIGMA.astype(np.float32), "label": LABEL.astype(np.int32)}
    np.testing.assert_allclose(executor("energy", inputs)["energy"], expected, rtol=1e-4)
    unsaid = call(executor, "energy", given)["energy"]  # of any class, and the least noise
    expected = numpy_energy(weights(model), x, np.full(4, 0.02), np.full(4, 3))
    np.testing.assert_allclose(unsaid, expected, rtol=1e-4)


def test_noise_is_removed_along_its_gradient(model: EBM, executor: Executor, x: np.ndarray) -> None:
    """Which NumPy finds by small differences."""
    given, width = weights(model), 1e-5
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape[1:]):
        moved = np.zeros(x.shape)
        moved[(slice(None), *place)] = width
        high, low = (numpy_energy(given, x + sign * moved, SIGMA, LABEL) for sign in (1, -1))
        gradient[(slice(None), *place)] = (high - low) / (2 * width)
    inputs = {"x": x.astype(np.float32), "sigma": SIGMA.astype(np.float32), "label": LABEL.astype(np.int32)}
    found = executor("denoise", inputs)["x"]
    wide = SIGMA.reshape(4, 1, 1, 1)
    np.testing.assert_allclose(found, x - wide**2 * gradient, rtol=2e-4, atol=2e-4)


def test_without_a_network_it_is_a_gaussian(x: np.ndarray) -> None:
    """Then the picture's mean is known: the noise takes its share of the deviation from the mean."""
    model = randomised(lambda: EBM(**{**ARGUMENTS, "num_labels": 0}, rngs=nnx.Rngs(0)))
    for readout in (*model.readouts, model.last_readout):
        readout.kernel[...] = jax.device_put(np.zeros(readout.kernel.shape, np.float32))
    found = call(Executor(model, batch_sizes=(4,)), "denoise", {"x": x.astype(np.float32)}, sigma=0.5)["x"]
    np.testing.assert_allclose(found, -0.5 + 0.49 / (0.49 + 0.25) * (x + 0.5), **TOLERANCE)


def test_rows_are_independent(executor: Executor, x: np.ndarray) -> None:
    given = {"x": x.astype(np.float32)}
    energies = call(executor, "energy", given, label=[0, 1, 2, 0], sigma=SIGMA)["energy"]
    said = {
        "method": ["ula", "mala", "annealed", "annealed"],
        "num_steps": [1, 3, 2, 5],
        "label": [0, 1, 2, 0],
    }
    inputs, _ = rows_of(executor, "generate", given, **said)
    del inputs["x"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), np.arange(4))
    samples = executor("generate", inputs, keys=keys)["x"]
    for i in range(4):
        row = {"x": given["x"][i : i + 1]}
        energy = call(executor, "energy", row, label=[0, 1, 2, 0][i], sigma=SIGMA[i])["energy"]
        np.testing.assert_allclose(energy[0], energies[i], **TOLERANCE)
        alone = executor("generate", {k: v[i : i + 1] for k, v in inputs.items()}, keys=keys[i : i + 1])["x"]
        np.testing.assert_allclose(alone[0], samples[i], **TOLERANCE)


def test_guidance_weighs_the_class(model: EBM, x: np.ndarray) -> None:
    """What NumPy's energies give, with and without the class; at 0 the class does not count."""
    loop, given = model.endpoints()["generate"].fn, weights(model)
    told, any_class = (numpy_energy(given, x, SIGMA, each) for each in (LABEL, np.full(4, 3)))
    scale = np.array([0.0, 1.0, 2.5, 2.5])
    inputs = {"label": LABEL.astype(np.int32), "guidance_scale": scale.astype(np.float32)}
    found = jax.jit(loop.fn)(model, x.astype(np.float32), SIGMA.astype(np.float32), inputs)
    np.testing.assert_allclose(found, any_class + scale * (told - any_class), rtol=1e-4)
    assert found[0] == pytest.approx(any_class[0], rel=1e-4)
    assert not np.allclose(told[:2], any_class[:2], rtol=1e-3)


def test_looks_at_samples_are_without_noise_and_change_nothing(executor: Executor) -> None:
    inputs, _ = rows_of(executor, "generate", {"x": np.empty(4)}, label=1)
    del inputs["x"]
    key = jax.random.key(2)
    looks = list(executor.iterate("generate", inputs, every=1, key=key, num_rows=4))
    assert [look.steps[0] for look in looks] == [1, 2, 3, 4]
    assert looks[-1].outputs["x"].shape == (4, 7, 5, 2)
    samples = executor("generate", inputs, key=key)["x"]
    np.testing.assert_allclose(looks[-1].outputs["x"], samples, **TOLERANCE)


def test_its_config_makes_it_anew(model: EBM) -> None:
    again = abstract_model("ebm", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(np.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]
    assert again.config == model.config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": [7, 5]}, "input_shape: expected 3 items, got 2"),
        ({"input_shape": [7, 0, 1]}, r"input_shape\[1\]: expected an integer from 1"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
        ({"level_features": []}, "level_features: expected a list"),
        ({"level_features": [1] * 15, "level_convs": [1] * 15}, "level_features: expected 1 to 14 integers"),
        ({"level_convs": [1]}, "level_convs: expected 2 items, got 1"),
        ({"level_convs": [1, -1]}, r"level_convs\[1\]: expected an integer from 0"),
        ({"num_features": 2.0}, "num_features: expected an integer"),
        ({"embed_dim": 0}, "embed_dim: expected an integer from 1"),
        ({"mean": "0"}, "mean: expected a finite number, got '0'"),
        ({"mean": float("inf")}, "mean: expected a finite number, got inf"),
        ({"std": 0}, "std: expected a number above 0"),
        ({"sigma_min": 0.0}, "sigma_min: expected a number above 0"),
        ({"sigma_max": 0.1}, "sigma_walk: expected a number from sigma_min, 0.02, to sigma_max, 0.1"),
        ({"guidance_scale": 0}, "guidance_scale: expected a number above 0"),
        ({"num_steps": 1001}, "num_steps: expected an integer from 1 to 1000"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("ebm", {**ARGUMENTS, **changed})


@pytest.mark.parametrize(
    ("endpoint", "said", "message"),
    [
        ("energy", {"label": 3}, "energy: label: expected from 0 to 2, got 3"),
        ("energy", {"sigma": 0}, "energy: sigma: expected from 0.02 to 10, got 0"),
        ("denoise", {"sigma": 11}, "denoise: sigma: expected from 0.02 to 10, got 11"),
        ("denoise", {"label": -1}, "denoise: label: expected from 0 to 2, got -1"),
        ("generate", {"label": 3}, "generate: label: expected from 0 to 2, got 3"),
        ("generate", {"guidance_scale": -1}, "generate: guidance_scale: expected from 0, got -1"),
        ("generate", {"num_steps": 0}, "generate: num_steps: expected from 1 to 1000, got 0"),
    ],
)
def test_what_it_is_not_told(model: EBM, endpoint: str, said: dict[str, object], message: str) -> None:
    says = model.endpoints()[endpoint].says
    assert says is not None
    with pytest.raises(InputError, match=message):
        checked_fields(endpoint, says.fields, said, 1)


@pytest.fixture(scope="module")
def bundled() -> InferencePipeline:
    return load_pipeline("mnist-energy", batch_size=10)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Forty digits in [-1, 1], and their labels."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        return archive["images"][:40].astype(np.float32) / 127.5 - 1, archive["labels"][:40].astype(np.int32)


def test_the_bundled_one_draws_digits(bundled: InferencePipeline) -> None:
    """Of 10 samples; that of 100 it misses 3 leaves none, and four standard errors 2."""
    labels = np.arange(10)
    x = bundled.generate(10, rngs=0, label=labels)
    found = load_pipeline("mnist-classifier", batch_size=10).call("classify", x=x)["label"]
    assert (found != labels).sum() <= 2


def test_the_bundled_one_knows_digits(
    bundled: InferencePipeline, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """Their energy is lower than that of their mirror images, mostly, and of other pixels, always."""
    x, label = digits
    random = np.random.default_rng(0)
    shuffled = random.permutation(x.reshape(40, -1), axis=1).reshape(x.shape)
    energy, mirrored, other = (
        bundled.call("energy", x=each, label=label)["energy"] for each in (x, x[:, :, ::-1], shuffled)
    )
    assert (energy < other).all()
    assert (energy < mirrored).mean() > 0.7


def test_the_bundled_one_removes_noise(
    bundled: InferencePipeline, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """All but a tenth of it, in squares, and less than a Gaussian of its mean and deviation leaves."""
    x, label = digits
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    found = bundled.call("denoise", x=x + np.float32(0.5) * noise, label=label, sigma=0.5)["x"]
    assert ((found - x) ** 2).mean() < 0.1 * 0.25
