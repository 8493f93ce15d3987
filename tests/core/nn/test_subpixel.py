from itertools import pairwise

import jax
import numpy as np
import pytest
from flax import nnx
from shared import randomised

from artifex.generative_models.core.nn import SubpixelConv, subpixel_convs

# Sums of at most some hundred float32 products, in another order.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}

SIZES = [(8, 8), (1, 5), (9, 14)]
# Sides of the kernels of each level, and channels.
LEVELS = {
    "1 level": ((2,), (3, 1)),
    "2 levels": ((2, 1), (4, 3, 2)),
    "3 levels": ((1, 2, 1), (5, 4, 3, 1)),
    "4 levels": ((1, 1, 2, 1), (6, 5, 4, 3, 1)),
    "pointwise": ((1, 1, 1), (2, 3, 2, 1)),
    "neighbours at each": ((3, 2, 2), (2, 3, 2, 1)),
}


def convolved(x: jax.Array, up: SubpixelConv) -> jax.Array:
    """The convolution, then depth-to-space."""
    batch, height, width, _ = x.shape
    y = up.conv(x).reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_modules_one_by_one(size: tuple[int, int], levels: str) -> None:
    sides, channels = LEVELS[levels]
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(len(sides), -1, -1)]
    arguments = list(zip(sides, pairwise(channels), strict=True))
    ups = randomised(
        lambda: nnx.List(SubpixelConv(i, o, side, rngs=nnx.Rngs(0)) for side, (i, o) in arguments)
    )
    x = np.random.default_rng(1).normal(size=(3, *sizes[0], channels[0])).astype(np.float32)

    def one_by_one(ups: nnx.List, x: jax.Array) -> jax.Array:
        for level, (up, (height, width)) in enumerate(zip(ups, sizes[1:], strict=True)):
            x = convolved(nnx.relu(x) if level else x, up)[:, :height, :width]
        return x

    def doubled(ups: nnx.List, x: jax.Array) -> jax.Array:
        return subpixel_convs(lambda rows, columns: x[:, rows, columns], ups, sizes[1:], nnx.relu)

    found, wanted = jax.jit(lambda ups, x: (doubled(ups, x), one_by_one(ups, x)))(ups, x)
    np.testing.assert_allclose(found, wanted, **FLOAT32)
