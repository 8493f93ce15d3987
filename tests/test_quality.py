"""What `benchmarks/quality.py` compares with."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from artifex.generative_models.inference.measure.distances import Moments, frechet_distance

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality")


def test_moments_of_real_pictures_are_near(quality: ModuleType) -> None:
    """Three hundred pictures of training are nearer to test pictures than halved features are."""
    real = quality.real_moments()
    halved = Moments(real["test"].mean / 2, real["test"].covariance / 4)
    assert frechet_distance(real["test"], real["test"]) == pytest.approx(0, abs=1e-6)
    assert 0 < 4 * frechet_distance(real["train"], real["test"]) < frechet_distance(halved, real["test"])
