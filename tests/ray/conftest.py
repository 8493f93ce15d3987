"""A Ray of two cores, and a model that loads fast."""

import contextlib
import importlib
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.inference import InferencePipeline, export_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE
from artifex.ray.cluster import import_ray, joined


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model of 8 x 8 pictures and 4 latents."""
    vae = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0))
    path = tmp_path_factory.mktemp("models") / "tiny"
    return export_model(vae, path, step=3, training_steps=5, final_loss=1.5)


@pytest.fixture(scope="session")
def plain(tiny: Path) -> InferencePipeline:
    """The model in this process, in the batches of the jobs on Ray."""
    return load_pipeline(tiny, batch_size=4)


@pytest.fixture(scope="session")
def small(digits: np.ndarray) -> np.ndarray:
    """Parts of real digits, uint8 [70, 8, 8, 1]."""
    return np.ascontiguousarray(digits[:70, 8:16, 8:16])


@pytest.fixture(scope="module")
def ray() -> ModuleType:
    """A Ray on this machine; what it starts knows the cache of the tests, and steps back for nobody."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - it is Ray's
    module = importlib.import_module("ray")
    if not module.is_initialized():
        assert _joined.enter_context(joined("local"))
    return module


_joined = contextlib.ExitStack()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Ends the Ray once no test in this folder follows, rather than leave it to idle beside the others."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _joined.close()


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process look for a Ray as if none were joined."""
    monkeypatch.setattr(import_ray(), "is_initialized", lambda: False)
