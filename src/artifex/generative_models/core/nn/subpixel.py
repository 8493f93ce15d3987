"""Sub-pixel convolutions, which double height and width, one after another as matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.nn.blocks import Span, from_nested, pixelwise, spans, splits
from artifex.generative_models.core.sharding import logical_axes

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
    Layer = tuple["SubpixelConv", Activation]
    Pixels = Callable[[slice, slice], Float[Array, "batch rows columns in"]]
    Patches = Callable[[Span, Span], Float[Array, "batch rows columns k"]]


class SubpixelConv(nnx.Module):
    """Doubles height and width: a convolution to four times the channels, then depth-to-space.

    Args:
        in_features: Channels in.
        out_features: Channels out.
        kernel_size: Side of the convolution. Output pixels 2i and 2i+1 read input pixels i to
            i + kernel_size - 1, zero beyond the edge.
        use_bias: Whether a bias is added.
        rngs: Random number generators for the weights.

    References:
        Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
        Convolutional Neural Network*, 2016, equation 4. https://arxiv.org/abs/1609.05158
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        reach = (0, kernel_size - 1)
        kernel = (kernel_size, kernel_size)
        self.conv = nnx.Conv(
            in_features,
            4 * out_features,
            kernel,
            padding=(reach, reach),
            use_bias=use_bias,
            kernel_metadata=logical_axes(None, None, "features", None),
            rngs=rngs,
        )

    @property
    def kernel_size(self) -> int:
        """Side of the convolution."""
        return self.conv.kernel_size[0]

    def weights(
        self, taps: tuple[int, int], parts: tuple[int, int]
    ) -> tuple[Float[Array, "k out"], Float[Array, " out"]]:
        """Matrix and bias for the first taps, and the first output pixels, along each axis."""
        side = self.kernel_size
        kernel = self.conv.kernel[...].reshape(side, side, -1, 2, 2, self.conv.out_features // 4)
        kernel = kernel[: taps[0], : taps[1], :, : parts[0], : parts[1]]
        if self.conv.bias is None:
            bias = jnp.zeros(kernel.shape[3:], kernel.dtype)
        else:
            bias = self.conv.bias[...].reshape(2, 2, -1)[: parts[0], : parts[1]]
        return kernel.reshape(-1, bias.size), bias.reshape(-1)

    def __call__(self, x: Float[Array, "batch h w in"]) -> Float[Array, "batch 2*h 2*w out"]:
        """Channel (a, b, c) of input pixel (i, j) becomes channel c of output pixel (2i + a, 2j + b)."""
        return _doubled(partial(_patches, x), [(self, _identity)], (2 * x.shape[1], 2 * x.shape[2]))


def subpixel_convs(
    pixels: Pixels,
    convs: Sequence[SubpixelConv],
    sizes: Sequence[tuple[int, int]],
    activation: Activation,
) -> Float[Array, "batch height width out"]:
    """Applies sub-pixel convolutions with the activation between them.

    The result is that of the modules one by one, with each level's picture cropped to its size. Levels
    that follow without a look at neighbours share one depth-to-space, after the last of them.

    Args:
        pixels: Gives some rows and columns of the first picture. What makes them can make each part
            where it is used, and spares a copy.
        convs: The convolutions.
        sizes: Height and width after each: twice what it was, or one less.
        activation: Applied elementwise after all but the last.
    """
    layers = list(zip(convs, [*[activation] * (len(convs) - 1), _identity], strict=True))
    starts = [i for i, conv in enumerate(convs) if i == 0 or conv.kernel_size > 1]
    stops = [*starts[1:], len(convs)]
    patches: Patches
    if convs[0].kernel_size == 1:
        patches = partial(_pixels, pixels)
    else:
        patches = partial(_patches, pixels(slice(None), slice(None)))
    for start, stop in zip(starts, stops, strict=True):
        x = _doubled(patches, layers[start:stop], sizes[stop - 1])
        patches = partial(_patches, x)
    return x


def _doubled(
    patches: Patches, layers: Sequence[Layer], size: tuple[int, int]
) -> Float[Array, "batch height width out"]:
    """Levels of which only the first looks at neighbours: each pixel becomes a block of pixels."""
    block, kernel_size = 2 ** len(layers), layers[0][0].kernel_size
    bands = [
        [
            _blocks(patches(rows, columns), rows, columns, layers)
            for columns in spans(size[1], block, kernel_size)
        ]
        for rows in spans(size[0], block, kernel_size)
    ]
    return jnp.concatenate([jnp.concatenate(band, 2) for band in bands], 1)


def _pixels(pixels: Pixels, rows: Span, columns: Span) -> Float[Array, "batch rows columns in"]:
    return pixels(slice(rows.start, rows.stop), slice(columns.start, columns.stop))


def _patches(
    x: Float[Array, "batch h w in"], rows: Span, columns: Span
) -> Float[Array, "batch rows columns k"]:
    """The pixels under each place of the kernel."""
    stop = rows.stop + rows.taps - 1
    x = jnp.concatenate(
        [x[:, rows.start : stop, columns.start + i : columns.stop + i] for i in range(columns.taps)], -1
    )
    return jnp.concatenate([x[:, i : i + rows.blocks] for i in range(rows.taps)], -1)


def _blocks(
    x: Float[Array, "batch rows columns k"], rows: Span, columns: Span, layers: Sequence[Layer]
) -> Float[Array, "batch h w out"]:
    """Blocks that are alike, each from one pixel."""
    row_splits, column_splits = splits(rows.side, len(layers)), splits(columns.side, len(layers))
    rest: Sequence[Layer] = ()
    if row_splits is None or column_splits is None:
        half = 2 ** (len(layers) - 1)
        layers, rest = layers[:1], layers[1:]
        row_splits, column_splits = (-(-rows.side // half),), (-(-columns.side // half),)
    taps = rows.taps, columns.taps
    for (conv, activation), *parts in zip(layers, row_splits, column_splits, strict=True):
        kernel, bias = conv.weights(taps, (parts[0], parts[1]))
        x = activation(pixelwise(x, kernel, bias))
        taps = 1, 1
    x = from_nested(x, (rows.blocks, columns.blocks), row_splits, column_splits)
    if rest:
        x = _doubled(partial(_patches, x), rest, (rows.blocks * rows.side, columns.blocks * columns.side))
    return x


def _identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x
