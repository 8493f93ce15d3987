"""The measure of `benchmarks/quality.py`, against closed forms."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality")


def test_covariances_that_commute(quality: ModuleType) -> None:
    """In the axes of both, the roots of the variances differ: |m1 - m2|² + sum (s1 - s2)²."""
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(6, 6)))[0]
    stds, means = random.uniform(0, 2, (2, 6)), random.normal(size=(2, 6))
    some, others = (
        quality.Moments(mean, axes @ np.diag(std**2) @ axes.T) for mean, std in zip(means, stds, strict=True)
    )
    wanted = ((means[0] - means[1]) ** 2).sum() + ((stds[0] - stds[1]) ** 2).sum()
    assert quality.frechet_distance(some, others) == pytest.approx(wanted, rel=1e-9)


def test_covariances_that_do_not_commute(quality: ModuleType) -> None:
    """Of two by two numbers, tr (C1 C2)^½ is the root of tr C1 C2 + 2 det (C1 C2)^½."""
    random = np.random.default_rng(1)
    first, second = (half @ half.T for half in random.normal(size=(2, 2, 2)))
    root = np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first @ second)))
    wanted = np.trace(first) + np.trace(second) - 2 * root
    zero = np.zeros(2)
    found = quality.frechet_distance(quality.Moments(zero, first), quality.Moments(zero, second))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_moments_of_real_pictures_are_near(quality: ModuleType) -> None:
    """Three hundred pictures of training are nearer to test pictures than halved features are."""
    real = quality.real_moments()
    halved = quality.Moments(real["test"].mean / 2, real["test"].covariance / 4)
    assert quality.frechet_distance(real["test"], real["test"]) == pytest.approx(0, abs=1e-6)
    assert (
        0
        < 4 * quality.frechet_distance(real["train"], real["test"])
        < quality.frechet_distance(halved, real["test"])
    )
