"""Between uint8 pictures and a model's range of pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Float, UInt8
    from numpy import ndarray


def normalize_images(
    images: ArrayLike, image_range: Sequence[float] = (-1.0, 1.0)
) -> Float[ndarray, "batch h w c"]:
    """Scales uint8 pictures to a model's range: 0 becomes its low end, 255 its high end.

    Pictures that are floating-point already are taken to be in that range and pass through.

    Args:
        images: Pictures [batch, H, W, C].
        image_range: (low, high).
    """
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8:
        return pixels
    low, high = image_range
    return pixels * np.float32((high - low) / 255) + np.float32(low)


def denormalize_images(
    images: ArrayLike, image_range: Sequence[float] = (-1.0, 1.0)
) -> UInt8[ndarray, "batch h w c"]:
    """Turns a model's pictures into uint8, rounded and clipped: the inverse of `normalize_images`.

    Args:
        images: Pictures [batch, H, W, C] in `image_range`.
        image_range: (low, high).
    """
    low, high = image_range
    levels = (np.asarray(images, np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
