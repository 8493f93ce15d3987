"""The deep convolutional generator, against NumPy and by hand, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generators import drawn, float64, keys_of, made, transposed_conv, transposed_kernel
from shared import TOLERANCE, randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.inference import Executor
from artifex.generative_models.models.dcgan import DCGAN
from artifex.generative_models.models.gan import prior

ARGUMENTS = {"output_shape": [8, 4, 2], "latent_dim": 3, "features": [6, 5], "num_labels": 3}
ROWS = 4


@pytest.fixture(scope="module")
def model() -> DCGAN:
    return randomised(lambda: DCGAN(**ARGUMENTS, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def executor(model: DCGAN) -> Executor:
    return Executor(model, batch_sizes=(ROWS,))


def numpy_decode(model: DCGAN, z: np.ndarray, label: np.ndarray) -> np.ndarray:
    x = np.concatenate([z, float64(model.embed.embedding)[label]], 1)
    x = (x @ float64(model.stem.kernel) + float64(model.stem.bias)).reshape(len(z), 2, 1, 6)
    for up in model.ups:
        x = np.maximum(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8), 0)
        bias = np.tile(float64(up.conv.bias).reshape(2, 2, -1), (*x.shape[1:3], 1))
        x = transposed_conv(x, transposed_kernel(up.conv.kernel)) + bias
    return 1 / (1 + np.exp(-x))


def test_it_is_transposed_convolutions_of_normalised_pixels(model: DCGAN, executor: Executor) -> None:
    z, label = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32), np.array([0, 2, 1, 2])
    found = made(executor, "decode", {"z": z}, label=label)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_decode(model, z, label), **TOLERANCE)


def test_truncation_narrows_the_prior_to_its_mean(executor: Executor) -> None:
    z, labels = np.asarray(prior(keys_of(ROWS), 3)), [0, 1, 2, 2]
    assert len(np.unique(z)) == z.size
    for truncation in (1.0, 0.5, 0.0):
        found = drawn(executor, ROWS, truncation=truncation, label=labels)
        wanted = made(executor, "decode", {"z": np.float32(truncation) * z}, label=labels)
        np.testing.assert_allclose(found, wanted, **TOLERANCE)
    np.testing.assert_array_equal(found[2], found[3])
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_labels_that_nobody_says_are_drawn_from_all_there_are(executor: Executor) -> None:
    found = drawn(executor, 32)
    of_label = np.stack([drawn(executor, 32, label=label) for label in range(3)])
    fits = (of_label == found).all((2, 3, 4))
    assert (fits.sum(0) == 1).all()
    assert fits.any(1).all()


def test_the_way_between_latents_is_an_arc(executor: Executor) -> None:
    z, z_end = (np.eye(3, dtype=np.float32)[[i] * ROWS] for i in (0, 1))
    weight = np.array([0, 1 / 3, 0.5, 1], np.float32)
    found = made(executor, "interpolate", {"z": z, "z_end": z_end}, weight=weight, label=1)
    angle = weight[:, None] * np.float32(np.pi / 2)
    wanted = made(executor, "decode", {"z": np.cos(angle) * z + np.sin(angle) * z_end}, label=1)
    np.testing.assert_allclose(found, wanted, **TOLERANCE)
    assert np.abs(found[0] - found[3]).max() > 0.01


def test_rows_are_independent(executor: Executor) -> None:
    together = drawn(executor, 3, label=[2, 0, 1], truncation=[1.0, 0.5, 0.25])
    others = drawn(executor, 2, label=[1, 0], truncation=[0.0, 0.5])
    np.testing.assert_array_equal(others[1], together[1])
    assert np.abs(others[0] - together[0]).max() > 0.01


def test_without_classes_nobody_says_one() -> None:
    executor = Executor(randomised(lambda: DCGAN([4, 4, 1], 2, [3], rngs=nnx.Rngs(0))), batch_sizes=(1,))
    assert {name: endpoint.fields for name, endpoint in executor.endpoints.items()} == {
        "generate": ("truncation",),
        "decode": ("z",),
        "interpolate": ("z", "z_end", "weight"),
    }
    assert made(executor, "decode", {"z": np.zeros((1, 2), np.float32)}).shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"label": 3}, "label: expected from 0 to 2, got 3"),
        ({"label": [0, 1, -1, 0]}, "label: expected from 0 to 2, got -1"),
        ({"truncation": 1.5}, "truncation: expected from 0 to 1, got 1.5"),
        ({"truncation": -0.5}, "truncation: expected from 0 to 1, got -0.5"),
        ({"temperature": 1.0}, "temperature is not taken"),
    ],
)
def test_what_callers_may_not_say(executor: Executor, said: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        drawn(executor, ROWS, **said)


def test_its_config_makes_it_anew(model: DCGAN) -> None:
    again = abstract_model("dcgan", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(jnp.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]
    assert again.config == model.config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output_shape": [8, 4]}, "output_shape: expected 3 items, got 2"),
        ({"output_shape": [8, 6, 1]}, r"output_shape: expected sides that 4 divides.*\[8, 6, 1\]"),
        ({"output_shape": [0, 4, 1]}, r"output_shape\[0\]: expected an integer from 1"),
        ({"features": []}, "features: expected a list"),
        ({"features": [2, 1.5]}, r"features\[1\]: expected an integer"),
        ({"features": [1] * 14}, "features: expected 1 to 13 integers, got 14"),
        ({"latent_dim": 0}, "latent_dim: expected an integer from 1"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("dcgan", {**ARGUMENTS, **changed})
