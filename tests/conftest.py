"""Strict JAX, two CPU devices, and the models that tests share."""

import os

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} "
    f"--xla_cpu_use_fusion_emitters={str('ARTIFEX_TESTS_OPTIMIZED' in os.environ).lower()} "
    "--xla_cpu_parallel_codegen_split_count=1 "  # a program in 32 parts is more work, and cores are taken
    f"--xla_force_host_platform_device_count={os.environ.get('ARTIFEX_TESTS_DEVICES', '2')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import atexit
import gc
import random
import shutil
import tempfile
from importlib import resources
from typing import Any

import apart
import browsers
import distributed_ray
import jax
import numpy as np
import pytest
from compiled import FOLDER, share_compilations
from denoisers import denoiser
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from xdist.scheduler import LoadFileScheduling

from artifex.generative_models.inference import Executor, InferencePipeline, load_exported_model
from artifex.generative_models.inference.pipeline import picture_pipeline
from artifex.generative_models.models.vae import VAE

pytest_plugins = ["gate"]

jax.config.update("jax_disable_most_optimizations", "ARTIFEX_TESTS_OPTIMIZED" not in os.environ)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

if FOLDER not in os.environ:  # the first process of a session, whose others share what it makes
    _session = tempfile.mkdtemp(prefix="artifex-tests-")
    atexit.register(shutil.rmtree, _session, ignore_errors=True)
    os.environ[FOLDER] = f"{_session}/compiled"
    os.environ["ARTIFEX_CACHE_DIR"] = f"{_session}/cache"  # never the user's
share_compilations()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(apart.plugin(config))
    config.pluginmanager.register(distributed_ray)
    config.pluginmanager.register(browsers)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leaves what lives already out of garbage collections: what is measured begins with a full one."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--random-files", type=int, metavar="SEED", help="run the files in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts files that take minutes first, so that none is left to one process at the end."""
    seed = config.getoption("random_files")
    if seed is None:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    else:
        files = list(dict.fromkeys(item.path for item in items))
        random.Random(seed).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


TOGETHER = {  # files that one process runs: they start a Ray; what one of them compiled, the others find
    "ray": distributed_ray.FILES,
    "as users do": ("tests/test_docs", "tests/test_examples"),
    "drawer": (
        *(
            "tests/inference/test_pipeline",
            "tests/inference/test_step_stream",
            "tests/inference/batching/test_slots.py",
        ),
        *("tests/serving/test_fields", "tests/serving/test_previews"),
        *("tests/serving/pages/test_controls", "tests/serving/pages/test_studio"),
    ),
}


class _Scheduling(LoadFileScheduling):
    """Gives each process whole files, and those that belong together to one of them."""

    def _split_scope(self, nodeid: str) -> str:
        scopes = (scope for scope, starts in TOGETHER.items() if nodeid.startswith(starts))
        return next(scopes, nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling | None:
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


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


@pytest.fixture(scope="session")
def drawer() -> InferencePipeline:
    """A model that takes steps, in batches of up to 4, shared by tests that only run it."""
    return picture_pipeline(denoiser(), batch_size=4)


@pytest.fixture
def tiny_vae() -> VAE:
    """An untrained model that compiles fast."""
    return VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0))


@pytest.fixture
def compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process, and those that a test starts, find nothing compiled by other tests."""
    monkeypatch.delenv(FOLDER)
    share_compilations()


@pytest.fixture(autouse=True)
def _compilations_are_kept_where_they_were():
    """Undoes what commands that run in this process set."""
    before = {name: value for name, value in jax.config.values.items() if "_cache_" in name}
    yield
    changed = {name: value for name, value in before.items() if jax.config.values[name] != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    if changed:
        compilation_cache.reset_cache()
