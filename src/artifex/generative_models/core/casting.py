"""Arrays in another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike


def cast(array: ArrayLike, dtype: DTypeLike) -> Any:
    """An array in another dtype: a NumPy array where the host can see it, else one on its devices.

    JAX would compile a program for each shape, which takes longer than to cast.
    """
    if isinstance(array, jax.Array) and array.is_fully_addressable and len(array.devices()) == 1:
        (device,) = array.devices()
        array = np.asarray(array) if device.platform == "cpu" else array
    if not isinstance(array, np.ndarray):
        return jnp.asarray(array, dtype)
    with np.errstate(over="ignore"):  # of what is infinite in the dtype
        return array.astype(dtype, copy=False)
