"""Distances between sets of features: against other libraries, closed forms, and in blocks of any size."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.measure import distances, neighbours
from artifex.generative_models.inference.measure.distances import (
    Moments,
    MomentsSoFar,
    frechet_distance,
    kernel_distance,
    mean_distance,
    moments,
    weighted_moments,
)
from artifex.generative_models.inference.measure.neighbours import manifolds, nearest_distances

TIGHT = {"rel": 1e-9}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[2] / "golden" / "measures.npz") as archive:
        return dict(archive)


@pytest.fixture(params=[1 << 22, 200], ids=["at once", "in blocks"])
def blocks(request, monkeypatch):
    for module in (distances, neighbours):
        monkeypatch.setattr(module, "_BLOCK_NUMBERS", request.param)


def test_others_say_the_same(golden, blocks):
    real, drawn = golden["real"], golden["drawn"]
    assert frechet_distance(moments(real), moments(drawn)) == pytest.approx(
        float(golden["frechet"]), rel=1e-6
    )
    assert kernel_distance(real[:70], drawn) == pytest.approx(float(golden["kernel"]), **TIGHT)
    found = manifolds(real, drawn, num_neighbours=int(golden["neighbours"]))
    assert found.precision == pytest.approx(float(golden["precision"]), **TIGHT)
    assert found.recall == pytest.approx(float(golden["recall"]), **TIGHT)
    assert 0 < found.recall < 1


def test_frechet_with_a_root_of_matrices():
    random = np.random.default_rng(3)
    some, others = (moments(random.normal(size=(40, 5)) @ random.normal(size=(5, 5))) for _ in range(2))
    root = scipy.linalg.sqrtm(some.covariance @ others.covariance).real
    wanted = ((some.mean - others.mean) ** 2).sum() + np.trace(some.covariance + others.covariance - 2 * root)
    assert frechet_distance(some, others) == pytest.approx(wanted, rel=1e-8)


def test_frechet_of_covariances_that_commute():
    """In the axes of both, the roots of the variances differ: |m1 - m2|² + sum (s1 - s2)²."""
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(6, 6)))[0]
    stds, means = random.uniform(0, 2, (2, 6)), random.normal(size=(2, 6))
    some, others = (
        Moments(mean, axes @ np.diag(std**2) @ axes.T) for mean, std in zip(means, stds, strict=True)
    )
    wanted = ((means[0] - means[1]) ** 2).sum() + ((stds[0] - stds[1]) ** 2).sum()
    assert frechet_distance(some, others) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(some, some) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sizes", [(50,), (1, 1, 48), (20, 30), (7,) * 7 + (1,)])
def test_moments_of_parts_are_those_of_all(sizes):
    random = np.random.default_rng(1)
    features = (1e4 + random.normal(size=(50, 3))).astype(np.float32)  # whose squares would lose all digits
    so_far = MomentsSoFar()
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        so_far.add(part)
    found = so_far.moments
    exact = features.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-9)
    assert so_far.num_pictures == 50


def test_kernel_distance_is_unbiased():
    """Of two halves of one distribution the mean over many is 0, within four standard errors."""
    random = np.random.default_rng(2)
    found = [kernel_distance(*random.normal(size=(2, 12, 3))) for _ in range(2000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0 < max(found)


def test_manifolds_of_sets_that_overlap_in_part(blocks):
    real = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 100.0)]) + np.random.default_rng(0).normal(
        size=(40, 2)
    )
    drawn = real[:20] + 1e-6
    found = manifolds(real, drawn)
    assert (found.precision, found.recall) == (1, 0.5)
    assert found.real.tolist() == [True] * 20 + [False] * 20
    swapped = manifolds(drawn, real)
    assert (swapped.precision, swapped.recall) == (0.5, 1)


def brute_manifolds(real, drawn, k):
    """By the distances of all pairs in float64."""

    def pairs(some, others):
        return np.linalg.norm(some[:, None] - others, axis=-1)

    radii = [np.sort(pairs(rows, rows), axis=1)[:, k] for rows in (real, drawn)]
    across = pairs(drawn, real)
    return (across < radii[0]).any(1), (radii[1] > across.T).any(1), across.min(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows,
        lambda rows: rows + 1e5,
        lambda rows: 1e-20 * rows,
        lambda rows: 1e25 * rows,
        lambda rows: rows + 1e4 * (np.arange(len(rows)) % 3)[:, None],  # groups, far apart and dense
        lambda rows: 1e-7 * rows + np.arange(len(rows))[:, None] % 2,  # which float32 has as two points
    ],
)
@pytest.mark.parametrize("k", [1, 3])
def test_what_float64_says(blocks, change, k):
    random = np.random.default_rng(5)
    real, drawn = (change(random.normal(size=(count, 5))) for count in (150, 130))
    drawn[:20] = real[:20]  # copies
    found = manifolds(real, drawn, num_neighbours=k)
    among_real, among_drawn, nearest = brute_manifolds(real, drawn, k)
    np.testing.assert_array_equal(found.drawn, among_real)
    np.testing.assert_array_equal(found.real, among_drawn)
    scale = np.abs(real).max()
    np.testing.assert_allclose(found.nearest, nearest, rtol=1e-6, atol=1e-15 * scale)
    assert (found.nearest[:20] == 0).all()


def test_a_model_that_draws_one_picture(blocks):
    """All distances are equal: within a set of copies they are 0, which is not less than 0."""
    real = np.random.default_rng(5).normal(size=(200, 3))
    found = manifolds(real, np.broadcast_to(real[7], (150, 3)))
    assert (found.precision, found.recall) == (1, 0)
    assert not found.nearest.any()


def test_moments_of_pictures_that_are_there_several_times():
    random = np.random.default_rng(6)
    features, counts = random.normal(size=(30, 4)), random.integers(0, 4, size=30)
    found, wanted = weighted_moments(features, counts.astype(float)), moments(features.repeat(counts, axis=0))
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-10, atol=1e-14)


def test_distances_of_points(blocks):
    points = np.array([[0.0, 0], [3, 4], [0, 1]])
    np.testing.assert_allclose(nearest_distances(points, points[:1]), [0, 5, 1])
    np.testing.assert_allclose(mean_distance(points), (5 + 1 + np.sqrt(18)) / 3)
    random = np.random.default_rng(0).normal(size=(60, 4))
    pairs = np.linalg.norm(random[:, None] - random, axis=-1)
    assert mean_distance(random) == pytest.approx(pairs.sum() / (60 * 59), **TIGHT)
    np.testing.assert_allclose(nearest_distances(random[:50], random[50:]), pairs[:50, 50:].min(1), rtol=1e-7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moments(np.zeros((1, 3))), "a covariance takes at least 2 pictures, got 1"),
        (lambda: moments(np.zeros((0, 3))), "expected at least 1 pictures, got 0"),
        (lambda: moments(np.zeros(3)), r"expected shape \[pictures, features\], got \[3\]"),
        (lambda: moments(np.full((3, 2), np.nan)), "NaN or infinite"),
        (lambda: kernel_distance(np.zeros((1, 3)), np.zeros((5, 3))), "at least 2 pictures, got 1"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 4))), "must come from the same model"),
        (lambda: manifolds(np.zeros((3, 2)), np.zeros((9, 2))), "at least 4 pictures, got 3"),
        (lambda: manifolds(np.zeros((3, 2)), np.zeros((9, 2)), num_neighbours=0), "num_neighbours"),
        (lambda: frechet_distance(moments(np.eye(3)), moments(np.eye(4))), "3 a picture on one side, 4"),
        (lambda: mean_distance(np.zeros((1, 2))), "at least 2 pictures"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_parts_of_other_features():
    so_far = MomentsSoFar()
    so_far.add(np.zeros((2, 3)))
    with pytest.raises(InputError, match="expected 3 a picture, got 4"):
        so_far.add(np.zeros((2, 4)))
