import asyncio
import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from served import error_of, live
from shared import TIMEOUT, TOLERANCE, randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.errors import ConfigError, InputError, InputTypeError
from artifex.generative_models.inference import (
    AsyncInferenceServer,
    Batcher,
    Executor,
    InferencePipeline,
    batch_encode_images,
    encode_images_jit,
    generate_samples_jit,
)
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vqvae import VQVAE, nearest_codes
from artifex.serving import create_app

ARGUMENTS = {
    "input_shape": [9, 6, 2],
    "num_codes": 7,
    "code_features": 3,
    "level_features": [4, 5],
    "num_blocks": 1,
    "prior_features": 8,
    "prior_layers": 1,
    "prior_heads": 2,
    "num_labels": 3,
}
GRID = (3, 2)

nearest = jax.jit(nearest_codes)
decode = jax.jit(VQVAE.decode)
prior = jax.jit(lambda model, tokens, label: model.prior(tokens, label))


@pytest.fixture(scope="module")
def model() -> VQVAE:
    model = randomised(lambda: VQVAE(**ARGUMENTS, rngs=nnx.Rngs(0)))
    sharp = jax.tree.map(lambda leaf: np.float32(3) * np.asarray(leaf), nnx.state(model.prior))
    nnx.update(model.prior, jax.device_put(sharp))  # so that labels matter
    return model


@pytest.fixture(scope="module")
def executor(model: VQVAE) -> Executor:
    return Executor(model, batch_sizes=(4,))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).random((4, 9, 6, 2), np.float32)


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 7, (4, *GRID), np.int32)


def numpy_conv(x: np.ndarray, conv: nnx.Module, stride: int = 1) -> np.ndarray:
    """A convolution of a picture that zeros surround, the odd one below and on the right."""
    kernel, bias = (np.asarray(part[...], np.float64) for part in (conv.kernel, conv.bias))
    side = len(kernel)
    sizes = [-(-length // stride) for length in x.shape[1:3]]
    lacking = [
        max((size - 1) * stride + side - length, 0) for size, length in zip(sizes, x.shape[1:3], strict=True)
    ]
    padded = np.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in lacking), (0, 0)))
    out = np.zeros((len(x), *sizes, len(bias)))
    for i, j in np.ndindex(*sizes):
        window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
        out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return out


def numpy_blocks(x: np.ndarray, blocks: nnx.List) -> np.ndarray:
    for block in blocks:
        x = x + numpy_conv(np.maximum(numpy_conv(np.maximum(x, 0), block.conv), 0), block.mix)
    return np.maximum(x, 0)


def numpy_vectors(model: VQVAE, x: np.ndarray) -> np.ndarray:
    for conv in model.encoder.convs:
        x = np.maximum(numpy_conv(x, conv, 2), 0)
    return numpy_conv(numpy_blocks(x, model.encoder.blocks), model.encoder.head)


def numpy_decode(model: VQVAE, z: np.ndarray) -> np.ndarray:
    """Vectors of codes to pictures, by transposed convolutions of side 4 and stride 2."""
    x = numpy_blocks(numpy_conv(z, model.decoder.stem), model.decoder.blocks)
    for i, up in enumerate(model.decoder.ups):
        x = np.maximum(x, 0) if i else x
        taps = np.asarray(up.conv.kernel[...], np.float64).reshape(2, 2, x.shape[-1], 2, 2, -1)
        height, width = x.shape[1:3]
        out = np.zeros((len(x), 2 * height + 2, 2 * width + 2, taps.shape[-1]))
        for u, v, a, b in np.ndindex(2, 2, 2, 2):
            row, column = 2 - 2 * u + a, 2 - 2 * v + b
            out[:, row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ taps[u, v, :, a, b]
        bias = np.asarray(up.conv.bias[...], np.float64).reshape(2, 2, -1)
        x = out[:, 2:, 2:] + np.tile(bias, (height, width, 1))
        height, width = ((5, 3), (9, 6))[i]
        x = x[:, :height, :width]
    return 1 / (1 + np.exp(-x))


def numpy_nearest(z: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return ((z[..., None, :].astype(np.float64) - codebook.astype(np.float64)) ** 2).sum(-1).argmin(-1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_quantiser_picks_the_nearest_code(scale: float) -> None:
    rng = np.random.default_rng(0)
    z, codebook = (scale * rng.normal(size=shape).astype(np.float32) for shape in ((5, 6, 4, 8), (50, 8)))
    found = nearest(z, codebook)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, numpy_nearest(z, codebook))
    np.testing.assert_array_equal(nearest(codebook, codebook), np.arange(50))


def test_of_equal_codes_it_is_the_first() -> None:
    codebook = np.float32([[3, 0], [1, 0], [-1, 0], [1, 0]])
    np.testing.assert_array_equal(nearest(np.float32([[1, 0], [0, 5], [2.5, 0]]), codebook), [1, 1, 0])


def test_it_compares_in_float32_whatever_it_is_given() -> None:
    """Squares of bfloat16 numbers would have lost what tells these two apart."""
    codebook = jnp.asarray([[16.0, 1.0], [16.0, 0.0]], jnp.bfloat16)
    found = nearest(jnp.asarray([[16.0, 0.4375], [16.0, 0.5625]], jnp.bfloat16), codebook)
    np.testing.assert_array_equal(found, [1, 0])


def test_encode(model: VQVAE, executor: Executor, x: np.ndarray) -> None:
    z = numpy_vectors(model, x)
    wanted = numpy_nearest(z, np.asarray(model.codebook[...]))
    assert len(np.unique(wanted)) > 2
    outputs = executor("encode", {"x": x})
    assert list(outputs) == ["codes"]
    assert outputs["codes"].dtype == jnp.int32
    np.testing.assert_array_equal(outputs["codes"], wanted)


def test_decode(model: VQVAE, executor: Executor, codes: np.ndarray) -> None:
    wanted = numpy_decode(model, np.asarray(model.codebook[...], np.float64)[codes])
    np.testing.assert_allclose(executor("decode", {"codes": codes})["x"], wanted, **TOLERANCE)


def test_reconstruct_decodes_what_encode_gives(executor: Executor, x: np.ndarray) -> None:
    wanted = executor("decode", {"codes": executor("encode", {"x": x})["codes"]})["x"]
    np.testing.assert_array_equal(executor("reconstruct", {"x": x})["x"], wanted)


def test_a_code_that_is_not_in_the_codebook_is_no_other(model: VQVAE, codes: np.ndarray) -> None:
    for bad in (-1, 7, 2**31 - 1):
        codes[1, 2, 1] = bad
        pictures = np.asarray(decode(model, codes))
        assert np.isnan(pictures[1]).any()
        assert np.isfinite(pictures[[0, 2, 3]]).all()


@pytest.mark.parametrize("bad", [-1, 7])
def test_a_code_that_is_not_in_the_codebook_is_refused(
    executor: Executor, codes: np.ndarray, bad: int
) -> None:
    worse = codes.copy()
    worse[2, 1, 0] = bad
    with Batcher(executor) as batcher:
        for refused in (
            lambda: executor("decode", {"codes": worse}),
            lambda: executor("decode", {"codes": jnp.asarray(worse)}),
            lambda: list(executor.map("decode", [{"codes": codes}, {"codes": worse}])),
            lambda: batcher.submit("decode", {"codes": worse}).result(TIMEOUT),
            lambda: InferencePipeline(executor).decode(worse),
        ):
            with pytest.raises(InputError, match="decode: codes: expected integers from 0 to 6, got"):
                refused()
    with pytest.raises(InputTypeError, match=r"codes: expected int32 .*, got float32"):
        executor("decode", {"codes": codes.astype(np.float32)})


def drawn(model: VQVAE, labels: list[int]) -> np.ndarray:
    """The likeliest codes one after the other, by the whole of what was there before them each time."""
    tokens = np.zeros((len(labels), 6), np.int32)
    for i in range(6):
        tokens[:, i] = np.asarray(prior(model, tokens, np.int32(labels)))[:, i].argmax(-1)
    return tokens.reshape(-1, *GRID)


def test_generate_decodes_the_codes_of_the_prior(model: VQVAE, executor: Executor) -> None:
    pipeline = InferencePipeline(executor)
    labels = [0, 1, 2, 1]
    wanted = executor("decode", {"codes": drawn(model, labels)})["x"]
    found = pipeline.call("generate", num_rows=4, label=labels, greedy=True)["x"]
    np.testing.assert_allclose(found, wanted, **TOLERANCE)
    assert len(np.unique(found, axis=0)) > 1


def test_previews_show_the_codes_so_far(model: VQVAE, executor: Executor) -> None:
    labels = [0, 1, 2, 1]
    looks = list(InferencePipeline(executor).iterate(4, every=1, rngs=0, label=labels, greedy=True))
    codes = drawn(model, labels)
    vectors = np.asarray(model.codebook[...], np.float64)[codes].reshape(4, 6, 3)
    assert [look.steps.tolist() for look in looks] == [[n] * 4 for n in range(1, 7)]
    for look in looks:
        z = np.where(np.arange(6)[:, None] < look.steps[0], vectors, 0).reshape(4, *GRID, 3)
        np.testing.assert_allclose(look.outputs["x"], numpy_decode(model, z), **TOLERANCE)


def test_rows_are_independent(executor: Executor, x: np.ndarray) -> None:
    pipeline = InferencePipeline(executor)
    keys = jax.random.split(jax.random.key(0), 4)
    how = {"label": [2, 0, 1, 2], "temperature": [1.0, 0.5, 2.0, 0.0], "top_k": 4}
    made = executor.endpoints["generate"].says
    rows = made.rows(
        {name: np.asarray(value) for name, value in {**defaults(executor), **how}.items()}, 4, {}
    )
    together = executor("generate", rows, keys=keys)["x"]
    for i in range(4):
        row = {name: value[i : i + 1] for name, value in rows.items()}
        alone = executor("generate", row, keys=keys[i : i + 1])["x"]
        np.testing.assert_allclose(alone[0], together[i], **TOLERANCE)
        np.testing.assert_array_equal(pipeline.encode(x[i : i + 1])[0], pipeline.encode(x)[i])


def defaults(executor: Executor) -> dict[str, object]:
    fields = executor.endpoints["generate"].says.fields
    return {name: field.default for name, field in fields.items() if field.default is not None}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"label": 3}, "label: expected from 0 to 2, got 3"),
        ({"temperature": -1.0}, "temperature: expected from 0, got -1"),
        ({"top_p": 0.0}, "top_p: expected above 0, at most 1, got 0"),
    ],
)
def test_numbers_that_no_row_may_have(executor: Executor, said: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InferencePipeline(executor).call("generate", num_rows=1, **said)


def test_pipelines_and_functions_take_codes_for_latents(executor: Executor, x: np.ndarray) -> None:
    pipeline = InferencePipeline(executor, batch_size=4)
    many = np.concatenate([x, x[::-1], x[:1]])
    codes = np.asarray(executor("encode", {"x": many})["codes"])
    out = np.zeros_like(codes)
    assert pipeline.encode(many, out=out) is out
    np.testing.assert_array_equal(out, codes)
    for found in (batch_encode_images(executor, many), encode_images_jit(executor, many)):
        np.testing.assert_array_equal(found, codes)
    pictures = np.asarray(pipeline.reconstruct(many))
    np.testing.assert_array_equal(pipeline.decode(codes), pictures)
    np.testing.assert_allclose(generate_samples_jit(executor, codes), pictures, **TOLERANCE)
    with pytest.raises(InputError, match="interpolate: the latents are int32; there is nothing between them"):
        pipeline.interpolate(x[0], x[1], 3)

    async def asked() -> tuple[np.ndarray, np.ndarray]:
        async with AsyncInferenceServer(executor) as server:
            found = await server.encode_async(many)
            return found, await server.decode_async(found)

    found = asyncio.run(asked())
    np.testing.assert_array_equal(found[0], codes)
    np.testing.assert_allclose(found[1], pictures, **TOLERANCE)


def test_a_server_takes_codes_and_refuses_others(model: VQVAE, codes: np.ndarray) -> None:
    executor = Executor(model, {"decode": model.endpoints()["decode"]}, batch_sizes=(4,))
    with live(create_app({"m": executor})) as server:

        def ask(codes: np.ndarray) -> object:
            tensor = {"name": "codes", "datatype": "INT32", "shape": codes.shape, "data": codes.tolist()}
            return server.client.post("/v2/models/m.decode/infer", json={"inputs": [tensor]})

        data = ask(codes).json()["outputs"][0]["data"]
        wanted = np.asarray(executor("decode", {"codes": codes})["x"])
        np.testing.assert_allclose(np.reshape(data, wanted.shape), wanted, **TOLERANCE)
        codes[0, 0, 0] = 7
        response = ask(codes)
        assert response.status_code == 400
        assert "codes: expected integers from 0 to 6" in error_of(response)
        document = server.client.get("/openapi.json").json()
        body = document["paths"]["/v2/models/m.decode/generate"]["post"]["requestBody"]["content"]
        grids, _ = body["application/json"]["schema"]["properties"]["codes"]["anyOf"]
        element = grids["items"]["items"]["items"]
        assert element == {"type": "integer", "minimum": 0, "maximum": 6}


def test_its_config_makes_it_anew(model: VQVAE) -> None:
    assert model.config == ARGUMENTS
    again = abstract_model("vqvae", json.loads(json.dumps(model.config)))
    shapes = [jax.tree.map(jnp.shape, nnx.state(each)) for each in (again, model)]
    assert shapes[0] == shapes[1]


def test_without_classes_there_is_no_label() -> None:
    smaller = {"input_shape": [6, 4, 1], "level_features": [4], "num_blocks": 0, "num_labels": 0}
    model = randomised(lambda: VQVAE(**{**ARGUMENTS, **smaller}, rngs=nnx.Rngs(0)))
    executor = Executor(model, batch_sizes=(1,))
    assert "label" not in executor.endpoints["generate"].fields
    found = InferencePipeline(executor).call("generate", num_rows=1, greedy=True)["x"]
    np.testing.assert_allclose(found, executor("decode", {"codes": drawn(model, [0])})["x"], **TOLERANCE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shape": [9, 6]}, "input_shape: expected 3 items, got 2"),
        ({"input_shape": [9, 0, 1]}, r"input_shape\[1\]: expected an integer from 1"),
        ({"num_codes": 1}, "num_codes: expected an integer from 2"),
        ({"code_features": 0}, "code_features: expected an integer from 1"),
        ({"level_features": []}, "level_features: expected a list"),
        ({"level_features": [4, 2.5]}, r"level_features\[1\]: expected an integer"),
        ({"level_features": [1] * 15}, "level_features: expected 1 to 14 integers, got 15"),
        ({"num_blocks": -1}, "num_blocks: expected an integer from 0"),
        ({"prior_features": "8"}, "prior_features: expected an integer"),
        ({"prior_layers": 0}, "prior_layers: expected an integer from 1"),
        ({"prior_heads": 3}, "prior_heads: expected a divisor of prior_features, which is 8, got 3"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
    ],
)
def test_a_config_that_makes_none(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("vqvae", {**ARGUMENTS, **changed})


@pytest.fixture(scope="module")
def bundled() -> InferencePipeline:
    return load_pipeline("mnist-vqvae", batch_size=50)


def test_the_bundled_one_keeps_digits(bundled: InferencePipeline, pictures: np.ndarray) -> None:
    """What it makes of codes it knows again, and better each time: most codes are there to stay."""
    shown, pictures = [], pictures[:100]
    codes = [np.asarray(bundled.encode(pictures))]
    assert len(np.unique(codes[0])) > 0.9 * bundled.config["num_codes"]
    for _ in range(3):
        shown.append(np.asarray(bundled.decode(codes[-1]), np.float32) / 255)
        codes.append(np.asarray(bundled.encode(shown[-1])))
    psnr = -10 * np.log10(np.mean((shown[0] - pictures) ** 2, (1, 2, 3)))
    assert psnr.mean() > 24
    assert abs(psnr.mean() - bundled.metadata["test_psnr"]) < 1  # of all pictures of the test
    kept = [float((after == before).mean()) for before, after in pairwise(codes)]
    assert kept == sorted(kept)
    assert kept[0] > 0.7
    assert kept[-1] > 0.9


def test_the_bundled_one_draws_the_digit_that_it_is_told(bundled: InferencePipeline) -> None:
    labels = np.arange(50) % 10
    x = bundled.generate(50, rngs=0, label=labels)
    assert len(np.unique(x, axis=0)) == 50
    found = load_pipeline("mnist-classifier", batch_size=50).call("classify", x=x)["label"]
    assert (found == labels).mean() > 0.8
