"""What lies between two vectors: on the line from one to the other, or on the arc.

Both are of NumPy arrays or of JAX arrays, whichever they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float

_LEAST_SINE = 1e-4  # of the angle between vectors, under which they are taken to be on one line


def linear(
    x: Float[Any, "rows ..."], y: Float[Any, "rows ..."], weight: Float[Any, " rows"]
) -> Float[Any, "rows ..."]:
    """What is between x at weight 0 and y at 1, along the line: (1 - w) x + w y, row by row."""
    return _wide(1 - weight, x) * x + _wide(weight, y) * y


def spherical(
    x: Float[Any, "rows ..."], y: Float[Any, "rows ..."], weight: Float[Any, " rows"]
) -> Float[Any, "rows ..."]:
    """What is between x at weight 0 and y at 1, along the arc from one to the other.

    sin((1 - w) angle) / sin(angle) x + sin(w angle) / sin(angle) y, row by row. Where there is no one arc, as
    between vectors of one direction, of opposite ones, or of no length, it is the straight line. What is
    between vectors of one length has that length, as draws of many normal numbers have.

    References:
        Shoemake, *Animating rotation with quaternion curves*, 1985, section 3.3.
        https://doi.org/10.1145/325334.325242
        White, *Sampling generative networks*, 2016, section 2.1. https://arxiv.org/abs/1609.04468
    """
    xp = x.__array_namespace__()
    one, other = (_directions(rows, xp) for rows in (x, y))
    # By its half, since the cosine of small angles is 1 in float32.
    angle = 2 * xp.arctan2(xp.linalg.norm(one - other, axis=1), xp.linalg.norm(one + other, axis=1))
    sine = xp.sin(angle)
    has_arc = (sine > _LEAST_SINE) & xp.any(one != 0, axis=1) & xp.any(other != 0, axis=1)
    safe = xp.where(has_arc, sine, xp.ones_like(sine))
    of_x = xp.where(has_arc, xp.sin((1 - weight) * angle) / safe, 1 - weight)
    of_y = xp.where(has_arc, xp.sin(weight * angle) / safe, weight)
    return _wide(of_x, x) * x + _wide(of_y, y) * y


Between = Callable[[Any, Any, Any], Any]
MODES: Mapping[str, Between] = MappingProxyType({"linear": linear, "spherical": spherical})


def _wide(weight: Any, like: Any) -> Any:
    """One number a row, to be multiplied with rows of a shape."""
    return weight.reshape(-1, *[1] * (like.ndim - 1))


def _directions(rows: Any, xp: Any) -> Any:
    """Vectors [rows, size] of length 1; none stays none."""
    flat = rows.reshape(len(rows), -1)
    length = xp.linalg.norm(flat, axis=1, keepdims=True)
    return flat / xp.where(length > 0, length, xp.ones_like(length))
