"""How alike pictures are: against scikit-image, and closed forms."""

from pathlib import Path

import numpy as np
import pytest

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.measure import likeness
from artifex.generative_models.inference.measure.likeness import peak_signal_to_noise, structural_similarity


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[2] / "golden" / "measures.npz") as archive:
        return dict(archive)


def test_scikit_image_says_the_same(golden):
    pair = golden["pictures"], golden["others"]
    np.testing.assert_allclose(structural_similarity(*pair, span=1.0), golden["ssim"], rtol=1e-9)
    np.testing.assert_allclose(peak_signal_to_noise(*pair, span=1.0), golden["psnr"], rtol=1e-9)


@pytest.mark.parametrize("side", [11, 42, 43, 75])
def test_windows_along_long_sides(side):
    """Of pictures wider than one product makes: the window slides over each by itself."""
    pictures = np.random.default_rng(0).normal(size=(2, 12, side, 3))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    wanted = [
        [(window[..., None] * pictures[:, i : i + 11, j : j + 11]).sum((1, 2)) for j in range(side - 10)]
        for i in range(2)
    ]
    np.testing.assert_allclose(likeness._seen(pictures), np.moveaxis(wanted, 2, 0), atol=1e-12)


def test_equal_pictures(golden):
    pictures = golden["pictures"]
    np.testing.assert_allclose(structural_similarity(pictures, pictures, span=1.0), 1)
    assert np.isinf(peak_signal_to_noise(pictures, pictures, span=1.0)).all()


def test_of_constant_pictures():
    """Without variance only means are compared: (2ab + c1) / (a² + b² + c1)."""
    a, b = (np.full((1, 12, 11, 1), value, np.uint8) for value in (100, 120))
    c1 = (0.01 * 255) ** 2
    wanted = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    np.testing.assert_allclose(structural_similarity(a, b, span=255), wanted)
    np.testing.assert_allclose(peak_signal_to_noise(a, b, span=255), 10 * np.log10(255**2 / 20**2))


@pytest.mark.parametrize(
    ("shapes", "span", "words"),
    [
        (((2, 11, 11, 1), (2, 11, 12, 1)), 1, "expected two of one shape"),
        (((11, 11, 1), (11, 11, 1)), 1, "expected two of one shape"),
        (((0, 11, 11, 1), (0, 11, 11, 1)), 1, "expected two of one shape"),
        (((2, 10, 30, 1), (2, 10, 30, 1)), 1, r"11 x 11 pixels at a time, got \[10, 30\]"),
        (((2, 11, 11, 1), (2, 11, 11, 1)), 0, "span: expected a number above 0"),
        (((2, 11, 11, 1), (2, 11, 11, 1)), float("nan"), "span: expected a number above 0"),
    ],
)
def test_bad_input(shapes, span, words):
    with pytest.raises(InputError, match=words):
        structural_similarity(*map(np.zeros, shapes), span=span)
