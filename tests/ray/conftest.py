"""A Ray of two cores, and a model that loads fast."""

from pathlib import Path

import numpy as np
import pytest
from every_family import FAMILIES
from flax import nnx

from artifex.generative_models.inference import InferencePipeline, export_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE
from artifex.ray.cluster import import_ray


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model of 8 x 8 pictures and 4 latents."""
    vae = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(0))
    path = tmp_path_factory.mktemp("models") / "tiny"
    return export_model(vae, path, step=3, training_steps=5, final_loss=1.5)


@pytest.fixture(scope="session")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained model that takes steps."""
    path = tmp_path_factory.mktemp("models") / "drawer"
    return export_model(FAMILIES["autoregressive"](), path, step=3)


@pytest.fixture(scope="session")
def plain(tiny: Path) -> InferencePipeline:
    """The model in this process, in the batches of the jobs on Ray."""
    return load_pipeline(tiny, batch_size=4)


@pytest.fixture(scope="session")
def small(digits: np.ndarray) -> np.ndarray:
    """Parts of real digits, uint8 [70, 8, 8, 1]."""
    return np.ascontiguousarray(digits[:70, 8:16, 8:16])


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process look for a Ray as if none were joined."""
    monkeypatch.setattr(import_ray(), "is_initialized", lambda: False)
