import json
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TOLERANCE, randomised

import artifex
from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.models.classifier import Classifier

ARGUMENTS = {"input_shape": (7, 5, 2), "num_labels": 3, "level_features": [4, 5], "num_features": 6}


@pytest.fixture(scope="module")
def model() -> Classifier:
    return randomised(lambda: Classifier(**ARGUMENTS, rngs=nnx.Rngs(0)))


def numpy_conv_stride2(x: np.ndarray, conv: nnx.Conv) -> np.ndarray:
    """A 3×3 convolution of stride 2 over a picture that zeros surround, on the right and below first."""
    kernel, bias = (np.asarray(part[...], np.float64) for part in (conv.kernel, conv.bias))
    batch, height, width, _ = x.shape
    out = np.zeros((batch, -(-height // 2), -(-width // 2), len(bias)))
    top, left = height % 2, width % 2  # odd sides have a zero before them too
    padded = np.pad(x, ((0, 0), (top, 3), (left, 3), (0, 0)))
    for i, j in np.ndindex(out.shape[1:3]):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return out


def test_it_computes_what_its_layers_say(model: Classifier) -> None:
    x = np.random.default_rng(0).random((4, 7, 5, 2))
    features = x
    for conv in model.convs:
        features = np.maximum(numpy_conv_stride2(features, conv), 0)
    linear = [np.asarray(part[...], np.float64) for layer in (model.embed, model.head)
              for part in (layer.kernel, layer.bias)]  # fmt: skip
    features = np.maximum(features.reshape(4, -1) @ linear[0] + linear[1], 0)
    logits = features @ linear[2] + linear[3]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    executor = Executor(model, batch_sizes=(4,))
    given = {"x": x.astype(np.float32)}
    np.testing.assert_allclose(executor("features", given)["features"], features, **TOLERANCE)
    found = executor("classify", given)
    np.testing.assert_allclose(found["probabilities"], weights / weights.sum(1, keepdims=True), **TOLERANCE)
    np.testing.assert_array_equal(found["label"], logits.argmax(1))


def test_rows_are_independent(model: Classifier) -> None:
    x = np.random.default_rng(1).random((3, 7, 5, 2), np.float32)
    executor = Executor(model, batch_sizes=(1, 3))
    together = executor("classify", {"x": x})["probabilities"]
    alone = [executor("classify", {"x": x[i : i + 1]})["probabilities"][0] for i in range(3)]
    np.testing.assert_allclose(np.stack(alone), together, **TOLERANCE)


def test_its_config_makes_it_anew(model: Classifier) -> None:
    again = abstract_model("classifier", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(jnp.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]
    assert again.config == model.config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": [7, 5]}, "input_shape: expected 3 items, got 2"),
        ({"input_shape": [7, 0, 1]}, r"input_shape\[1\]: expected an integer from 1"),
        ({"num_labels": 1}, "num_labels: expected an integer from 2"),
        ({"level_features": []}, "level_features: expected a list"),
        ({"level_features": [1] * 15}, "level_features: expected 1 to 14 integers, got 15"),
        ({"num_features": 2.0}, "num_features: expected an integer"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("classifier", {**ARGUMENTS, **changed})


def test_the_bundled_one_reads_digits() -> None:
    """Of 300 digits, as uint8; its accuracy on all of the test set leaves 2, and six standard errors 8."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        images, labels = archive["images"], archive["labels"]
    pipeline = artifex.load("mnist-classifier")
    found = np.concatenate([part["label"] for part in pipeline.executor.map("classify", [{"x": images}])])
    assert (found != labels).sum() <= 8
    assert load_exported_model("mnist-classifier")[2]["test_accuracy"] >= 0.99
