"""What several test files share."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import nnx

from artifex.generative_models.models.vae import VAE

TIMEOUT = 60  # seconds after which a test that waits has failed

# One float32 rounding of a sum of a few thousand products, as batch sizes sum in different orders.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

# Called as it is, a model compiles each of its operations alone.
encode, decode = jax.jit(VAE.encode), jax.jit(VAE.decode)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """What is freed within goes with the last reference to it; cycles stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def optimized_less() -> Iterator[None]:
    """What XLA compiles within is slower to run and quicker to compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def without_drawing_keys() -> Iterator[None]:
    """What is built within for its shapes alone draws no keys, which takes most of the time."""
    with mock.patch.object(nnx.RngStream, "__call__", return_value=jax.random.key(0)):
        yield


def randomised(build: Callable[[], Any]) -> Any:
    """The model with random weights, biases too, without compiling its initialisers."""
    with without_drawing_keys():
        graphdef, state = nnx.split(nnx.eval_shape(build))
    random = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: (random.normal(size=leaf.shape) / 3).astype(leaf.dtype), state)
    return nnx.merge(graphdef, jax.device_put(values))  # `jnp.asarray` compiles a program for each shape


def rows(n, first=1):
    """Rows that tell their numbers: 3 numbers a row, the first of them `first`, `first + 1`, ..."""
    return np.arange(first, first + n, dtype=np.float32)[:, None] * np.ones(3, np.float32)


def submit(batcher, n, first=1, endpoint="double", **arguments):
    """Submits such rows."""
    return batcher.submit(endpoint, {"x": rows(n, first)}, **arguments)


def batcher_threads():
    """The threads of all batchers that are open, those of servers that other tests keep included."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("artifex-batcher")}
