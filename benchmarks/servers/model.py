"""The bundled model as every contender runs it: jit per padded batch size, all compiled before it serves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from artifex.generative_models.inference import load_exported_model

MAX_BATCH_SIZE = 64
SIDE = 28

Outputs = dict[str, np.ndarray]


class Model:
    """`encode` and `generate` on NumPy arrays of up to `MAX_BATCH_SIZE` rows, from any thread.

    A batch is padded to a power of two, so that no call compiles once the model is made. The weights are
    constants of the compiled functions.

    Args:
        max_batch_size: The largest batch that will come, a power of two.
    """

    def __init__(self, max_batch_size: int = MAX_BATCH_SIZE):
        vae, _, _ = load_exported_model("mnist-vae")

        def encode(x: jax.Array) -> Mapping[str, jax.Array]:
            return vae.encode(x)

        def generate(temperature: jax.Array, seed: jax.Array) -> Mapping[str, jax.Array]:
            noise = jax.random.normal(jax.random.key(seed), (len(temperature), vae.latent_dim))
            return {"x": vae.decode(temperature[:, None] * noise)}

        self._encode = jax.jit(encode)
        self._generate = jax.jit(generate)
        self._seeds = itertools.count()
        for size in (2**power for power in range(max_batch_size.bit_length())):
            self.encode(np.zeros((size, SIDE, SIDE, 1), np.float32))
            self.generate(np.ones(size, np.float32))

    def encode(self, x: np.ndarray) -> Outputs:
        """Pictures, float32 [n, 28, 28, 1], to `mean` and `log_var`, each [n, 32]."""
        return _on_host(self._encode(_padded(x)), len(x))

    def generate(self, temperature: np.ndarray) -> Outputs:
        """Temperatures, float32 [n], to pictures `x`, [n, 28, 28, 1]; every call draws anew."""
        seed = np.uint32(next(self._seeds))
        return _on_host(self._generate(_padded(temperature), seed), len(temperature))

    def endpoints(self) -> dict[str, tuple[str, Callable[[np.ndarray], Outputs]]]:
        """Each endpoint's input name and function."""
        return {"encode": ("x", self.encode), "generate": ("temperature", self.generate)}


def _padded(rows: np.ndarray) -> np.ndarray:
    missing = (1 << (len(rows) - 1).bit_length()) - len(rows)
    if not missing:
        return rows
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _on_host(outputs: Mapping[str, jax.Array], rows: int) -> Outputs:
    return {name: np.asarray(array)[:rows] for name, array in outputs.items()}
