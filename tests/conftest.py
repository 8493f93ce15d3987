"""Strict JAX, eight CPU devices, and the models that tests share."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator
from importlib import resources

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.models.vae import VAE

pytest_plugins = ["gate"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that take minutes first, so that none is left to one process at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps tests, and the processes that they start, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Real MNIST test digits, uint8 [300, 28, 28, 1]."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        return archive["images"]


@pytest.fixture(scope="session")
def pictures(digits: np.ndarray) -> np.ndarray:
    """The digits in [0, 1], float32."""
    return digits.astype(np.float32) / 255


@pytest.fixture(scope="session")
def mnist_vae() -> VAE:
    """The bundled trained model."""
    return load_exported_model("mnist-vae")[0]


@pytest.fixture(scope="session")
def executor(mnist_vae: VAE) -> Executor:
    """Shared by tests that only run it."""
    return Executor(mnist_vae, batch_sizes=(1, 2, 4, 8))


@pytest.fixture
def tiny_vae() -> VAE:
    """An untrained model that compiles fast."""
    return VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0))


@pytest.fixture(autouse=True)
def _no_compilation_cache_stays_on():
    """Undoes what commands that run in this process set."""
    before = {name: value for name, value in jax.config.values.items() if "_cache_" in name}
    yield
    changed = {name: value for name, value in before.items() if jax.config.values[name] != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    if changed:
        compilation_cache.reset_cache()
