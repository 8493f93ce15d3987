"""Calls of generators by what callers say, and convolutions to compare theirs with."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.offline.calling import call_endpoint

KEY = jax.random.key(0)


def drawn(executor: Executor, num_rows: int, **said: Any) -> np.ndarray:
    """Pictures of so many rows."""
    return call_endpoint(executor, "generate", said, key=KEY, num_rows=num_rows)["x"]


def made(executor: Executor, endpoint: str, given: Mapping[str, Any], **said: Any) -> np.ndarray:
    """Pictures of inputs."""
    return call_endpoint(executor, endpoint, {**given, **said}, key=KEY)["x"]


def keys_of(num_rows: int) -> jax.Array:
    """The keys of the rows that `drawn` draws."""
    return jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(num_rows))


def float64(array: Any) -> np.ndarray:
    """In twice the precision."""
    return np.asarray(array).astype(np.float64)


def transposed_conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A transposed convolution of stride 2, of pictures [batch, h, w, in] and a kernel [4, 4, in, out].

    Pixel p adds to the pixels 2p - 2 to 2p + 1; what falls outside is cut off.
    """
    batch, height, width, _ = x.shape
    padded = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[-1]))
    for i, j, u, v in np.ndindex(height, width, 4, 4):
        padded[:, 2 * i + u, 2 * j + v] += x[:, i, j] @ kernel[u, v]
    return padded[:, 2:, 2:]


def transposed_kernel(kernel: Any) -> np.ndarray:
    """The taps [4, 4, in, out] of those before depth-to-space, [2, 2, in, 4 out]."""
    taps = float64(kernel).reshape(2, 2, kernel.shape[2], 2, 2, -1)[::-1, ::-1]
    return taps.transpose(0, 3, 1, 4, 2, 5).reshape(4, 4, kernel.shape[2], -1)
