"""Weights from safetensors files into a model, each straight to where it will live.

Files are read in the order of the disk by two threads, of which one reads while the other checks, turns and
places, and never with more than a few arrays under way. So a model of gigabytes takes little more memory than
its weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.casting import cast
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import CheckpointCorruptError, CheckpointMismatchError
from artifex.generative_models.core.sharding import WeightLayout
from artifex.generative_models.inference.formats.safetensors import StoredArray

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike
    from numpy.typing import NDArray

    from artifex.generative_models.core.published import PublishedWeight

M = TypeVar("M", bound="nnx.Module")

_THREADS = 2
_UNDER_WAY_BYTES = 32 << 20  # of arrays that are read and not yet placed, but one at least
_EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(jnp.bfloat16): 0x7F80}


def restored(
    template: M,
    stored: Mapping[str, StoredArray],
    weights: Mapping[str, PublishedWeight],
    where: str,
    *,
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | WeightLayout | None = None,
) -> M:
    """A model with the weights that files hold.

    Args:
        template: The model without weights.
        stored: What files hold, by name.
        weights: What the model is made of, by the same names.
        where: What to call the files in an error.
        dtype: Of floating-point weights; None is that of the model.
        sharding: Where the weights go, all or each; None is the default device.

    Raises:
        CheckpointMismatchError: Weights are missing, left over or of another shape; all of them are listed.
        CheckpointCorruptError: A file ends too early, or a weight is not finite.
    """
    from flax import nnx

    graphdef, state = nnx.split(template)
    variables = dict(nnx.to_flat_state(state))
    _check(stored, weights, {path: tuple(leaf.shape) for path, leaf in variables.items()}, where)
    budget = _Budget(_UNDER_WAY_BYTES)

    def place(name: str) -> None:
        path, axes = weights[name]
        leaf = variables[path]
        wanted = leaf.dtype if dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating) else dtype
        names = leaf.get_metadata().get("out_sharding") or ()
        with budget.spent(stored[name].num_bytes):
            values = stored[name].read()
            if not _is_finite(values):
                raise CheckpointCorruptError(f"{where}: {name} holds a NaN or an infinity")
            turned = cast(values if axes is None else values.transpose(axes), wanted)
            variables[path] = leaf.replace(_placed(turned, sharding, names))

    in_order = sorted(weights, key=lambda name: (stored[name].path, stored[name].offset))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifex-weights") as threads:
        tasks = [threads.submit(place, name) for name in in_order]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return nnx.merge(graphdef, nnx.from_flat_state(variables))


class _Budget:
    """Bytes that threads may have under way together."""

    def __init__(self, limit: int):
        self._left = self._limit = limit
        self._changed = threading.Condition()

    @contextmanager
    def spent(self, num_bytes: int) -> Iterator[None]:
        """Waits until there are so many, or until nobody else has any."""
        taken = min(num_bytes, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()


def _placed(
    values: NDArray[Any], sharding: jax.sharding.Sharding | WeightLayout | None, names: tuple[str | None, ...]
) -> jax.Array:
    if sharding is None:
        placed = jax.device_put(values, DeviceManager().default_device)
    else:
        place = sharding.sharding(values.shape, names) if isinstance(sharding, WeightLayout) else sharding
        placed = jax.make_array_from_callback(values.shape, place, lambda part: values[part])
    return placed.block_until_ready()  # so that what was read is given back before more is


def _check(
    stored: Mapping[str, StoredArray],
    weights: Mapping[str, PublishedWeight],
    shapes: Mapping[tuple[Any, ...], tuple[int, ...]],
    where: str,
) -> None:
    wanted = {}
    for name, (path, axes) in weights.items():
        shape = shapes[path]
        wanted[name] = shape if axes is None else tuple(shape[axes.index(axis)] for axis in range(len(axes)))
    unlike = [
        f"{name} is {list(stored[name].shape)} where the model has {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    numbers = [
        f"{name} is {stored[name].dtype}, not floating-point"
        for name in sorted(wanted.keys() & stored.keys())
        if not jnp.issubdtype(stored[name].dtype, jnp.floating)
    ]
    differences = {
        "missing": sorted(wanted.keys() - stored.keys()),
        "left over": sorted(stored.keys() - wanted.keys()),
        "of another shape": unlike,
        "of another dtype": numbers,
    }
    if found := [f"{what}: {', '.join(names)}" for what, names in differences.items() if names]:
        raise CheckpointMismatchError(f"{where} does not fit the model:\n  " + "\n  ".join(found))


def _is_finite(values: NDArray[Any]) -> bool:
    """Whether all are; by one pass over them that makes no array of their size where that can be told so."""
    flat = values.reshape(-1)
    exponent = _EXPONENTS.get(values.dtype)
    if exponent is not None:
        bits = flat.view(np.uint16)
        step = 1 << 20
        parts = (bits[i : i + step] & exponent for i in range(0, len(bits), step))
        return all(part.max(initial=0) < exponent for part in parts)
    if values.dtype.kind != "f":  # of 8 bits
        return bool(np.isfinite(flat.astype(np.float32)).all())
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())
