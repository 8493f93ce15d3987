"""What the rows of a job depend on, so that only the same job resumes it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np

from artifex import __version__
from artifex.generative_models.core.processes import whole
from artifex.generative_models.inference.pipeline import InferencePipeline


def job_identity(pipeline: InferencePipeline, endpoint: str, dtype: str | None) -> dict[str, Any]:
    """What the rows that an endpoint gives depend on, besides their inputs and keys, as JSON takes it.

    Args:
        pipeline: The model.
        endpoint: Name of the endpoint.
        dtype: Dtype of the computation.
    """
    mesh = pipeline.executor.mesh
    return {
        "model": model_digest(pipeline),
        "batch_size": pipeline.rows_per_batch(endpoint),
        "tuned": repr(pipeline.executor.tuned.get(endpoint)),
        "devices": 1 if mesh is None else mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "compute_dtype": dtype,
        "artifex": __version__,
        "jax": jax.__version__,
    }


def model_digest(pipeline: InferencePipeline) -> str:
    """A digest of the model's config, metadata and weights."""
    digest = hashlib.sha256(json.dumps([pipeline.config, pipeline.metadata], sort_keys=True).encode())
    for leaf in pipeline.executor.weights:
        digest.update(np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
