"""Figures of quality, of models whose quality is known."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.measure.quality import FeatureModel, evaluate

SHAPE = (12, 12, 1)
PICTURE = TensorSpec(SHAPE, jnp.float32, image_range=(0.0, 1.0))
NUM_LABELS = 3


class Labels:
    """The label as it is, or 0."""

    fields: ClassVar = {"label": Field(int, 0, minimum=0, maximum=NUM_LABELS - 1)}
    provides = ("label",)

    def options(self, said):
        return {}

    def rows(self, said, num_rows, options):
        return {"label": np.broadcast_to(said["label"], num_rows).astype(np.int32)}


def generate(model, keys, inputs):
    """Noise whose brightness tells the label; a `shift` makes it brighter than it should be."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, SHAPE, jnp.float32))(keys)
    level = inputs["label"].astype(jnp.float32) + model["shift"]
    return {"x": 0.2 * noise + 0.3 * level[:, None, None, None]}


def features(model, keys, inputs):
    x = inputs["x"].reshape(-1, 2, 6, 12)
    return {"features": x.mean((2, 3)) * 10}


def classify(model, keys, inputs):
    level = (inputs["x"].mean((1, 2, 3)) - 0.1) / 0.3
    logits = -50 * (level[:, None] - jnp.arange(NUM_LABELS, dtype=jnp.float32)[None]) ** 2
    return {"label": jnp.argmax(logits, -1).astype(jnp.int32), "probabilities": jax.nn.softmax(logits)}


def reconstruct(model, keys, inputs):
    return {"x": jnp.clip(inputs["x"] + model["shift"], 0, 1)}


def uint8(pictures):
    return np.rint(255 * np.clip(np.asarray(pictures), 0, 1)).astype(np.uint8)


def drawing(shift=0.0, *names):
    ends = {
        "generate": Endpoint(generate, {"label": TensorSpec((), jnp.int32)}, says=Labels()),
        "reconstruct": Endpoint(reconstruct, {"x": PICTURE}),
    }
    chosen = {name: ends[name] for name in names or ends}
    executor = Executor({"shift": np.float32(shift)}, chosen, batch_sizes=(8, 64))
    return InferencePipeline(executor, postprocess_fn=uint8)


@pytest.fixture(scope="module")
def seen_by():
    ends = {"features": Endpoint(features, {"x": PICTURE}), "classify": Endpoint(classify, {"x": PICTURE})}
    return FeatureModel(InferencePipeline(Executor(None, ends, batch_sizes=(8, 64))))


@pytest.fixture(scope="module")
def real():
    return drawing().generate(300, rngs=99, label=np.arange(300) % NUM_LABELS)


def figures(found):
    return {one.name: one for one in found}


def test_a_perfect_model(seen_by, real):
    told = []
    found = figures(
        evaluate(drawing(), real, seen_by, num_samples=300, progress=lambda *what: told.append(what))
    )
    assert found["frechet_distance"].low <= 0.1
    assert 0 <= found["frechet_distance"].value < 0.1
    assert found["kernel_distance"].low < 0.5
    assert found["accuracy"].value == 1
    assert found["precision"].value > 0.9
    assert found["recall"].value > 0.9
    assert found["diversity"].value == pytest.approx(1, abs=0.05)
    assert found["classifier_score"].value == pytest.approx(NUM_LABELS, abs=0.05)
    assert found["psnr"].value == pytest.approx(58.92, abs=0.01)
    assert found["ssim"].value == pytest.approx(1)
    assert found["feature_distance"].value == pytest.approx(0, abs=1e-3)
    assert {one.num_pictures for one in found.values()} == {300}
    assert {("real pictures", 300, 300), ("samples", 300, 300), ("reconstructions", 300, 300)} <= set(told)


def test_a_model_that_is_off(seen_by, real):
    perfect = figures(evaluate(drawing(), real, seen_by, num_samples=300))
    found = figures(evaluate(drawing(0.4), real, seen_by, num_samples=300))
    assert found["frechet_distance"].low > perfect["frechet_distance"].high
    assert found["kernel_distance"].low > perfect["kernel_distance"].high
    assert found["precision"].high < 0.1
    assert found["nearest_real"].low > perfect["nearest_real"].high
    assert found["psnr"].value < 20
    for one in found.values():
        assert one.low <= one.value <= one.high


def test_a_model_that_draws_one_class(seen_by, real):
    found = figures(evaluate(drawing(0.0, "generate"), real, seen_by, num_samples=150, given={"label": 1}))
    assert found["accuracy"].value == 1
    assert found["classifier_score"].value == pytest.approx(1, abs=0.01)
    assert found["recall"].value == pytest.approx(1 / NUM_LABELS, abs=0.05)
    assert found["diversity"].value < 0.5
    assert "psnr" not in found


def test_an_interval_holds_the_truth_as_often_as_it_says(seen_by):
    """Of a coin's share: 95 % intervals of 60 sets of 100 tosses, within 4 standard errors of that."""
    from artifex.generative_models.inference.measure import quality

    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        _, low, high = quality._of_mean(random.random(100) < 0.3, random)
        held += low <= 0.3 <= high
    assert held / 60 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 60)
    assert held < 61


def test_a_seed_gives_the_same(seen_by, real):
    first, again, other = (
        evaluate(drawing(0.1, "generate"), real, seen_by, num_samples=40, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_samples": 2}, "a covariance of 2 features takes at least 3 samples, got 2"),
        ({"given": {"label": 3}}, "label: expected from 0 to 2, got 3"),
        ({"given": {"colour": 3}}, "colour is not taken"),
    ],
)
def test_bad_input(seen_by, real, settings, words):
    with pytest.raises(InputError, match=words):
        evaluate(drawing(), real, seen_by, **settings)


def test_other_pictures_and_other_models(seen_by, real):
    with pytest.raises(InputError, match=r"takes pictures \[12, 12, 1\], and these are \[12, 11, 1\]"):
        evaluate(drawing(), real[:, :, :11], seen_by)
    with pytest.raises(
        InputError, match="expected a model with an endpoint features or encode; it has generate"
    ):
        FeatureModel(drawing(0.0, "generate"))
    blind = InferencePipeline(Executor(None, {"features": Endpoint(features, {"x": PICTURE})}))
    with pytest.raises(InputError, match="expected a model that draws or reconstructs; it has features"):
        evaluate(blind, real, seen_by)
