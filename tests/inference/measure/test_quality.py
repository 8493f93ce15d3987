"""Figures of quality, of models whose quality is known."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field, RowNumbers
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.measure.features import FeatureModel
from artifex.generative_models.inference.measure.quality import evaluate
from artifex.generative_models.inference.measure.quality import samples as quality_samples

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
        ({"likelihood": True}, "no endpoint log_prob or elbo of pictures; there are generate, reconstruct"),
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
    with pytest.raises(InputError, match="a model that draws or reconstructs pictures; it has features"):
        evaluate(blind, real, seen_by)


def test_models_of_something_else(seen_by, real):
    def tokens(model, keys, inputs):
        return {"tokens": jnp.zeros((len(keys), 7), jnp.int32)}

    ends = {"generate": Endpoint(tokens, {})}
    with pytest.raises(InputError, match=r"generate: expected pictures x .*, and it gives {'tokens': \[7\]}"):
        evaluate(InferencePipeline(Executor(None, ends)), real, seen_by)
    ends = {"generate": Endpoint(generate, {"label": TensorSpec((), jnp.int32)}, says=Labels())}
    floats = InferencePipeline(Executor({"shift": np.float32(0)}, ends))
    with pytest.raises(InputError, match="generate: expected uint8 pictures, and it gives float32"):
        evaluate(floats, real, seen_by)


def foretelling(name, **options):
    """A model of independent pixels, normal around 0.5, that tells the density of pictures or a bound."""

    def density(model, keys, inputs, **options):
        x = inputs["x"]
        nats = -0.5 * ((x - 0.5) ** 2 + jnp.log(jnp.float32(2 * np.pi))).sum((1, 2, 3))
        if options.get("dequantize"):
            return {name: nats, "bits_per_dim": jax.vmap(jax.random.uniform)(keys)}
        return {name: nats - 10 * (name == "elbo")}

    ends = {
        "reconstruct": Endpoint(reconstruct, {"x": PICTURE}),
        name: Endpoint(density, {"x": PICTURE}, options, doc="of these"),
    }
    return InferencePipeline(
        Executor({"shift": np.float32(0)}, ends, batch_sizes=(64,)), postprocess_fn=uint8
    )


@pytest.mark.parametrize("name", ["log_prob", "elbo"])
def test_bits_a_number(seen_by, real, name):
    model = foretelling(name)
    model.preprocess_fn = lambda pictures: pictures.astype(np.float32) / 255
    found = figures(evaluate(model, real, seen_by))
    x = real.astype(np.float64) / 255
    nats = -0.5 * ((x - 0.5) ** 2 + np.log(2 * np.pi)).sum((1, 2, 3)) - 10 * (name == "elbo")
    one = found["bits_per_dim" if name == "log_prob" else "bits_per_dim_bound"]
    bits = -nats / 144 / np.log(2)
    assert one.value == pytest.approx(bits.mean(), rel=1e-5)
    half = 1.96 * bits.std() / np.sqrt(len(bits))
    assert one.high - one.low == pytest.approx(2 * half, rel=0.15)  # of 1,000 resamples
    assert one.about.endswith(f"{name}: of these")
    assert ("bound" in one.about) == (name == "elbo")
    assert not any("bits" in one.name for one in evaluate(model, real, seen_by, likelihood=False))


def test_pictures_fill_the_cells_of_their_levels_where_a_model_can_have_them(seen_by, real):
    model = foretelling("log_prob", dequantize=False)
    model.preprocess_fn = lambda pictures: pictures.astype(np.float32) / 255
    assert 0.4 < figures(evaluate(model, real, seen_by))["bits_per_dim"].value < 0.6  # as the endpoint tells


def test_where_a_class_has_to_be_told_pictures_are_of_all_alike(seen_by, real):
    def density(model, keys, inputs):
        times = 1 + inputs["label"].astype(jnp.float32)
        return {"log_prob": -0.01 * jnp.square(inputs["x"]).sum((1, 2, 3)) * times}

    says = RowNumbers.of({"label": Field(int, 0, minimum=0, maximum=2)})
    ends = {
        "reconstruct": Endpoint(reconstruct, {"x": PICTURE}),
        "log_prob": Endpoint(density, {"x": PICTURE} | says.inputs, says=says),
    }
    model = InferencePipeline(
        Executor({"shift": np.float32(0)}, ends, batch_sizes=(64,)), postprocess_fn=uint8
    )
    model.preprocess_fn = lambda pictures: pictures.astype(np.float32) / 255
    assert "bits_per_dim" not in figures(evaluate(model, real, seen_by))
    nats = -0.01 * ((real.astype(np.float64) / 255) ** 2).sum((1, 2, 3))
    likely = np.mean([np.exp(nats * times) for times in (1, 2, 3)], axis=0)
    found = figures(evaluate(model, real, seen_by, likelihood=True))["bits_per_dim"].value
    assert found == pytest.approx(np.mean(-np.log2(likely)) / 144, rel=1e-5)


def test_labels_that_there_are_not_are_refused_at_once(seen_by, real):
    ends = {"generate": Endpoint(generate, {"label": TensorSpec((), jnp.int32)}, says=Labels())}
    model = InferencePipeline(
        Executor({"shift": np.float32(0)}, ends, batch_sizes=(64,)), postprocess_fn=uint8
    )
    with pytest.raises(InputError, match="generate: label: expected one value, or 200"):
        evaluate(model, real, seen_by, num_samples=200, given={"label": [1, 2, 3]})


def test_an_endpoint_that_solves_an_ode_is_asked_when_it_is_wanted(seen_by, real):
    model = foretelling("log_prob", tolerance=1e-3)
    model.preprocess_fn = lambda pictures: pictures.astype(np.float32) / 255
    assert "bits_per_dim" not in figures(evaluate(model, real, seen_by))
    assert "bits_per_dim" in figures(evaluate(model, real, seen_by, likelihood=True))


@pytest.mark.parametrize(
    ("least", "most", "rows"), [(1 << 20, 64 << 20, 300), (1, 64 << 20, 64), (1, 1000, 6)]
)
def test_pictures_are_read_by_their_bytes(seen_by, real, monkeypatch, least, most, rows):
    from artifex.generative_models.inference.measure import quality

    monkeypatch.setattr(quality, "_CHUNK_BYTES", least)
    monkeypatch.setattr(quality, "_MOST_BYTES", most)
    told = []
    found = evaluate(drawing(0.1, "reconstruct"), real, seen_by, progress=lambda *what: told.append(what))
    assert told[0] == ("real pictures", rows, 300)
    monkeypatch.undo()
    whole = evaluate(drawing(0.1, "reconstruct"), real, seen_by)
    for one, other in zip(found, whole, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)


def test_samples_are_those_that_are_measured(seen_by):
    """The first of them, and the labels that they are drawn with."""
    whole, labels = quality_samples(drawing(), 100, seed=4)
    few, _ = quality_samples(drawing(), 100, seed=4, stop=5)
    whole = np.concatenate(list(whole))
    np.testing.assert_array_equal(np.concatenate(list(few)), whole[:5])
    np.testing.assert_array_equal(labels, np.arange(100) % NUM_LABELS)
    np.testing.assert_array_equal(np.rint((whole.mean((1, 2, 3)) / 255 - 0.1) / 0.3), labels)
