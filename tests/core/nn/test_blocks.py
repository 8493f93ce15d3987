import math

import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.nn.blocks import from_nested, spans, splits


def test_spans_cover_an_axis_and_tell_what_is_cut_short() -> None:
    assert spans(28, 8) == [(0, 3, 8, 1), (3, 4, 4, 1)]
    assert spans(16, 8) == [(0, 2, 8, 1)]
    assert spans(3, 8) == [(0, 1, 3, 1)]
    assert spans(14, 2, kernel_size=2) == [(0, 6, 2, 2), (6, 7, 2, 1)]
    assert spans(7, 2, kernel_size=3) == [(0, 2, 2, 3), (2, 3, 2, 2), (3, 4, 1, 1)]


def test_only_powers_of_two_split_evenly() -> None:
    assert [splits(side, 2) for side in (1, 2, 3, 4)] == [(1, 1), (1, 2), None, (2, 2)]


def test_nested_order_is_quarter_by_quarter() -> None:
    nested = jnp.asarray([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])
    assert from_nested(nested[None], (1, 1), (2, 2), (2, 2)).ravel().tolist() == list(range(16))


@pytest.mark.parametrize(("rows", "columns"), [((2, 2), (2, 2)), ((1, 2), (2, 2)), ((2,), (1,)), ((), ())])
def test_every_pixel_comes_to_its_place(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    blocks, channels = (3, 2), 5
    height, width = blocks[0] * math.prod(rows), blocks[1] * math.prod(columns)
    numbers = np.arange(2 * height * width * channels).reshape(2, -1, channels)
    picture = np.asarray(from_nested(jnp.asarray(numbers), blocks, rows, columns))
    assert picture.shape == (2, height, width, channels)
    for i, j in np.ndindex(height, width):
        place = 0
        row, column = i, j
        counts = list(zip((blocks[0], *rows), (blocks[1], *columns), strict=True))
        for level, (n, m) in enumerate(counts):
            below = [math.prod(c[axis] for c in counts[level + 1 :]) for axis in (0, 1)]
            place = (place * n + row // below[0]) * m + column // below[1]
            row, column = row % below[0], column % below[1]
        np.testing.assert_array_equal(picture[:, i, j], numbers[:, place])
