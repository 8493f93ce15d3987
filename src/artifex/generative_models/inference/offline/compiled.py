"""Single calls of a model's methods, compiled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import jax
import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.shared import executor_for

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float


def generate_samples_jit(model: Model | Executor, z: ArrayLike) -> Float[Array, "rows h w c"]:
    """Decodes latents [rows, latent], compiled; any number of rows.

    Raises:
        InputError: A wrong shape, no rows, or values that are not finite.
        InputTypeError: A wrong dtype.
    """
    return executor_for(model)("decode", {"z": z})["x"]


def encode_images_jit(model: Model | Executor, images: ArrayLike) -> Float[Array, "rows latent"]:
    """Encodes pictures [rows, H, W, C] to the means of their posteriors, compiled; any number of rows.

    Raises:
        InputError: A wrong shape, no rows, or values that are not finite.
        InputTypeError: A wrong dtype.
    """
    return executor_for(model)("encode", {"x": images})["mean"]


def inference_with_jit(model: Model | Executor, num_samples: int = 16) -> Float[Array, "rows h w c"]:
    """Draws samples eleven times and prints what the first call cost and what the others do.

    Args:
        model: A model with a `generate` endpoint.
        num_samples: Samples a call.

    Returns:
        The samples of the last call.

    Raises:
        InputError: No samples.
    """
    from flax import nnx  # not loaded by a warm start of the command line

    executor = executor_for(model)
    rngs = nnx.Rngs(42)

    def draw() -> tuple[Array, float]:
        start = time.perf_counter()
        samples = executor("generate", key=sample_key(rngs), num_rows=num_samples)["x"]
        return jax.block_until_ready(samples), time.perf_counter() - start

    samples, seconds = draw()
    print(f"first call {seconds:.3f} s, compilation included: samples {samples.shape}")
    runs = [draw() for _ in range(10)]
    milliseconds = 1e3 * float(np.median([seconds for _, seconds in runs]))
    print(f"then {milliseconds:.2f} ms a call, {1e3 * num_samples / milliseconds:,.0f} samples/s")
    return runs[-1][0]
