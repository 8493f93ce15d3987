"""Which pictures of two sets lie among each other, by the features of each: arrays [pictures, features].

Distances of all pairs come from products of matrices in float32, in blocks, several at once. What they leave
open within their rounding is decided in float64, so that what is found is what float64 finds.

References:
    Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991 (precision and recall).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.placement import num_cores
from artifex.generative_models.inference.measure.at_once import at_once
from artifex.generative_models.inference.measure.distances import checked_pair

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Features = Float[np.ndarray, "pictures features"]

_BLOCK_NUMBERS = 1 << 19  # of a block of distances: 2 MB, which caches hold
_OPEN_PAIRS = 64  # of a picture that are decided one by one; of more, all of its pairs are computed again
_Found = TypeVar("_Found")


class Manifolds(NamedTuple):
    """Which pictures lie where those of the other set do.

    Args:
        drawn: Of each that was drawn, whether it is among real ones; its mean is the precision.
        real: Of each that is real, whether it is among drawn ones; its mean is the recall.
        nearest: How far each that was drawn lies from the nearest real one.
    """

    drawn: Bool[np.ndarray, " drawn"]
    real: Bool[np.ndarray, " real"]
    nearest: Float[np.ndarray, " drawn"]

    @property
    def precision(self) -> float:
        """The share of drawn pictures that look real."""
        return float(self.drawn.mean())

    @property
    def recall(self) -> float:
        """The share of real pictures such as are drawn."""
        return float(self.real.mean())


def manifolds(real: Features, drawn: Features, *, num_neighbours: int = 3) -> Manifolds:
    """Precision and recall: a picture is among others if it is nearer to one than its k-th neighbour is.

    Kynkäänniemi et al. 2019, equations 1 to 3.

    Args:
        real: Features of real pictures.
        drawn: Features of drawn ones.
        num_neighbours: k, from 1.

    Raises:
        InputError: Not more pictures than neighbours, or another number of features.
    """
    if num_neighbours < 1:
        raise InputError(f"num_neighbours: expected at least 1, got {num_neighbours}")
    real, drawn, unit = _scaled(*checked_pair(real, drawn, least=num_neighbours + 1))
    radius_real, radius_drawn = (_kth(rows, rows, num_neighbours) for rows in (real, drawn))

    single_real, single_drawn = radius_real.astype(np.float32), radius_drawn.astype(np.float32)

    def visit(rows: slice, squares: np.ndarray, slack: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By how much each of the rows is among real ones, and each real one among the rows; and how near."""
        nearest = _kth_of_block(drawn, real, rows, squares, slack, 1)
        among_drawn = (single_drawn[rows, None] - squares).max(0)
        return np.subtract(single_real, squares, out=squares).max(1), among_drawn, nearest

    slack, found = _over_blocks(drawn, real, visit)
    among_real, among_drawn, nearest = zip(*found, strict=True)
    # A radius in float32 is off by less than the slack, too.
    return Manifolds(
        _decided(np.concatenate(among_real), 2 * slack, drawn, real, radius_real),
        _decided(np.max(among_drawn, axis=0), 2 * slack, real, drawn, radius_drawn),
        unit * np.sqrt(np.concatenate(nearest)),
    )


def nearest_distances(some: Features, others: Features) -> Float[np.ndarray, " pictures"]:
    """How far each of some pictures lies from the nearest of others, by their features: float64 [pictures].

    Raises:
        InputError: No pictures, or another number of features.
    """
    others, some, unit = _scaled(*checked_pair(others, some, least=1))
    return unit * np.sqrt(_kth(some, others, 1))


def _kth(some: Features, others: Features, k: int) -> Float[np.ndarray, " pictures"]:
    """The squared distance of each of some from its k-th neighbour in others, but for itself."""

    def visit(rows: slice, squares: np.ndarray, slack: float) -> np.ndarray:
        return _kth_of_block(some, others, rows, squares, slack, k)

    return np.concatenate(_over_blocks(some, others, visit)[1])


def _kth_of_block(
    some: Features, others: Features, rows: slice, squares: np.ndarray, slack: float, k: int
) -> np.ndarray:
    """Of the pairs that may be the k-th, which are few, by their distances in float64."""
    count = len(squares)
    each = np.arange(count)
    if some is others:
        squares[each, rows.start + each] = np.inf  # it is no neighbour of its own
    least = []
    for _ in range(k):
        column = squares.argmin(1)
        least.append((column, squares[each, column]))
        squares[each, column] = np.inf
    for column, value in reversed(least):
        squares[each, column] = value
    is_open = squares <= (least[-1][1] + 2 * np.float32(slack))[:, None]
    i, j = np.divmod(np.flatnonzero(is_open), len(others))
    is_crowded = np.bincount(i, minlength=count) > k + _OPEN_PAIRS
    few = ~is_crowded[i]
    i, j = i[few], j[few]
    exact = ((some[rows][i] - others[j]) ** 2).sum(1)
    exact = exact[np.lexsort((exact, i))]
    found = np.empty(count)
    found[~is_crowded] = exact[np.searchsorted(i, each[~is_crowded]) + k - 1]
    for row in np.flatnonzero(is_crowded):
        whole = _from(some[rows.start + row], others)
        if some is others:
            whole[rows.start + row] = np.inf
        found[row] = np.partition(whole, k - 1)[k - 1]
    return found


def _decided(
    margin: np.ndarray, slack: float, some: Features, others: Features, radius: np.ndarray
) -> Bool[np.ndarray, " pictures"]:
    """Which margins are above 0; those that are within the slack of it are computed again in float64."""
    found = margin > 0
    for row in np.flatnonzero(np.abs(margin) <= slack):
        found[row] = (_from(some[row], others) < radius).any()
    return found


def _from(one: np.ndarray, others: Features) -> np.ndarray:
    """The squared distances of others from one, in float64."""
    apart: np.ndarray = others - one
    return np.einsum("ij,ij->i", apart, apart)


def _over_blocks(
    some: Features, others: Features, visit: Callable[[slice, np.ndarray, float], _Found]
) -> tuple[float, list[_Found]]:
    """Visits blocks of |a - b|² of rows and all others, in float32; and how much each may be off."""
    ours, theirs = ((rows**2).sum(1, keepdims=True) for rows in (some, others))
    left = np.concatenate([-2 * some, ours, np.ones_like(ours)], axis=1).astype(np.float32)
    right = np.concatenate([others, np.ones_like(theirs), theirs], axis=1).astype(np.float32)
    # Each of d + 2 products and sums rounds by 2^-24 of at most 2 (|a|² + |b|²), and so do the numbers.
    slack = float((some.shape[1] + 8) * 2.0**-23 * (ours.max() + theirs.max()))
    size = max(1, _BLOCK_NUMBERS // len(others))
    starts = range(0, len(some), size)
    workers = num_cores()
    right = np.ascontiguousarray(right.T)

    def visited(first: int) -> dict[int, _Found]:
        block = np.empty(
            (size, len(others)), np.float32
        )  # once, since fresh memory takes longer than a product
        found = {}
        for start in starts[first::workers]:
            rows = slice(start, min(start + size, len(some)))
            squares = np.matmul(left[rows], right, out=block[: rows.stop - start])
            found[start] = visit(rows, squares, slack)
        return found

    by_start = {start: one for part in at_once(visited, range(workers)) for start, one in part.items()}
    return slack, [by_start[start] for start in starts]


def _scaled(real: Features, drawn: Features) -> tuple[np.ndarray, np.ndarray, float]:
    """Both from the middle of the real ones, the longest of length 1; and what that length was."""
    centre = real.mean(0)
    real, drawn = real - centre, drawn - centre
    unit = float(np.sqrt(max((real**2).sum(1).max(), (drawn**2).sum(1).max()))) or 1.0
    return real / unit, drawn / unit, unit
