"""How alike two pictures are, such as one and its reconstruction.

References:
    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity" (SSIM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

    Pictures = Float[np.ndarray, "pictures h w c"]

_WINDOW, _SIGMA = 11, 1.5  # pixels, of the Gaussian that SSIM looks through
_K1, _K2 = 0.01, 0.03


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
    errors = ((some - others) ** 2).mean((1, 2, 3))
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
    mean, other_mean = _seen(some), _seen(others)
    variance, other_variance = _seen(some**2) - mean**2, _seen(others**2) - other_mean**2
    covariance = _seen(some * others) - mean * other_mean
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    alike = (2 * mean * other_mean + c1) * (2 * covariance + c2)
    all_of_it = (mean**2 + other_mean**2 + c1) * (variance + other_variance + c2)
    similarity: np.ndarray = (alike / all_of_it).mean((1, 2, 3))
    return similarity


def _seen(pictures: Pictures) -> np.ndarray:
    """Means under the window, one axis after the other."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(pictures, _WINDOW, axis=axis)
        pictures = windows @ weights
    return pictures


def _pair(some: Pictures, others: Pictures, span: float) -> tuple[np.ndarray, np.ndarray]:
    if not span > 0:
        raise InputError(f"span: expected a number above 0, got {span}")
    some, others = np.asarray(some, np.float64), np.asarray(others, np.float64)
    if some.ndim != 4 or some.shape != others.shape or not some.size:
        raise InputError(
            f"pictures: expected two of one shape [pictures, h, w, c], got {list(some.shape)} "
            f"and {list(others.shape)}"
        )
    return some, others
