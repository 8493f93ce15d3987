"""Pictures made of blocks, so that levels of doubling are matrix products and nothing else.

A pixel that is doubled n times becomes a block of 2^n pixels a side. In *nested* order the pixels of a
block lie together, then those of its quarters, and so on down: a level takes one pixel to four consecutive
ones, which is a product of matrices without any movement of data. Pixels are thus put in their places once,
where they are few numbers, instead of at every level.

The last block of an axis may be cut short. It goes through the same levels with the part of each kernel
that makes pixels, so that nothing is multiplied by padding and nothing computed to be cut off.
`benchmarks/kernels.py` measures this against convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Span(NamedTuple):
    """Consecutive blocks of one axis that are alike."""

    start: int
    stop: int
    side: int  # pixels of each block
    taps: int  # of the kernel, that meet a block

    @property
    def blocks(self) -> int:
        """How many blocks."""
        return self.stop - self.start


def spans(pixels: int, block: int, kernel_size: int = 1) -> list[Span]:
    """Cuts an axis into blocks, and groups those that are alike.

    Args:
        pixels: Pixels of the axis.
        block: Pixels of a whole block.
        kernel_size: Blocks that the kernel looks at: its own, and those after it as far as there are any.
    """
    count = -(-pixels // block)
    alike = groupby(range(count), lambda i: (min(block, pixels - i * block), min(kernel_size, count - i)))
    groups = [(list(indices), side, taps) for (side, taps), indices in alike]
    return [Span(indices[0], indices[-1] + 1, side, taps) for indices, side, taps in groups]


def splits(side: int, levels: int) -> tuple[int, ...] | None:
    """Into how many equal parts, 1 or 2, each level cuts a block, the outermost first.

    Returns:
        None where the parts of a level differ in size.
    """
    depth = side.bit_length() - 1
    return (1,) * (levels - depth) + (2,) * depth if side == 2**depth else None


def from_nested(
    x: Float[Array, "batch ..."], blocks: tuple[int, int], rows: Sequence[int], columns: Sequence[int]
) -> Float[Array, "batch h w c"]:
    """Puts pixels of blocks that lie side by side from nested order into their places.

    Args:
        x: Pixels in nested order.
        blocks: Rows and columns of blocks.
        rows: Into how many parts each level cuts the height of a block, the outermost first.
        columns: As `rows`, for the width.
    """
    pairs = zip((blocks[0], *rows), (blocks[1], *columns), strict=True)
    order = _interleaved(len(rows))
    picture = x.reshape(x.shape[0], *(n for pair in pairs for n in pair), -1)
    picture = picture.transpose([order.index(axis) for axis in range(len(order))])
    return picture.reshape(
        x.shape[0], blocks[0] * math.prod(rows), blocks[1] * math.prod(columns), picture.shape[-1]
    )


def pixelwise(
    x: Float[Array, "batch ..."], kernel: Float[Array, "k out"], bias: Float[Array, " out"]
) -> Float[Array, "batch n out"]:
    """`x @ kernel + bias` for each `k` numbers in a row, as one product of two matrices."""
    return (x.reshape(-1, len(kernel)) @ kernel + bias[None]).reshape(len(x), -1, len(bias))


def _interleaved(levels: int) -> list[int]:
    """Axes (batch, rows and their levels, columns and their levels, c) with rows and columns in turns."""
    first_column = levels + 2
    pairs = [(axis, axis - 1 + first_column) for axis in range(1, first_column)]
    return [0, *(axis for pair in pairs for axis in pair), 2 * levels + 3]
