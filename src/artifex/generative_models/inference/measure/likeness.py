"""How alike two pictures are, such as one and its reconstruction.

References:
    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity" (SSIM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.measure.at_once import at_once

if TYPE_CHECKING:
    from jaxtyping import Float

    Pictures = Float[np.ndarray, "pictures h w c"]

_WINDOW, _SIGMA = 11, 1.5  # pixels, of the Gaussian that SSIM looks through
_K1, _K2 = 0.01, 0.03
_BLOCK_NUMBERS = 1 << 14  # of pictures that are compared at once
_STRETCH = 32  # means along an axis that are made by one product


def peak_signal_to_noise(some: Pictures, others: Pictures, *, span: float) -> Float[np.ndarray, " pictures"]:
    """PSNR of pictures: `10 log10(span² / mean squared error)`, in decibels; infinite where they are equal.

    Args:
        some: Pictures [pictures, H, W, C].
        others: As many of the same shape.
        span: From the least to the largest value that a pixel may have: 255 of uint8.

    Raises:
        InputError: Other shapes, or a span that is not above 0.
    """
    some, others = _pair(some, others, span)
    errors = _in_blocks(lambda a, b, span: ((a - b) ** 2).mean((1, 2, 3)), some, others, span)
    with np.errstate(divide="ignore"):
        decibels: np.ndarray = 10 * np.log10(span**2 / errors)
    return decibels


def structural_similarity(some: Pictures, others: Pictures, *, span: float) -> Float[np.ndarray, " pictures"]:
    """SSIM of pictures, from -1 to 1, which is that they are equal: the mean over pixels and channels.

    Means, variances and covariance are those under a Gaussian window of 11 x 11 pixels with a standard
    deviation of 1.5, where it lies within the picture (Wang et al. 2004, equations 13 to 16).

    Args:
        some: Pictures [pictures, H, W, C], of at least 11 x 11 pixels.
        others: As many of the same shape.
        span: As for `peak_signal_to_noise`.

    Raises:
        InputError: Other shapes, smaller pictures, or a span that is not above 0.
    """
    some, others = _pair(some, others, span)
    if min(some.shape[1:3]) < _WINDOW:
        raise InputError(f"SSIM looks at {_WINDOW} x {_WINDOW} pixels at a time, got {list(some.shape[1:3])}")
    return _in_blocks(_ssim, some, others, span)


def _ssim(some: Pictures, others: Pictures, span: float) -> np.ndarray:
    maps = np.stack([some, others, some**2, others**2, some * others])
    mean, other_mean, *squares, product = _seen(maps.reshape(-1, *some.shape[1:])).reshape(
        5, len(some), *(side - _WINDOW + 1 for side in some.shape[1:3]), -1
    )
    variance, other_variance = squares[0] - mean**2, squares[1] - other_mean**2
    covariance = product - mean * other_mean
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    alike = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    all_of_it = (mean**2 + other_mean**2 + c1) * (variance + other_variance + c2)
    similarity: np.ndarray = (alike / all_of_it).mean((1, 2, 3))
    return similarity


def _in_blocks(
    compare: Callable[..., np.ndarray],
    some: Pictures,
    others: Pictures,
    span: float,
) -> np.ndarray:
    """What a comparison finds of each picture, in float64, of as many at once as caches hold."""
    size = max(1, _BLOCK_NUMBERS // some[0].size)

    def part(start: int) -> np.ndarray:
        both = (rows[start : start + size].astype(np.float64) for rows in (some, others))
        return compare(*both, span=span)

    return np.concatenate(at_once(part, range(0, len(some), size)))


def _seen(pictures: Pictures) -> np.ndarray:
    """Means under the window, one axis after the other: [pictures, h, w, c], as many as fit."""
    rows = _windowed(pictures.swapaxes(1, 3)).swapaxes(1, 3)
    return _windowed(rows.swapaxes(2, 3)).swapaxes(2, 3)


def _windowed(values: np.ndarray) -> np.ndarray:
    """Means under the window along the last axis: products with a band of weights, a stretch at a time."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    band = np.zeros((_STRETCH + _WINDOW - 1, _STRETCH))
    for k, weight in enumerate(weights):
        band[np.arange(_STRETCH) + k, np.arange(_STRETCH)] = weight
    size = values.shape[-1] - _WINDOW + 1
    found = np.empty((*values.shape[:-1], size))
    for start in range(0, size, _STRETCH):
        width = min(_STRETCH, size - start)
        part = np.ascontiguousarray(values[..., start : start + width + _WINDOW - 1])
        made = part.reshape(-1, part.shape[-1]) @ band[: part.shape[-1], :width]
        found[..., start : start + width] = made.reshape(*values.shape[:-1], width)
    return found


def _pair(some: Pictures, others: Pictures, span: float) -> tuple[np.ndarray, np.ndarray]:
    if not span > 0:
        raise InputError(f"span: expected a number above 0, got {span}")
    some, others = np.asarray(some), np.asarray(others)
    if some.ndim != 4 or some.shape != others.shape or not some.size:
        raise InputError(
            f"pictures: expected two of one shape [pictures, h, w, c], got {list(some.shape)} "
            f"and {list(others.shape)}"
        )
    return some, others
