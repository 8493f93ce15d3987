"""What the user's specification types, typed as a user would."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import decode

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.checkpointing import (
    load_checkpoint,
    save_checkpoint,
    setup_checkpoint_manager,
)
from artifex.generative_models.inference import (
    AsyncInferenceServer,
    InferencePipeline,
    StreamingGenerator,
    batch_encode_images,
    batch_generate_samples,
    encode_images_jit,
    export_model,
    generate_samples_jit,
    inference_with_jit,
    load_exported_model,
    load_model_for_inference,
    memory_efficient_inference,
    parallel_batch_inference,
    stream_samples,
)
from artifex.generative_models.models.vae import VAE

CONFIG = {
    "input_shape": (28, 28, 1),
    "latent_dim": 64,
    "encoder_features": [32, 64, 128],
    "decoder_features": [128, 64, 32],
}


@pytest.fixture(scope="module")
def model():
    return VAE(**CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture
def workplace(tmp_path, monkeypatch, model):
    """A directory with the checkpoint and the export that the specification loads."""
    monkeypatch.chdir(tmp_path)
    manager, path = setup_checkpoint_manager("./checkpoints/vae")
    assert path == str(tmp_path / "checkpoints/vae")
    save_checkpoint(manager, model, 7)
    export_model(model, "./exports/vae_mnist_final", step=7, training_steps=7, final_loss=99.5)


def test_loading_from_a_checkpoint(workplace, model):
    loaded = load_model_for_inference("./checkpoints/vae", CONFIG)
    z = jnp.ones((2, 64))
    np.testing.assert_array_equal(decode(loaded, z), decode(model, z))


def test_loading_by_hand(workplace, model):
    manager, _ = setup_checkpoint_manager("./checkpoints/vae")
    template = VAE(
        input_shape=CONFIG["input_shape"],
        latent_dim=CONFIG["latent_dim"],
        encoder_features=CONFIG.get("encoder_features", [32, 64, 128]),
        decoder_features=CONFIG.get("decoder_features", [128, 64, 32]),
        rngs=nnx.Rngs(1),
    )
    loaded, step = load_checkpoint(manager, template)
    assert step == 7
    z = jnp.ones((2, 64))
    np.testing.assert_array_equal(decode(loaded, z), decode(model, z))


def test_loading_an_export(workplace):
    loaded, config, metadata = load_exported_model("./exports/vae_mnist_final")
    assert tuple(config["input_shape"]) == CONFIG["input_shape"]
    assert (metadata["model_type"], metadata["training_steps"], metadata["final_loss"]) == ("vae", 7, 99.5)
    assert loaded.latent_dim == 64


def test_a_model_goes_through_jax_jit(model):
    @jax.jit
    def decoded(model, z):
        return model.decode(z)

    z = jax.random.normal(nnx.Rngs(42).sample(), (3, model.latent_dim))
    # jit fuses what single operations round
    np.testing.assert_allclose(decoded(model, z), generate_samples_jit(model, z), rtol=1e-5, atol=1e-6)


def test_every_function_takes_what_the_specification_gives(model, pictures):
    images = jnp.asarray(pictures[:20])
    assert encode_images_jit(model, images).shape == (20, 64)
    assert inference_with_jit(model, num_samples=16).shape == (16, 28, 28, 1)
    assert batch_encode_images(model, images, batch_size=32).shape == (20, 64)
    assert batch_generate_samples(model, 10, batch_size=32, rngs=nnx.Rngs(0)).shape == (10, 28, 28, 1)
    assert parallel_batch_inference(model, images, num_devices=None).shape == (20, 64)
    assert memory_efficient_inference(model, images, batch_size=16).shape == (20, 64)
    DeviceManager().cleanup()


def test_the_pipeline_takes_functions_written_with_jax(model, digits):
    def normalize_images(images):
        return (images / 255.0) * 2.0 - 1.0

    def denormalize_images(images):
        return ((images + 1.0) / 2.0 * 255.0).astype(jnp.uint8)

    pipeline = InferencePipeline(
        model=model, preprocess_fn=normalize_images, postprocess_fn=denormalize_images
    )
    images = jnp.asarray(digits[:40], jnp.float32)
    latents = pipeline.encode(images)
    expected = model.encode(normalize_images(images))["mean"]
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)  # batches sum in other orders
    assert pipeline.decode(latents).dtype == jnp.uint8
    assert pipeline.reconstruct(images).shape == (40, 28, 28, 1)
    assert pipeline.generate(16, rngs=nnx.Rngs(42)).shape == (16, 28, 28, 1)


def test_streaming(model):
    seen = []
    for i, sample in enumerate(StreamingGenerator(model, seed=42)):
        if i >= 5:
            break
        seen.append(sample.shape)
    assert seen == [(28, 28, 1)] * 5
    assert sum(1 for _ in stream_samples(model, num_samples=7)) == 7


def test_concurrent_requests(model, pictures):
    async def process_concurrent_requests():
        server = AsyncInferenceServer(model, max_workers=4)
        tasks = [server.generate_async(16, nnx.Rngs(i)) for i in range(10)]
        results = await asyncio.gather(*tasks)
        latents = await server.encode_async(jnp.asarray(pictures[:3]))
        decoded = await server.decode_async(latents)
        server.shutdown()
        return results, latents, decoded

    results, latents, decoded = asyncio.run(process_concurrent_requests())
    assert [result.shape for result in results] == [(16, 28, 28, 1)] * 10
    np.testing.assert_allclose(latents, encode_images_jit(model, pictures[:3]), rtol=1e-4, atol=1e-5)
    assert decoded.shape == (3, 28, 28, 1)
