import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import decode, encode, randomised, without_drawing_keys

from artifex.generative_models.core.errors import ArtifexError, ConfigError, InputError
from artifex.generative_models.core.nn import SubpixelConv
from artifex.generative_models.inference import (
    Executor,
    InferencePipeline,
    encode_images_jit,
    load_exported_model,
)
from artifex.generative_models.models.vae import VAE, Decoder, elbo

# Sums of at most some thousand float32 products, each of relative error 2^-24, against float64.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}

decode_to_logits = jax.jit(Decoder.__call__)
compiled_elbo = jax.jit(elbo)

MODELS = {
    "1x1, 1 level": ((1, 1, 1), 1, [2], [2]),
    "1x7, 2 levels": ((1, 7, 3), 2, [3, 2], [2, 3]),
    "17x9, uneven depths": ((17, 9, 4), 2, [3, 2], [4, 2, 2, 3]),
    "33x20, 5 levels": ((33, 20, 1), 2, [2, 2, 2, 2, 3], [3, 2, 2, 2, 2]),
}


@pytest.fixture(scope="module")
def tiny_vae() -> VAE:
    return randomised(lambda: VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> VAE:
    return randomised(lambda: VAE(*MODELS[request.param], rngs=nnx.Rngs(0)))


def float64(array: jax.Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def numpy_conv_stride2(x: np.ndarray, conv: nnx.Conv) -> np.ndarray:
    """A convolution of stride 2, with zeros around a picture until it is halved, the odd one at the end."""
    kernel = float64(conv.kernel)
    side = len(kernel)
    batch, height, width, _ = x.shape
    out = np.zeros((batch, math.ceil(height / 2), math.ceil(width / 2), kernel.shape[-1]))
    top = max(2 * (out.shape[1] - 1) + side - height, 0) // 2
    left = max(2 * (out.shape[2] - 1) + side - width, 0) // 2
    for i, j, u, v in np.ndindex(*out.shape[1:3], side, side):
        row, column = 2 * i + u - top, 2 * j + v - left
        if 0 <= row < height and 0 <= column < width:
            out[:, i, j] += x[:, row, column] @ kernel[u, v]
    return out + float64(conv.bias)


def numpy_transposed_conv_stride2(x: np.ndarray, up: SubpixelConv) -> np.ndarray:
    """The transposed convolution of stride 2, and twice the side, whose taps are the sub-pixel kernel's.

    With side k, input pixel p adds to output pixels 2p - 2(k - 1) to 2p + 1; what falls outside is cut off.
    """
    kernel = float64(up.conv.kernel)
    side = len(kernel)
    batch, height, width, _ = x.shape
    taps = kernel.reshape(side, side, x.shape[-1], 2, 2, -1)
    margin = 2 * (side - 1)
    padded = np.zeros((batch, 2 * height + margin, 2 * width + margin, taps.shape[-1]))
    for u, v, a, b in np.ndindex(side, side, 2, 2):
        row, column = margin - 2 * u + a, margin - 2 * v + b
        padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ taps[u, v, :, a, b]
    bias = float64(up.conv.bias).reshape(2, 2, -1)
    return padded[:, margin:, margin:] + np.tile(bias, (height, width, 1))


def numpy_encode(model: VAE, x: np.ndarray) -> np.ndarray:
    for conv in model.encoder.convs:
        x = np.maximum(numpy_conv_stride2(x, conv), 0)
    head = model.encoder.head
    return x.reshape(len(x), -1) @ float64(head.kernel) + float64(head.bias)


def numpy_decode(model: VAE, z: np.ndarray) -> np.ndarray:
    """Sizes come from the picture's: each level's is half the one after it, rounded up."""
    depth = len(model.decoder_features)
    sizes = [[math.ceil(side / 2**level) for side in model.input_shape[:2]] for level in range(depth, -1, -1)]
    stem = model.decoder.stem
    x = (z @ float64(stem.kernel) + float64(stem.bias)).reshape(len(z), *sizes[0], -1)
    for up, (height, width) in zip(model.decoder.ups, sizes[1:], strict=True):
        x = numpy_transposed_conv_stride2(np.maximum(x, 0), up)[:, :height, :width]
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 2)])
def test_subpixel_convolution_is_a_transposed_convolution(shape: tuple[int, int, int], side: int) -> None:
    doubled = jax.jit(SubpixelConv.__call__)
    up = randomised(lambda: SubpixelConv(shape[2], 3, side, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    np.testing.assert_allclose(doubled(up, x), numpy_transposed_conv_stride2(x, up), **FLOAT32)


def test_encode(model: VAE) -> None:
    x = np.random.default_rng(1).uniform(size=(3, *model.input_shape)).astype(np.float32)
    posterior = encode(model, x)
    wanted = numpy_encode(model, x)
    found = np.concatenate([posterior["mean"], posterior["log_var"]], axis=-1)
    np.testing.assert_allclose(found, wanted, **FLOAT32)


def test_decode(model: VAE) -> None:
    z = np.random.default_rng(1).normal(size=(3, model.latent_dim)).astype(np.float32)
    np.testing.assert_allclose(decode(model, z), numpy_decode(model, z), **FLOAT32)


def test_trained_weights_on_real_digits(mnist_vae: VAE, pictures: np.ndarray) -> None:
    x = pictures[:5]
    wanted = numpy_encode(mnist_vae, x)[:, : mnist_vae.latent_dim]
    mean = encode(mnist_vae, x)["mean"]
    np.testing.assert_allclose(mean, wanted, **FLOAT32)
    np.testing.assert_allclose(decode(mnist_vae, mean), numpy_decode(mnist_vae, float64(mean)), **FLOAT32)


@settings(deadline=None, max_examples=15)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5)),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_pictures_of_any_size_come_back_in_that_size(
    shape: tuple[int, int, int], encoder_depth: int, decoder_depth: int
) -> None:
    def reconstruct(x: jax.Array) -> jax.Array:
        model = VAE(shape, 3, [2] * encoder_depth, [2] * decoder_depth, rngs=nnx.Rngs(0))
        return model.decode(model.encode(x)["mean"])

    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    with without_drawing_keys():
        assert nnx.eval_shape(reconstruct, x) == x


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_decoded_pictures_stay_in_the_unit_interval(tiny_vae: VAE, scale: float) -> None:
    z = scale * np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    pictures = np.asarray(decode(tiny_vae, z))
    assert ((pictures >= 0) & (pictures <= 1)).all()
    assert np.ptp(pictures) > 0


def test_the_model_stores_weights_alone(tiny_vae: VAE) -> None:
    assert {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(tiny_vae))} == {nnx.Param}


def test_config_rebuilds_the_model(model: VAE) -> None:
    config = json.loads(json.dumps(model.config))
    rebuilt = nnx.eval_shape(lambda: VAE(**config, rngs=nnx.Rngs(1)))
    assert rebuilt.config == model.config
    assert nnx.graphdef(rebuilt) == nnx.graphdef(model)
    assert config["input_shape"] == list(model.input_shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (28, 28)}, "input_shape: expected 3 integers, got 2"),
        ({"input_shape": 28}, "input_shape: expected a list of positive integers, got 28"),
        ({"input_shape": (28, 0, 1)}, "input_shape: expected integers from 1 to 16384, got 0"),
        ({"input_shape": (28, 28, 2**14 + 1)}, "input_shape: expected integers .*, got 16385"),
        ({"latent_dim": 0}, "latent_dim: expected integers from 1 to 65536, got 0"),
        ({"latent_dim": 2.0}, r"latent_dim: expected integers from 1 to 65536, got 2\.0"),
        ({"latent_dim": True}, "latent_dim: expected integers from 1 to 65536, got True"),
        ({"encoder_features": []}, "encoder_features: expected 1 to 14 integers, got 0"),
        ({"encoder_features": [2] * 15}, "encoder_features: expected 1 to 14 integers, got 15"),
        ({"encoder_features": "32"}, "encoder_features: expected a list .*, got '32'"),
        ({"decoder_features": [8, -1]}, "decoder_features: expected integers from 1 to 65536, got -1"),
        ({"decoder_features": [8, None]}, "decoder_features: expected integers .*, got None"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0 to 65536, got -1"),
        ({"num_labels": 2.0}, r"num_labels: expected an integer from 0 to 65536, got 2\.0"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{message}$"):
        VAE(**{"input_shape": (8, 8, 1), "latent_dim": 2} | changes, rngs=nnx.Rngs(0))


def bounds_of(model: VAE, x: np.ndarray, keys: jax.Array) -> dict[str, jax.Array]:
    """What the endpoint `elbo` gives: of one draw of z, by each row's key."""
    mean, log_var = model.encode(x).values()
    z = mean + jnp.exp(log_var / 2) * jax.vmap(
        lambda key: jax.random.normal(key, mean.shape[1:], jnp.float32)
    )(keys)
    bound = elbo(x, model.decoder(z), mean, log_var)
    return {"elbo": bound, "bits_per_dim": -bound / jnp.float32(x[0].size) / jnp.log(jnp.float32(2))}


def test_endpoints_compute_what_they_say(tiny_vae: VAE, pictures: np.ndarray) -> None:
    endpoints = tiny_vae.endpoints()
    x = pictures[:3, 10:18, 10:18]
    keys = jax.random.split(jax.random.key(0), 3)
    posterior = encode(tiny_vae, x)
    temperatures = np.array([0, 0.5, 2], np.float32)
    z = np.stack(
        [t * np.asarray(jax.random.normal(key, (4,))) for t, key in zip(temperatures, keys, strict=True)]
    )
    for name, inputs, wanted in (
        ("encode", {"x": x}, posterior),
        ("decode", {"z": z}, {"x": decode(tiny_vae, z)}),
        ("reconstruct", {"x": x}, {"x": decode(tiny_vae, posterior["mean"])}),
        ("generate", {"temperature": temperatures}, {"x": decode(tiny_vae, z)}),
        ("elbo", {"x": x}, jax.jit(bounds_of)(tiny_vae, x, keys)),
    ):
        assert inputs.keys() == endpoints[name].inputs.keys()
        found = jax.jit(endpoints[name].fn)(tiny_vae, keys, jax.tree.map(jnp.asarray, inputs))
        # The same operations, so only the last bit may differ: of sums that XLA orders by batch.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, dict(wanted))


def bound(x: float, logits: float, mean: float = 0, log_var: float = 0) -> float:
    """ELBO of one picture of one pixel with one latent."""
    pixel, logit = np.full((1, 1, 1, 1), x, np.float32), np.full((1, 1, 1, 1), logits, np.float32)
    latent = np.full((2, 1, 1), [[[mean]], [[log_var]]], np.float32)
    return float(compiled_elbo(pixel, logit, *latent)[0])


@pytest.mark.parametrize("x", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("logit", [-8, -1.5, 0, 0.3, 6])
def test_likelihood_is_bernoulli(x: float, logit: float) -> None:
    p = 1 / (1 + math.exp(-logit))
    wanted = x * math.log(p) + (1 - x) * math.log(1 - p)
    assert bound(x, logit) == pytest.approx(wanted, rel=1e-6, abs=1e-6)  # float32


@pytest.mark.parametrize(
    ("x", "logit", "wanted"), [(1, 1e4, 0), (0, 1e4, -1e4), (1, -1e4, -1e4), (0, -1e4, 0)]
)
def test_likelihood_of_extreme_logits(x: float, logit: float, wanted: float) -> None:
    assert bound(x, logit) == wanted


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_beta_weighs_the_divergence(beta: float) -> None:
    """Of a pixel of logit 0, whose log-likelihood is -log 2; the divergence is in closed form."""
    mean, log_var = 1.5, -0.5
    kl = 0.5 * (mean**2 + math.exp(log_var) - 1 - log_var)
    rows = [np.full(shape, value, np.float32) for shape, value in
            (((1, 1, 1, 1), 1), ((1, 1, 1, 1), 0), ((1, 1), mean), ((1, 1), log_var))]  # fmt: skip
    assert float(elbo(*rows, beta=beta)[0]) == pytest.approx(-math.log(2) - beta * kl, rel=1e-6)


GRID = np.linspace(-15, 15, 6001)
STEP = GRID[1] - GRID[0]


def log_normal(z: np.ndarray, mean: float, log_var: float) -> np.ndarray:
    return -0.5 * ((z - mean) ** 2 / math.exp(log_var) + log_var + math.log(2 * math.pi))


POSTERIORS = [(0.0, 0.0), (1.5, -2.0), (-2.0, 0.7), (0.3, -4.0)]


@pytest.mark.parametrize(("mean", "log_var"), POSTERIORS)
def test_kl_is_the_integral(mean: float, log_var: float) -> None:
    log_q = log_normal(GRID, mean, log_var)
    kl = np.sum(np.exp(log_q) * (log_q - log_normal(GRID, 0, 0))) * STEP
    # A pixel of logit 0 has log-likelihood -log 2. The sum converges exponentially: float32 is what differs.
    assert -math.log(2) - bound(1, 0, mean, log_var) == pytest.approx(kl, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("mean", "log_var"), POSTERIORS)
@pytest.mark.parametrize("slope", [0.0, 0.5, 3.0])
def test_the_bound_falls_short_by_the_divergence_from_the_true_posterior(
    mean: float, log_var: float, slope: float
) -> None:
    """log p(x) - E_q[ELBO] = KL(q(z) || p(z|x)), which is zero where q is the true posterior."""
    x = np.array([1.0, 0.0, 1.0])
    logits = slope * GRID[:, None] * np.array([1.0, -0.5, 2.0]) + np.array([0.2, 0.0, -1.0])
    log_joint = log_normal(GRID, 0, 0) + np.sum(x * logits - np.logaddexp(0, logits), axis=1)
    log_evidence = np.log(np.sum(np.exp(log_joint)) * STEP)
    log_q = log_normal(GRID, mean, log_var)
    q = np.exp(log_q)
    divergence = np.sum(q * (log_q - log_joint + log_evidence)) * STEP

    count = len(GRID)
    draws = compiled_elbo(
        np.broadcast_to(x, (count, 3)).reshape(count, 1, 3, 1).astype(np.float32),
        logits.reshape(count, 1, 3, 1).astype(np.float32),
        np.full((count, 1), mean, np.float32),
        np.full((count, 1), log_var, np.float32),
    )
    expected_bound = np.sum(q * float64(draws)) * STEP
    # float32 draws, averaged.
    assert log_evidence - expected_bound == pytest.approx(divergence, rel=1e-5, abs=1e-5)
    assert expected_bound <= log_evidence + 1e-5
    if slope == mean == log_var == 0:
        assert divergence == pytest.approx(0, abs=1e-12)


def test_pictures_do_not_see_each_other(mnist_vae: VAE, pictures: np.ndarray) -> None:
    x = pictures[:5]
    posterior = encode(mnist_vae, x)
    rows = x, decode_to_logits(mnist_vae.decoder, posterior["mean"]), posterior["mean"], posterior["log_var"]
    rows = tuple(map(np.asarray, rows))
    together = np.asarray(compiled_elbo(*rows))
    alone = [np.asarray(compiled_elbo(*(value[i : i + 1] for value in rows)))[0] for i in range(5)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)  # a sum of 784, in an order of XLA's choice
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(compiled_elbo(*(value[order] for value in rows)), together[order])


def test_the_bundled_model_is_as_good_as_it_says(pictures: np.ndarray) -> None:
    model, _, metadata = load_exported_model("mnist-vae")
    keys = jax.random.split(jax.random.key(0), len(pictures))
    bounds = float64(jax.jit(bounds_of)(model, pictures, keys)["elbo"])
    error = bounds.std() / math.sqrt(len(bounds))
    assert abs(bounds.mean() - metadata["test_elbo"]) < 4 * error  # four standard errors: 1 in 16,000


@pytest.fixture(scope="module")
def told() -> VAE:
    """A model of odd sizes that is told one of three classes."""
    return randomised(lambda: VAE((5, 6, 2), 3, [4, 5], [5, 4], num_labels=3, rngs=nnx.Rngs(0)))


LABELS = np.array([0, 2, 1, 3], np.int32)  # and none


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([np.eye(3), np.zeros((1, 3))])[labels]


def test_a_label_is_told_to_the_encoder(told: VAE) -> None:
    """By what it adds to the first convolution; all else is as without."""
    x = np.random.default_rng(1).uniform(size=(4, 5, 6, 2)).astype(np.float32)
    posterior = encode(told, x, LABELS)
    assert told.encoder.told is not None
    added = one_hot(LABELS) @ float64(told.encoder.told.kernel)
    first, second = told.encoder.convs
    hidden = np.maximum(numpy_conv_stride2(x, first) + added[:, None, None], 0)
    hidden = np.maximum(numpy_conv_stride2(hidden, second), 0).reshape(4, -1)
    wanted = hidden @ float64(told.encoder.head.kernel) + float64(told.encoder.head.bias)
    found = np.concatenate([posterior["mean"], posterior["log_var"]], axis=-1)
    np.testing.assert_allclose(found, wanted, **FLOAT32)
    np.testing.assert_array_equal(encode(told, x)["mean"][3], posterior["mean"][3])  # none, where unsaid


def test_a_label_is_told_to_the_decoder(told: VAE) -> None:
    z = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    found = decode(told, z, LABELS)
    np.testing.assert_allclose(found, numpy_decode(told, np.concatenate([z, one_hot(LABELS)], 1)), **FLOAT32)
    np.testing.assert_array_equal(decode(told, z)[3], found[3])


def test_endpoints_take_a_label(told: VAE) -> None:
    pipeline = InferencePipeline(Executor(told, batch_sizes=(4,)), batch_size=4)
    x = np.random.default_rng(1).uniform(size=(4, 5, 6, 2)).astype(np.float32)
    for label in ([0, 2, 1, 1], 2):
        wanted = encode(told, x, np.broadcast_to(np.int32(label), 4))["mean"]
        latents = np.asarray(pipeline.encode(x, label=label))
        np.testing.assert_allclose(latents, wanted, **FLOAT32)
        pictures = decode(told, wanted, np.broadcast_to(np.int32(label), 4))
        np.testing.assert_allclose(pipeline.decode(latents, label=label), pictures, **FLOAT32)
        np.testing.assert_allclose(pipeline.reconstruct(x, label=label), pictures, **FLOAT32)
    np.testing.assert_allclose(pipeline.encode(x), encode(told, x)["mean"], **FLOAT32)
    np.testing.assert_allclose(encode_images_jit(told, x), encode(told, x)["mean"], **FLOAT32)
    noise = pipeline.generate(4, rngs=0, label=1)
    assert np.abs(noise - pipeline.generate(4, rngs=0, label=2)).max() > 0.01
    line = pipeline.interpolate(x[0], x[1], 3, label=2)
    np.testing.assert_allclose(line[[0, 2]], pipeline.reconstruct(x[:2], label=2), **FLOAT32)
    bounds = pipeline.call("elbo", x=x, label=0, rngs=0)
    assert (bounds["elbo"] != pipeline.call("elbo", x=x, label=1, rngs=0)["elbo"]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": 3}, "encode: label: expected from 0 to 2, got 3"),
        ({"label": [0, 1]}, "encode: label: expected one value, or 4, got shape .2."),
        ({"label": 0.5}, "encode: label: expected an integer from 0 to 2, got 0.5"),
        ({"digit": 1}, "encode: digit is not taken; it takes label"),
    ],
)
def test_labels_that_do_not_fit(told: VAE, given: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifexError, match=message):
        InferencePipeline(told, batch_size=4).encode(np.zeros((4, 5, 6, 2), np.float32), **given)


def test_without_labels_nothing_is_told(tiny_vae: VAE, pictures: np.ndarray) -> None:
    assert "num_labels" not in tiny_vae.config
    assert all(endpoint.says is None for endpoint in tiny_vae.endpoints().values())
    with pytest.raises(InputError, match="encode: label is not taken; it takes nothing"):
        InferencePipeline(tiny_vae).encode(pictures[:2, :8, :8], label=1)


def test_config_rebuilds_a_conditional_model(told: VAE) -> None:
    rebuilt = nnx.eval_shape(lambda: VAE(**told.config, rngs=nnx.Rngs(1)))
    assert rebuilt.config["num_labels"] == 3
    assert nnx.graphdef(rebuilt) == nnx.graphdef(told)
