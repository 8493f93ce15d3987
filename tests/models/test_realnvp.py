import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TOLERANCE, randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.realnvp import SCALINGS, RealNVP

ARGUMENTS: dict[str, Any] = {
    "input_shape": [4, 6, 1],
    "level_squeezes": [2, 1],
    "level_steps": [2, 1],
    "level_features": [3, 4],
    "num_labels": 3,
    "max_log_scale": 0.5,  # so that random weights push no logit to where sigmoids are 1 as float32
}
POINTS: dict[str, Any] = {
    **ARGUMENTS,
    "input_shape": [1, 1, 2],
    "level_squeezes": [1],
    "level_steps": [3],
    "level_features": [6],
}
KEY = jax.random.key(4)
ROWS = 6
LABELS = np.array([0, 1, 2, 2, 0, 1], np.int32)


def made(arguments: Mapping[str, Any], **others: Any) -> RealNVP:
    """With random weights, of which each counts."""
    return randomised(lambda: RealNVP(**{**arguments, **others}, rngs=nnx.Rngs(0)))


def executor_of(model: RealNVP, num_rows: int = ROWS) -> Executor:
    return Executor(model, batch_sizes=(num_rows,))


def called(executor: Executor, endpoint: str, inputs: Any = None, **said: Any) -> dict[str, np.ndarray]:
    """What an endpoint gives of inputs, and of what callers say."""
    (num_rows,) = executor.batch_sizes
    says: Any = executor.endpoints[endpoint].says
    names = set(says.fields if says else ())
    fields = {name: said.pop(name) for name in names & said.keys()}
    rows = says.rows(checked_fields(endpoint, says.fields, fields, num_rows), num_rows, {}) if says else {}
    found = executor(endpoint, {**(inputs or {}), **rows}, num_rows=num_rows, **said)
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.fixture(scope="module", params=SCALINGS)
def model(request: pytest.FixtureRequest) -> RealNVP:
    return made(ARGUMENTS, scaling=request.param)


@pytest.fixture(scope="module")
def executor(model: RealNVP) -> Executor:
    return executor_of(model)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).random((ROWS, 4, 6, 1), np.float32)


def test_either_way_undoes_the_other(executor: Executor, pictures: np.ndarray) -> None:
    z = called(executor, "encode", {"x": pictures}, label=LABELS)["z"]
    assert z.shape == (ROWS, 24)
    x = called(executor, "decode", {"z": z}, label=LABELS)["x"]
    np.testing.assert_allclose(x, pictures, atol=1e-4)
    drawn = 0.5 * np.random.default_rng(1).normal(size=(ROWS, 24)).astype(np.float32)
    x = called(executor, "decode", {"z": drawn}, label=LABELS)["x"]
    again = called(executor, "encode", {"x": x}, label=LABELS)["z"]
    np.testing.assert_allclose(again, drawn, rtol=1e-4, atol=1e-3)  # logits near their ends are steep


def test_log_determinants_are_those_of_the_jacobian(model: RealNVP, pictures: np.ndarray) -> None:
    @jax.jit
    def both(x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def latents(flat: jax.Array) -> jax.Array:
            return model.encode(flat.reshape(1, *x.shape), label[None])[0][0]

        z, log_det = model.encode(x[None], label[None])
        _, back = model.decode(z, label[None])
        return jax.jacfwd(latents)(x.reshape(-1)), log_det[0], back[0]

    for x, label in zip(pictures[1:4], LABELS[1:4], strict=True):
        jacobian, log_det, back = both(jnp.asarray(x), jnp.asarray(label))
        wanted = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
        assert float(log_det) == pytest.approx(wanted, rel=1e-4, abs=1e-3)
        assert float(back) == pytest.approx(-wanted, rel=1e-4, abs=1e-3)


def test_log_prob_is_that_of_noise_and_the_log_determinant(
    model: RealNVP, executor: Executor, pictures: np.ndarray
) -> None:
    z = called(executor, "encode", {"x": pictures}, label=LABELS)["z"].astype(np.float64)
    found = called(executor, "log_prob", {"x": pictures}, label=LABELS)
    log_det = jax.jit(lambda model, x: model.encode(x, jnp.asarray(LABELS))[1])(model, pictures)
    wanted = -0.5 * (z**2).sum(1) - 12 * math.log(2 * math.pi) + log_det
    np.testing.assert_allclose(found["log_prob"], wanted, rtol=1e-4)
    of_a_cell = 0 if model.scaling == "none" else math.log2(255)
    np.testing.assert_allclose(
        found["bits_per_dim"], of_a_cell - found["log_prob"] / (24 * math.log(2)), rtol=1e-5
    )


def test_dequantizing_fills_the_cells_of_levels(
    model: RealNVP, executor: Executor, pictures: np.ndarray
) -> None:
    x = np.round(pictures * 255) / np.float32(255)
    if model.scaling == "none":
        with pytest.raises(InputError, match="dequantize"):
            called(executor, "log_prob", {"x": x}, dequantize=True, key=KEY)
        return
    found = called(executor, "log_prob", {"x": x}, dequantize=True, key=KEY)["log_prob"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(ROWS))
    noise = jax.vmap(lambda key: jax.random.uniform(key, (4, 6, 1), jnp.float32))(keys)
    filled = x + (np.asarray(noise) - np.float32(0.5)) / np.float32(255)
    wanted = called(executor, "log_prob", {"x": filled})["log_prob"]
    np.testing.assert_allclose(found, wanted, **TOLERANCE)
    np.testing.assert_array_equal(np.round(filled * 255), np.round(x * 255))


@pytest.mark.parametrize("model", ["logit"], indirect=True, scope="module")
def test_samples_are_decoded_noise_of_their_temperature(executor: Executor) -> None:
    temperature = np.array([0, 0.3, 0.5, 0.1, 0.7, 0], np.float32)
    found = called(executor, "generate", temperature=temperature, label=LABELS, key=KEY)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, i), 0))(jnp.arange(ROWS))
    noise = jax.vmap(lambda key: jax.random.normal(key, (24,), jnp.float32))(keys)
    z = temperature[:, None] * np.asarray(noise)
    x = called(executor, "decode", {"z": z}, label=LABELS)["x"]
    np.testing.assert_allclose(found["x"], x, **TOLERANCE)
    again = called(executor, "log_prob", {"x": x}, label=LABELS)["log_prob"]
    np.testing.assert_allclose(found["log_prob"], again, rtol=1e-4, atol=1e-2)
    assert found["attempts"].tolist() == [1] * ROWS


def test_draws_are_made_again_until_they_are_likely_enough() -> None:
    executor = executor_of(made(POINTS, scaling="none"), 64)
    first = called(executor, "generate", label=0, key=KEY)["log_prob"]
    bound = float(np.median(first))
    found = called(executor, "generate", label=0, min_log_prob=bound, key=KEY)
    kept = first >= bound
    np.testing.assert_array_equal(found["log_prob"][kept], first[kept])
    assert (found["attempts"] == 1).tolist() == kept.tolist()
    assert found["log_prob"].min() >= np.float32(bound)
    again = called(executor, "log_prob", {"x": found["x"]}, label=0)["log_prob"]
    np.testing.assert_allclose(found["log_prob"], again, rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match=r"generate: row 0: of 3 draws none .* the best has -?\d"):
        called(executor, "generate", min_log_prob=1e6, max_attempts=3, key=KEY)


def test_density_of_points_integrates_to_one_and_samples_follow_it() -> None:
    """By a sum over a grid in two dimensions, whose moments those of samples are compared with."""
    num_rows, reach = 4096, 24.0
    executor = executor_of(made(POINTS, scaling="none"), num_rows)
    step = 2 * reach / 256
    axis = (np.arange(256, dtype=np.float32) + 0.5) * step - reach
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, num_rows, 1, 1, 2)
    for label in (1, None):
        parts = [called(executor, "log_prob", {"x": part}, label=label)["log_prob"] for part in grid]
        mass = np.exp(np.concatenate(parts).astype(np.float64)) * step**2
        assert mass.sum() == pytest.approx(1, abs=2e-3)
        points = grid.reshape(-1, 2).astype(np.float64)
        mean = mass @ points
        covariance = (points - mean).T * mass @ (points - mean)
        x = called(executor, "generate", label=label, key=KEY)["x"].reshape(-1, 2).astype(np.float64)
        error = np.sqrt(np.diag(covariance) / num_rows)
        assert (np.abs(x.mean(0) - mean) < 5 * error).all()
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.15 * np.diag(covariance).max())


def test_probabilities_of_pictures_of_256_levels_sum_to_one() -> None:
    """Of those of two pixels, by the bits that are told of each; a 500th is left out at each end."""
    executor = executor_of(made(POINTS, boundary=0.002), 4096)
    axis = np.arange(256, dtype=np.float32) / 255
    pictures = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 4096, 1, 1, 2)
    bits = [called(executor, "log_prob", {"x": part}, label=2)["bits_per_dim"] for part in pictures]
    assert np.exp2(-2 * np.concatenate(bits).astype(np.float64)).sum() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("model", ["logit"], indirect=True, scope="module")
def test_rows_are_independent(model: RealNVP, executor: Executor, pictures: np.ndarray) -> None:
    together = called(executor, "encode", {"x": pictures}, label=LABELS)["z"]
    single = executor_of(model, 1)
    alone = [called(single, "encode", {"x": pictures[i : i + 1]}, label=LABELS[i : i + 1])["z"][0]
             for i in range(ROWS)]  # fmt: skip
    np.testing.assert_allclose(np.stack(alone), together, rtol=1e-4, atol=1e-4)


def test_classes_differ(executor: Executor, pictures: np.ndarray) -> None:
    same = np.repeat(pictures[:1], ROWS, 0)
    told = called(executor, "encode", {"x": same}, label=LABELS)["z"]
    np.testing.assert_array_equal(told[2], told[3])
    untold = called(executor, "encode", {"x": same})["z"]
    assert len(np.unique(np.concatenate([told, untold]).round(3), axis=0)) == 4


def test_weights_of_few_bits_are_as_invertible(pictures: np.ndarray) -> None:
    graphdef, weights = nnx.split(made(ARGUMENTS))
    bits = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), weights)
    model = nnx.merge(graphdef, jax.device_put(bits))
    executor = Executor(model, batch_sizes=(ROWS,), dtype=jnp.float32)  # as `compute_dtype` has it
    z = called(executor, "encode", {"x": pictures})["z"]
    assert z.dtype == np.float32
    np.testing.assert_allclose(called(executor, "decode", {"z": z})["x"], pictures, atol=1e-4)


def test_before_training_it_scales_nothing_but_mixes_channels(pictures: np.ndarray) -> None:
    """So that its first gradients are finite: couplings and Gaussians are the identity."""

    @jax.jit
    def log_det(x: jax.Array) -> jax.Array:
        model = RealNVP(**{**ARGUMENTS, "level_steps": [1, 1], "scaling": "none"}, rngs=nnx.Rngs(0))
        return model.encode(x)[1]

    np.testing.assert_array_equal(log_det(pictures), np.zeros(ROWS))


def test_its_config_makes_it_anew() -> None:
    model = made(ARGUMENTS, scaling="linear")
    again = abstract_model("realnvp", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(jnp.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]
    assert again.config == model.config
    without = abstract_model("realnvp", {**model.config, "num_labels": 0})
    assert "label" not in without.endpoints()["generate"].fields


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": [4, 6]}, "input_shape: expected 3 items, got 2"),
        ({"level_squeezes": [3, 1]}, r"level_squeezes\[0\]: expected a divisor of its sides, 4 and 6, got 3"),
        ({"level_squeezes": [1, 2]}, r"level_squeezes\[0\]: its level has 1 channel"),
        ({"level_steps": [2]}, "level_steps: expected 2 items, got 1"),
        ({"level_steps": [2, 0]}, r"level_steps\[1\]: expected an integer from 1"),
        ({"level_features": [2, 1.5]}, r"level_features\[1\]: expected an integer from 1"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
        ({"scaling": "log"}, "scaling: expected one of logit, linear, none"),
        ({"boundary": 0.5}, "boundary: expected a number below 0.5"),
        ({"max_log_scale": 0}, "max_log_scale: expected a number above 0"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("realnvp", {**ARGUMENTS, **changed})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected from 0, got -0.1"),
        ({"label": 3}, "label: expected from 0 to 2, got 3"),
        ({"max_attempts": 0}, "max_attempts: expected from 1"),
    ],
)
def test_wrong_numbers(said: dict[str, float], message: str) -> None:
    endpoint = abstract_model("realnvp", ARGUMENTS).endpoints()["generate"]
    with pytest.raises(InputError, match=message):
        checked_fields("generate", endpoint.says.fields, said, 1)


def test_the_bundled_one_knows_digits() -> None:
    """By the bits of 150 test digits, whose standard error is 0.014, and by what the classifier reads."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        images, labels = archive["images"][:150], archive["labels"][:150].astype(np.int32)
    names = ("realnvp", "classifier")
    flow, reader = (load_pipeline(f"mnist-{name}", batch_size=50).executor for name in names)
    says: Any = flow.endpoints["generate"].says
    wanted = np.arange(50, dtype=np.int32) % 10
    said = checked_fields("generate", says.fields, {"label": wanted, "temperature": 0.7}, 50)
    drawn = flow("generate", says.rows(said, 50, {}), key=KEY)
    x = np.asarray(drawn["x"])
    found = reader("classify", {"x": np.clip(x, 0, 1)})["label"]
    assert (found == wanted).mean() >= 0.7

    noise = np.random.default_rng(0).random(images.shape, np.float32) - np.float32(0.5)
    filled = np.concatenate([x, (images + noise) / np.float32(255)])
    label = np.concatenate([wanted, labels])
    chunks = [{"x": filled[i : i + 50], "label": label[i : i + 50]} for i in range(0, 200, 50)]
    of_samples, *of_digits = flow.map("log_prob", chunks)
    # Samples as they came, the way back: the sum over 784 numbers of what is lost on it.
    np.testing.assert_allclose(of_samples["log_prob"], drawn["log_prob"], atol=0.5)
    bits = np.mean([part["bits_per_dim"] for part in of_digits])
    metadata = load_exported_model("mnist-realnvp")[2]
    assert bits == pytest.approx(metadata["test_bits_per_dim_of_class"], abs=0.06)
