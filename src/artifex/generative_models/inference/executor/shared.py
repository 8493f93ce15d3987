"""The executors that calls on the same model share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.sharding import Mesh

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sharding import Shard, shard_identity
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.settings import powers_up_to

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_shared: dict[int, dict[Hashable, Executor]] = {}  # by the identity of the model: some are not hashable
_shared_lock = threading.Lock()


def executor_for(
    model: Model | Executor,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    shard: Shard | None = None,
    dtype: DTypeLike | None = None,
) -> Executor:
    """The executor that calls on the same model share, so that none compiles twice.

    It lives as long as the model; a model that has no weak references, such as a dict, gets one of its own.

    Args:
        model: A model with endpoints; an executor is returned as it is.
        batch_size: The largest batch; smaller ones are powers of two. None, and what is not named here, is as
            for `Executor`.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size: expected a positive integer, got {batch_size!r}")
    if isinstance(model, Executor):
        return model
    batch_sizes = None if batch_size is None else powers_up_to(batch_size)
    settings = batch_size, mesh, shard_identity(shard), None if dtype is None else jnp.dtype(dtype)
    with _shared_lock:
        executors = _executors_of(model)
        if settings not in executors:
            executors[settings] = Executor(
                model, mesh=mesh, shard=shard, batch_sizes=batch_sizes, dtype=dtype
            )
        return executors[settings]


def forget_executors(model: Model) -> None:
    """Has the next call on a model make a new executor, such as after tuning."""
    with _shared_lock:
        _shared.pop(id(model), None)


def _executors_of(model: Any) -> dict[Hashable, Executor]:
    executors = _shared.get(id(model))
    if executors is None:
        try:
            weakref.finalize(model, _shared.pop, id(model), None).atexit = False
        except TypeError:
            return {}
        executors = _shared[id(model)] = {}
    return executors
