"""How far two sets of pictures lie apart, by the features of each: arrays [pictures, features].

All are computed in float64 and in blocks, so that of n pictures no n x n numbers are held at once.

References:
    Heusel et al. 2017, https://arxiv.org/abs/1706.08500 (Fréchet distance); Binkowski et al. 2018,
    https://arxiv.org/abs/1801.01401 (kernel distance).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

    Features = Float[np.ndarray, "pictures features"]

_BLOCK_NUMBERS = 1 << 17  # of a block of distances or features: 1 MB, which caches hold


class Moments(NamedTuple):
    """What is left of features that are looked at as normally distributed.

    Args:
        mean: Float64 [features].
        covariance: Of the sample, with n - 1 in its denominator, float64 [features, features].
    """

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]


@dataclass
class MomentsSoFar:
    """Moments of features that come a part at a time, in memory that does not grow with their number.

    References:
        Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
        variances", equation 2.1, for vectors.
    """

    num_pictures: int = 0
    _mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _scatter: np.ndarray = field(default_factory=lambda: np.zeros(0))  # sum of (f - mean)(f - mean)^T

    def add(self, features: Features) -> None:
        """Takes the features of some more pictures."""
        part = _checked("features", features, least=1)
        mean = part.mean(0)
        centred = part - mean
        scatter = centred.T @ centred
        if not self.num_pictures:
            self.num_pictures, self._mean, self._scatter = len(part), mean, scatter
            return
        if len(mean) != len(self._mean):
            raise InputError(f"features: expected {len(self._mean)} a picture, got {len(mean)}")
        total = self.num_pictures + len(part)
        apart = mean - self._mean
        self._scatter += scatter + np.outer(apart, apart) * (self.num_pictures * len(part) / total)
        self._mean += apart * (len(part) / total)
        self.num_pictures = total

    @property
    def moments(self) -> Moments:
        """Of all so far.

        Raises:
            InputError: Fewer than two pictures, of which there is no covariance.
        """
        if self.num_pictures < 2:
            raise InputError(f"a covariance takes at least 2 pictures, got {self.num_pictures}")
        return Moments(self._mean.copy(), self._scatter / (self.num_pictures - 1))


def moments(features: Features) -> Moments:
    """Of features that are there.

    Raises:
        InputError: Fewer than two pictures, values that are not finite, or another shape.
    """
    so_far = MomentsSoFar()
    so_far.add(features)
    return so_far.moments


def weighted_moments(features: Features, counts: Float[np.ndarray, " pictures"]) -> Moments:
    """Of features that are there so many times each, such as in a bootstrap resample.

    Args:
        features: Float64 [pictures, features], whose means are near 0, since squares of them are subtracted.
        counts: From 0; at least two in all.
    """
    total = counts.sum()
    scatter = np.zeros((features.shape[1],) * 2)
    size = max(1, _BLOCK_NUMBERS // features.shape[1])
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        scaled = features[rows] * np.sqrt(counts[rows])[:, None]
        scatter += scaled.T @ scaled
    mean = counts @ features / total
    return Moments(mean, (scatter - total * np.outer(mean, mean)) / (total - 1))


def frechet_distance(some: Moments, others: Moments) -> float:
    """The Fréchet distance of two normal distributions: `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)`.

    It is 0 where they are the same. Of few pictures it is too large, about in proportion to 1/n, so compare
    numbers of equal n. With features of an Inception network it is the FID (Heusel et al. 2017, equation 6).

    Raises:
        InputError: Another number of features.
    """
    if some.mean.shape != others.mean.shape:
        raise InputError(f"features: {len(some.mean)} a picture on one side, {len(others.mean)} on the other")
    values, vectors = np.linalg.eigh(some.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ others.covariance @ root)  # has the eigenvalues of C1 C2
    traces = np.trace(some.covariance) + np.trace(others.covariance) - 2 * np.sqrt(product.clip(0)).sum()
    return float(np.sum((some.mean - others.mean) ** 2) + traces)


def kernel_distance(some: Features, others: Features) -> float:
    """The squared maximum mean discrepancy under the kernel `(x·y / d + 1)³`, estimated without bias.

    Where both are drawn from one distribution its mean is 0, so single estimates may be below. With features
    of an Inception network it is the KID (Binkowski et al. 2018, section 4).

    Args:
        some: Features [pictures, features], of at least two pictures.
        others: Features of others, as many or not.

    Raises:
        InputError: Fewer than two pictures, or another number of features.
    """
    some, others = checked_pair(some, others, least=2)

    def within(features: Features) -> float:
        size = len(features)
        itself = ((features**2).sum(1) / features.shape[1] + 1) ** 3
        return float((_kernel_sum(features, features) - itself.sum()) / (size * (size - 1)))

    return within(some) + within(others) - 2 * _kernel_sum(some, others) / (len(some) * len(others))


def mean_distance(features: Features) -> float:
    """How far two different pictures of a set lie apart on average, by their features: their diversity.

    Raises:
        InputError: Fewer than two pictures.
    """
    features, _ = checked_pair(features, features, least=2)
    total = 0.0
    for start, block in _squared_distances(features, features):
        block[np.arange(len(block)), start + np.arange(len(block))] = 0  # rounding left something there
        total += np.sqrt(block).sum()
    return float(total / (len(features) * (len(features) - 1)))


def _kernel_sum(some: Features, others: Features) -> float:
    rows = max(1, _BLOCK_NUMBERS // len(others))
    blocks = (some[start : start + rows] for start in range(0, len(some), rows))
    total = 0.0
    for block in blocks:
        kernel = block @ others.T
        kernel /= some.shape[1]
        kernel += 1
        total += np.vdot(kernel, kernel * kernel)
    return float(total)


def _squared_distances(some: Features, others: Features) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each block, and |a - b|² of its rows and all others."""
    rows = max(1, _BLOCK_NUMBERS // len(others))
    lengths = (others**2).sum(1)
    for start in range(0, len(some), rows):
        block = some[start : start + rows]
        squares = (block**2).sum(1)[:, None] + lengths - 2 * block @ others.T
        yield start, np.maximum(squares, 0, out=squares)


def checked_pair(some: Features, others: Features, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets in float64; refuses those that do not go together, or have fewer pictures than the least."""
    some, others = _checked("features", some, least=least), _checked("features", others, least=least)
    if some.shape[1] != others.shape[1]:
        raise InputError(
            f"features: {some.shape[1]} a picture on one side, {others.shape[1]} on the other; "
            "both must come from the same model"
        )
    return some, others


def _checked(name: str, features: Features, *, least: int) -> np.ndarray:
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(f"{name}: expected shape [pictures, features], got {list(array.shape)}")
    if len(array) < least:
        raise InputError(f"{name}: expected at least {least} pictures, got {len(array)}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: a value is NaN or infinite")
    return array
