"""What the rows of a job depend on, so that only the same job resumes it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex import __version__
from artifex.generative_models.core.processes import whole
from artifex.generative_models.inference.executor.executor import Executor


def job_identity(executor: Executor, endpoint: str, batch_size: int, model: Any) -> dict[str, Any]:
    """What the rows that an endpoint gives depend on, besides their inputs and keys, as JSON takes it.

    Args:
        executor: Runs the job.
        endpoint: Name of the endpoint.
        batch_size: Rows a batch.
        model: The model's config and metadata, as JSON takes them.
    """
    return {
        "model": _digest(executor, model),
        "batch_size": batch_size,
        "tuned": repr(executor.tuned.get(endpoint)),
        "devices": 1 if executor.mesh is None else executor.mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "compute_dtype": None if executor.dtype is None else str(jnp.dtype(executor.dtype)),
        "artifex": __version__,
        "jax": jax.__version__,
    }


def _digest(executor: Executor, model: Any) -> str:
    """A digest of the model's config, metadata and weights."""
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
    for leaf in executor.weights:
        digest.update(np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
