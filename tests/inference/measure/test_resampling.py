"""Intervals of bootstrap resamples: as often around the truth as they say, and as wide as theory has them."""

import numpy as np
import pytest

from artifex.generative_models.inference.measure.resampling import of_blocks, of_mean, of_means, of_sets


@pytest.mark.parametrize("kind", [bool, float])
def test_an_interval_holds_the_truth_as_often_as_it_says(kind):
    """Of a coin's share: 95 % intervals of 60 sets of 100 tosses, within 4 standard errors of that."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        _, low, high = of_mean((random.random(100) < 0.3).astype(kind), random)
        held += low <= 0.3 <= high
    assert held / 60 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 60)


@pytest.mark.parametrize("kind", [bool, float])
def test_an_interval_is_as_wide_as_the_normal_one(kind):
    """Of many values: 2 x 1.96 standard errors, which 1,000 resamples have to some percent."""
    values = (np.random.default_rng(1).random(5000) < 0.3).astype(kind)
    value, low, high = of_mean(values, np.random.default_rng(2))
    assert value == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(5000), rel=0.12)


def test_columns_are_in_their_order():
    values = np.random.default_rng(3).normal(size=(3, 40))
    columns = [values[0], values[1] > 0, values[2]]
    found = of_means(columns, np.random.default_rng(4))
    np.testing.assert_allclose([one.value for one in found], [column.mean() for column in columns])
    assert all(one.low < one.value < one.high for one in found)
    assert found == of_means(columns, np.random.default_rng(4))


def test_a_figure_of_sets_is_told_how_often_each_is_there():
    """The variance of a mean of counted values is that of resamples."""
    values = np.random.default_rng(5).normal(size=2000)
    counted = []

    def mean(counts):
        counted.append(counts)
        return float(counts @ values / counts.sum())

    value, low, high = of_sets(mean, (2000,), np.random.default_rng(6))
    assert value == pytest.approx(values.mean())
    assert {counts.sum() for counts in counted} == {2000}
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.4)  # of 50


def test_blocks_are_of_both_sets():
    sums = of_blocks(lambda a, b: a.sum() + b.sum(), np.ones(10), np.ones(6), np.random.default_rng(0))
    assert sums == (8, 8, 8)
