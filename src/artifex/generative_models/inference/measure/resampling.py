"""Figures with the interval in which 95 % of their bootstrap resamples lie.

A resample of n pictures has each of them so many times: counts of n draws with replacement.

References:
    Efron, *Bootstrap methods: another look at the jackknife*, 1979. https://doi.org/10.1214/aos/1176344552
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from artifex.generative_models.inference.measure.at_once import at_once

_CONFIDENCE = 0.95
_MEAN_RESAMPLES, _SET_RESAMPLES = 1000, 50  # of means, and of what is computed from whole sets
_BLOCK_PICTURES = 1000  # of what takes all pairs, which are taken within blocks


class Estimate(NamedTuple):
    """A figure and its interval.

    Args:
        value: The figure.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float


def of_means(columns: Sequence[np.ndarray], random: np.random.Generator) -> list[Estimate]:
    """The means of several values a picture, each with its interval, by the same resamples.

    Args:
        columns: Arrays [pictures], of the same pictures.
        random: What resamples are drawn by.
    """
    found: dict[int, Estimate] = {}
    numbers = []
    for i, column in enumerate(columns):
        if column.dtype == np.bool_:  # of which resamples have binomial numbers
            count, share = len(column), float(column.mean())
            resamples = random.binomial(count, share, _MEAN_RESAMPLES) / count
            found[i] = Estimate(share, *_interval(resamples))
        else:
            numbers.append(i)
    if numbers:
        values = np.stack([columns[i].astype(np.float64) for i in numbers], axis=1)
        draws = (_counts(len(values), random) @ values for _ in range(_MEAN_RESAMPLES))
        means = np.stack(list(draws)) / len(values)
        for i, column, resamples in zip(numbers, values.T, means.T, strict=True):
            found[i] = Estimate(float(column.mean()), *_interval(resamples))
    return [found[i] for i in range(len(columns))]


def of_mean(values: np.ndarray, random: np.random.Generator) -> Estimate:
    """The mean of values, one a picture."""
    return of_means([values], random)[0]


def of_sets(figure: Callable[..., float], sizes: Sequence[int], random: np.random.Generator) -> Estimate:
    """A figure of some sets, by how many times each picture is there: float64 [pictures] of each set.

    Having pictures twice shifts it, as if there were fewer; so what counts is how resamples lie around their
    mean.
    """
    value = figure(*map(np.ones, sizes))
    again = at_once(
        lambda random: figure(*(_counts(size, random) for size in sizes)), random.spawn(_SET_RESAMPLES)
    )
    mean = float(np.mean(again))
    return Estimate(value, *_interval([one - mean + value for one in again]))


def of_blocks(
    figure: Callable[[np.ndarray, np.ndarray], float],
    some: np.ndarray,
    others: np.ndarray,
    random: np.random.Generator,
) -> Estimate:
    """The mean of a figure of all pairs over blocks of both sets."""
    fewest = min(len(some), len(others))
    count = max(2, fewest // _BLOCK_PICTURES)
    blocks = zip(np.array_split(some, count), np.array_split(others, count), strict=True)
    return of_mean(np.array(at_once(lambda pair: figure(*pair), blocks)), random)


def _counts(count: int, random: np.random.Generator) -> np.ndarray:
    drawn = random.integers(count, size=count, dtype=np.uint32)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def _interval(resamples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return float(low), float(high)
