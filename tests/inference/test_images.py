import numpy as np
import pytest

from artifex.generative_models.inference import denormalize_images, normalize_images

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
RANGES = [(-1.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("image_range", RANGES)
def test_every_level_round_trips(image_range: tuple[float, float]) -> None:
    low, high = image_range
    values = normalize_images(LEVELS, image_range)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == image_range
    # Two roundings of float32, each at most 2^-24 of a value of at most 2.
    np.testing.assert_allclose(values, low + (high - low) * (LEVELS / 255), rtol=0, atol=2**-22)
    np.testing.assert_array_equal(denormalize_images(values, image_range), LEVELS)


def test_the_range_is_minus_one_to_one_unless_told() -> None:
    np.testing.assert_array_equal(normalize_images(LEVELS), normalize_images(LEVELS, (-1.0, 1.0)))
    np.testing.assert_array_equal(denormalize_images(normalize_images(LEVELS)), LEVELS)


@pytest.mark.parametrize("image_range", RANGES)
@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        (-1e6, 0),
        (-0.6, 0),
        (-0.4, 0),
        (0.4, 0),
        (0.6, 1),
        (99.6, 100),
        (254.6, 255),
        (255.6, 255),
        (1e6, 255),
    ],
)
def test_pictures_are_rounded_and_clipped(
    image_range: tuple[float, float], level: float, wanted: int
) -> None:
    low, high = image_range
    images = np.full((1, 2, 2, 1), low + (high - low) * level / 255, np.float32)
    assert np.unique(denormalize_images(images, image_range)) == wanted
    assert denormalize_images(images, image_range).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_pass_through(dtype: type) -> None:
    images = np.linspace(-3, 3, 16, dtype=dtype).reshape(1, 4, 4, 1)
    assert normalize_images(images) is images
