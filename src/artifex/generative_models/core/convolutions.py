"""3×3 convolutions in fewer multiplications, for where these are what takes the time.

On a CPU convolutions that keep all cores busy run at the rate of matrix products, so only fewer products
help. Winograd's F(m×m, 3×3) makes a tile of m×m outputs of (m+2)² products where the plain form takes 9 m²:
2.25 times as few for m = 2, and 4 times for m = 4, whose sums lose a digit more. Nearest-neighbour doubling
before a convolution makes it four 2×2 convolutions, of 16 products where there were 36.

Which form a layer takes is said from outside, by the shape of its pictures and kernel, while it is traced;
without a word it is the plain one.

References:
    Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2015, section 4.
    https://arxiv.org/abs/1509.09308
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

PLAIN = 1  # the form that XLA has; others are the side of a block of outputs that are made together


class ConvShape(NamedTuple):
    """What the time of a convolution depends on, besides the rows of a batch.

    Args:
        height: Of the outputs.
        width: Of the outputs.
        in_features: Channels in.
        features: Channels out.
        doubles: Whether each pixel counts four times before it.
    """

    height: int
    width: int
    in_features: int
    features: int
    doubles: bool


class _Winograd(NamedTuple):
    """The matrices of F(m, 3): Y = A'((G g) * (B' d)) along each axis.

    Args:
        b: B', [m + 2, m + 2].
        g: G, [m + 2, 3].
        a: A', [m, m + 2].
    """

    b: np.ndarray
    g: np.ndarray
    a: np.ndarray


def _winograd(side: int, points: Sequence[float]) -> _Winograd:
    """The matrices for tiles of a side, by Toom and Cook's algorithm at points and at infinity.

    A product of polynomials is found from its values at as many points as it has coefficients; a convolution
    is the transpose of that product.
    """
    count = side + 2
    at = np.asarray(points, np.float64)
    vandermonde = np.vander(at, count, increasing=True)

    def values(size: int) -> np.ndarray:
        last = np.zeros(size)
        last[-1] = 1  # the value at infinity is the last coefficient
        return np.vstack([vandermonde[:, :size], last])

    # Scaled so that the numbers of B' are small integers, which lose nothing, and G takes the fractions.
    scale = np.array([np.prod([p - q for q in at if q != p]) for p in at] + [1.0])
    interpolation = np.linalg.inv(values(count)) * scale
    return _Winograd(np.round(interpolation.T, 9), values(3) / scale[:, None], values(side).T)


_TILES = {2: _winograd(2, (0, 1, -1)), 4: _winograd(4, (0, 1, -1, 2, -2))}
# Of each phase of doubled pixels, even and odd, how two taps are made of the kernel's three.
_PHASES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
_chosen: ContextVar[Mapping[ConvShape, int]] = ContextVar("forms", default=MappingProxyType({}))
_seen: ContextVar[set[ConvShape] | None] = ContextVar("shapes", default=None)
_made: ContextVar[Mapping[tuple[int, bool, int], Any]] = ContextVar("filters", default=MappingProxyType({}))


def forms_for(shape: ConvShape) -> tuple[int, ...]:
    """The forms that a layer may take."""
    return (PLAIN, *([2] if shape.doubles else _TILES))


@contextmanager
def forms_of_convolutions(chosen: Mapping[ConvShape, int]) -> Iterator[None]:
    """Has layers that are traced within take these forms, where their shapes are among them."""
    before = _chosen.set(chosen)
    try:
        yield
    finally:
        _chosen.reset(before)


@contextmanager
def shapes_of_convolutions() -> Iterator[set[ConvShape]]:
    """Notes the shapes of the layers that are traced within."""
    found: set[ConvShape] = set()
    before = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(before)


def chosen_form(shape: ConvShape) -> int:
    """The form that a layer of a shape is to take, which is noted for those who ask for shapes."""
    if (seen := _seen.get()) is not None:
        seen.add(shape)
    return _chosen.get().get(shape, PLAIN)


def made_filters(kernel: Float[Array, "3 3 in out"], doubles: bool, form: int) -> Array:
    """What a form takes: the kernel, or what `filters_of` gives, made before if it was."""
    if form == PLAIN:
        return kernel
    made = _made.get().get((id(kernel), doubles, form))
    return filters_of(kernel, doubles, form) if made is None else made


@contextmanager
def filters_made_before(model: Any) -> Iterator[None]:
    """Has the kernels of a model turned to filters here, outside of the loops that are traced within."""
    wanted: dict[tuple[int, int], set[tuple[bool, int]]] = {}
    for shape, form in _chosen.get().items():
        if form != PLAIN:
            key = shape.in_features, shape.features
            wanted.setdefault(key, set()).add((shape.doubles, form))
    made = {
        (id(leaf), doubles, form): filters_of(leaf, doubles, form)
        for leaf in (jax.tree.leaves(model) if wanted else [])
        if np.ndim(leaf) == 4 and leaf.shape[:2] == (3, 3)
        for doubles, form in wanted.get(leaf.shape[2:], ())
    }
    before = _made.set(made)
    try:
        yield
    finally:
        _made.reset(before)


def formed(x: Float[Array, "batch h w in"], filters: Array, doubles: bool, form: int) -> Array:
    """The convolution in a form.

    Args:
        x: Pictures.
        filters: The kernel for the plain form, else what `filters_of` makes of it.
        doubles: Whether it is the picture with each pixel four times that is convolved.
        form: The form.
    """
    if form == PLAIN:
        return plain(doubled(x) if doubles else x, filters)
    found = by_phase(x, filters) if doubles else tiled(x, filters, form)
    # Else XLA sums what follows, such as the means of a normalisation, over each part of the picture alone.
    return jax.lax.optimization_barrier(found)


def plain(
    x: Float[Array, "batch h w in"], kernel: Float[Array, "taps taps in out"], padding: int = 1
) -> Float[Array, "batch out_h out_w out"]:
    """A convolution as XLA has it, with so many zeros on each side."""
    sides = (padding, padding)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), (sides, sides), dimension_numbers=numbers)


def doubled(x: Float[Array, "batch h w c"]) -> Float[Array, "batch 2*h 2*w c"]:
    """Each pixel four times."""
    batch, height, width, features = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, features))
    return blocks.reshape(batch, 2 * height, 2 * width, features)


def filters_of(kernel: Float[Array, "3 3 in out"], doubles: bool, form: int) -> Array:
    """The kernel as a form takes it, computed in float32.

    Returns:
        [points, in, out] for tiles, the points of a row after one another for each column; for doubled pixels
        [2, 2, 2, 2, in, out]: the phase along rows and along columns, and the taps along each.
    """
    wide = kernel.astype(jnp.float32)
    if doubles:
        made = jnp.stack([_along(_along(wide, a, 0), b, 1) for a in _PHASES for b in _PHASES])
        made = made.reshape(2, 2, *made.shape[1:])
    else:
        g = _TILES[form].g
        made = _along(_along(wide.swapaxes(0, 1), g, 0), g, 1).reshape(-1, *kernel.shape[2:])
    return made.astype(kernel.dtype)


def _along(x: Array, matrix: np.ndarray, axis: int) -> Array:
    """A matrix times an axis, by sums of arrays: products with so few columns are slow."""
    parts = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    return jnp.stack(_combined(matrix, parts), axis)


def by_phase(x: Float[Array, "batch h w in"], filters: Array) -> Float[Array, "batch 2*h 2*w out"]:
    """Four 2×2 convolutions, of which each gives the pixels of one phase."""
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def phase(a: int, b: int) -> Array:
        return plain(x[:, a : a + height + 1, b : b + width + 1], filters[a, b], padding=0)

    rows = [jnp.stack([phase(a, 0), phase(a, 1)], 3) for a in (0, 1)]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)


def tiled(
    x: Float[Array, "batch h w in"], filters: Float[Array, points in out], side: int
) -> Float[Array, "batch h w out"]:
    """The convolution by Winograd's tiles."""
    b, _, a = _TILES[side]
    batch, height, width, features = x.shape
    rows, columns = -(-height // side), -(-width // side)
    size = side + 2
    bottom, right = rows * side - height + 1, columns * side - width + 1
    # Else XLA fuses what makes the picture with the tiles, and makes each pixel once for each of them.
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, bottom), (1, right), (0, 0))))

    def cut(x: Array, axis: int, count: int) -> list[Array]:
        """Of each tile the pixels of one place along an axis, for each place."""
        stop = side * (count - 1) + 1
        return [jax.lax.slice_in_dim(x, i, i + stop, side, axis) for i in range(size)]

    along_rows = jax.lax.optimization_barrier(jnp.stack(_combined(b, cut(x, 1, rows))))
    tiles = jnp.stack(_combined(b, cut(along_rows, 3, columns)))
    stacked = tiles.reshape(size * size, batch * rows * columns, features)
    products = jnp.matmul(stacked, filters).reshape(size, size, batch, rows, columns, -1)
    lines = jnp.stack(_combined(a, list(products)), 4).reshape(size, batch, rows, columns * side, -1)
    lines = jax.lax.optimization_barrier(lines)
    picture = jnp.stack(_combined(a, list(lines)), 2).reshape(batch, rows * side, columns * side, -1)
    return picture[:, :height, :width]


def _combined(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """The matrix times a vector of arrays, by additions alone where its numbers are 1 and -1."""
    found: list[Array] = []
    for row in matrix:
        terms: list[Any] = [
            part if weight == 1 else -part if weight == -1 else weight * part
            for weight, part in zip(row.tolist(), parts, strict=True)
            if not math.isclose(weight, 0, abs_tol=1e-9)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        found.append(total)
    return found
