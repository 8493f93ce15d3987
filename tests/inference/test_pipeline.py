import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TOLERANCE

import artifex
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.inference import (
    Executor,
    InferencePipeline,
    batch_generate_samples,
    denormalize_images,
    export_model,
    normalize_images,
)


@pytest.fixture(scope="module")
def pipeline():
    return artifex.load("mnist-vae")


def test_pictures_in_and_pictures_out(pipeline, digits):
    reconstructed = np.asarray(pipeline.reconstruct(digits[:50]))
    assert reconstructed.dtype == np.uint8
    assert reconstructed.shape == (50, 28, 28, 1)
    error = np.abs(reconstructed.astype(float) - digits[:50]).mean()
    other = np.abs(np.roll(reconstructed, 1, axis=0).astype(float) - digits[:50]).mean()
    assert error < 8  # grey levels of 255; the picture of the neighbouring row is several times as far
    assert other > 3 * error


def test_reconstruct_is_encode_then_decode(pipeline, digits):
    latents = pipeline.encode(digits[:40])
    assert latents.shape == (40, 32)
    there_and_back = np.asarray(pipeline.decode(latents)).astype(int)
    assert (
        np.abs(there_and_back - np.asarray(pipeline.reconstruct(digits[:40]))).max() <= 1
    )  # rounding to uint8


def test_generate_gives_the_samples_of_the_seed(pipeline):
    samples = np.asarray(pipeline.generate(40, rngs=nnx.Rngs(3)))
    raw = batch_generate_samples(pipeline.model, 40, rngs=nnx.Rngs(3))
    expected = np.rint(np.asarray(raw) * 255)
    assert np.abs(samples - expected).max() <= 1
    assert samples.dtype == np.uint8


def test_interpolate_runs_from_one_picture_to_the_other(pipeline, digits):
    line = np.asarray(pipeline.interpolate(digits[0], digits[1], 9)).astype(int)
    ends = np.asarray(pipeline.reconstruct(digits[:2])).astype(int)
    assert line.shape == (9, 28, 28, 1)
    assert np.abs(line[[0, -1]] - ends).max() <= 1
    steps = np.abs(np.diff(line, axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(line[-1] - line[0]).mean()
    with pytest.raises(InputError, match="num_steps"):
        pipeline.interpolate(digits[0], digits[1], 1)


def test_between_latents_on_the_arc_and_on_the_line(pipeline, digits):
    first, last = np.asarray(pipeline.encode(digits[:2])).astype(np.float64)
    angle = np.arccos(first @ last / np.linalg.norm(first) / np.linalg.norm(last))
    weight = np.linspace(0, 1, 5)[:, None]
    arc = (np.sin((1 - weight) * angle) * first + np.sin(weight * angle) * last) / np.sin(angle)
    line = (1 - weight) * first + weight * last
    for mode, latents in (("spherical", arc), ("linear", line), (None, line)):
        found = pipeline.interpolate(digits[0], digits[1], 5, mode).astype(int)
        assert np.abs(found - pipeline.decode(latents.astype(np.float32))).max() <= 1  # of rounding
    assert np.abs(pipeline.decode(arc.astype(np.float32)).astype(int) - found).max() > 50
    with pytest.raises(InputError, match=r"mode: expected one of linear, spherical, got 'slerp'"):
        pipeline.interpolate(digits[0], digits[1], 5, "slerp")


def latents_of_rank_three(dtype):
    """A model whose latents are pictures [2, 4, 3] by another name, of a dtype."""
    picture, latent = TensorSpec((4, 3, 2), jnp.float32), TensorSpec((2, 4, 3), dtype)

    def encode(model, keys, inputs):
        return {"z": (inputs["x"] * 8).transpose(0, 3, 1, 2).astype(dtype)}

    def decode(model, keys, inputs):
        return {"x": inputs["z"].astype(jnp.float32).transpose(0, 2, 3, 1) / 8}

    ends = {"encode": Endpoint(encode, {"x": picture}), "decode": Endpoint(decode, {"z": latent})}
    return InferencePipeline(Executor(None, ends, batch_sizes=(2, 8)))


@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_between_latents_of_any_rank(mode):
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    pipeline = latents_of_rank_three(jnp.float32)
    assert pipeline.encode(x).shape == (2, 2, 4, 3)
    line = pipeline.interpolate(*x, 3, mode)
    np.testing.assert_allclose(line[[0, 2]], x, rtol=1e-6)
    lengths = np.linalg.norm(x.reshape(2, -1), axis=1)
    cosine = np.sum(x[0] * x[1]) / lengths.prod()
    scale = 0.5 if mode == "linear" else np.sqrt(0.5 / (1 + cosine))  # sin(a/2) / sin(a)
    np.testing.assert_allclose(line[1], scale * (x[0] + x[1]), rtol=1e-5, atol=1e-6)


def test_nothing_is_between_integers():
    x = np.ones((2, 4, 3, 2), np.float32)
    with pytest.raises(InputError, match="the latents are int32; there is nothing between them"):
        latents_of_rank_three(jnp.int32).interpolate(*x, 3)


def test_own_functions_see_a_batch_at_a_time(mnist_vae, digits):
    seen = []

    def halve(images):
        seen.append(len(images))
        return jnp.asarray(images, jnp.float32) / 510.0

    pipeline = InferencePipeline(mnist_vae, halve, lambda x: (x * 510).astype(np.uint16), batch_size=16)
    samples = pipeline.reconstruct(digits[:40])
    assert seen == [16, 16, 8]
    assert samples.dtype == jnp.uint16


def test_without_functions_the_model_speaks_for_itself(mnist_vae, pictures):
    pipeline = InferencePipeline(Executor(mnist_vae, batch_sizes=(8,)), batch_size=8)
    expected = mnist_vae.encode(jnp.asarray(pictures[:8]))["mean"]
    np.testing.assert_allclose(pipeline.encode(pictures[:8]), expected, **TOLERANCE)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_iterators_and_memory_maps_give_what_arrays_give(pipeline, digits, tmp_path, rows):
    np.save(tmp_path / "digits.npy", digits[:rows])
    whole = pipeline.encode(digits[:rows])
    np.testing.assert_array_equal(pipeline.encode(np.load(tmp_path / "digits.npy", mmap_mode="r")), whole)
    np.testing.assert_array_equal(pipeline.encode(digits[i : i + 1] for i in range(rows)), whole)


def test_results_go_where_the_caller_wants_them(pipeline, tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "samples.npy", "w+", np.uint8, (40, 28, 28, 1))
    assert pipeline.generate(40, rngs=nnx.Rngs(0), out=out) is out
    np.testing.assert_array_equal(out, pipeline.generate(40, rngs=nnx.Rngs(0)))


def test_a_model_in_another_range_gets_its_range(tmp_path, tiny_vae):
    export_model(tiny_vae, tmp_path / "m", step=0, training_steps=0, final_loss=0.0, image_range=(-1, 1))
    pipeline = artifex.load(tmp_path / "m")
    levels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    pixels = levels.repeat(32, axis=2).reshape(1, 8, 8, 1)
    scaled = pipeline.encode(pixels.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(pipeline.encode(pixels), scaled, **TOLERANCE)
    assert np.abs(np.asarray(pipeline.encode(pixels / np.float32(255))) - np.asarray(scaled)).max() > 1e-3
    np.testing.assert_array_equal(np.ravel(pipeline.postprocess_fn(np.array([[-1.0, 1.0]]))), [0, 255])


def test_the_specification_s_own_functions(mnist_vae, digits):
    pipeline = InferencePipeline(
        model=mnist_vae, preprocess_fn=normalize_images, postprocess_fn=denormalize_images
    )
    assert pipeline.generate(16, rngs=nnx.Rngs(42)).dtype == jnp.uint8
    assert pipeline.reconstruct(digits[:3]).shape == (3, 28, 28, 1)


def test_load_knows_facts_and_refuses_what_is_not_there(pipeline):
    assert pipeline.metadata["test_elbo"] < 0
    assert pipeline.config["latent_dim"] == 32
    with pytest.raises(ConfigError, match="mnist-vae"):
        artifex.load("no-such-model")


def test_endpoints_a_family_lacks_are_named(digits):
    class Noise(nnx.Module):
        def endpoints(self):
            return {}

    with pytest.raises(InputError, match="no endpoint 'encode'"):
        InferencePipeline(Noise()).encode(jax.numpy.zeros((1, 2, 2, 1)))


def test_looks_at_samples_end_in_what_generate_gives(drawer):
    given = {"label": [0, 1, 2], "num_steps": [2, 5, 3], "sampler": "ddim"}
    looks = list(drawer.iterate(3, rngs=4, every=2, **given))
    assert [look.left for look in looks] == [2, 1, 0]
    np.testing.assert_array_equal([look.steps for look in looks], [[2, 2, 2], [2, 4, 3], [2, 5, 3]])
    samples = drawer.generate(3, rngs=4, **given)
    np.testing.assert_array_equal(looks[-1].outputs["x"], samples)
    assert looks[0].outputs["x"].dtype == np.uint8
    np.testing.assert_array_equal(looks[0].outputs["x"][0], samples[0])  # which was done by then
    assert (looks[0].outputs["x"][1] != samples[1]).any()


def test_more_samples_than_a_batch_are_not_looked_at(drawer, pipeline):
    with pytest.raises(InputError, match="5 rows to look at, and batches have 4"):
        next(drawer.iterate(5))
    with pytest.raises(InputError, match="takes no steps"):
        next(pipeline.iterate(1))


def test_between_two_pictures_of_a_denoiser(drawer):
    ends = drawer.generate(2, rngs=0, label=1)
    line = drawer.interpolate(*ends, 5, label=1)
    assert line.shape == (5, 4, 4, 1)
    assert line.dtype == np.uint8
    np.testing.assert_array_equal(drawer.interpolate(*ends, 5, "spherical", label=1), line)
    with pytest.raises(InputError, match="interpolate: mode: expected one of spherical, got 'linear'"):
        drawer.interpolate(*ends, 5, "linear")
    given = {"x": ends[:1], "y": ends[1:], "label": 1}
    for i in (0, 4):
        alone = drawer.call("interpolate", weight=i / 4, **given)["x"]
        np.testing.assert_allclose(line[i], drawer.postprocess_fn(alone)[0], atol=1)


def test_latents_have_no_label(pipeline, digits):
    with pytest.raises(InputError, match="interpolate: label is not taken"):
        pipeline.interpolate(digits[0], digits[1], 3, label=1)
