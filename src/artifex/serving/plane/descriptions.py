"""What a server tells of itself and its models: metadata, configurations and statistics.

What is told of one model raises `NotFoundError` and `NotReadyError` as `DataPlane.find` does.
"""

from __future__ import annotations

from typing import Any

from artifex import __version__
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import LoadedModel

EXTENSIONS = ["binary_tensor_data", "generate", "model_repository", "schedule_policy", "statistics"]
PLATFORM = "jax"


def server_metadata() -> dict[str, Any]:
    """Of the server."""
    return {"name": "artifex", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(plane: DataPlane, model: str, version: str = "") -> dict[str, Any]:
    """Of a model, as the protocol has it."""
    loaded, endpoint = plane.find(model, version)
    inputs, outputs = endpoint.tensors
    return {
        "name": model,
        "versions": [loaded.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": outputs,
    }


def model_config(plane: DataPlane, model: str, version: str = "") -> dict[str, Any]:
    """Of a model, as Triton's clients ask for it; shapes without the axis of rows."""
    loaded, endpoint = plane.find(model, version)
    inputs, outputs = ([_config(tensor) for tensor in tensors] for tensors in endpoint.tensors)
    for tensor in inputs:
        tensor["optional"] = endpoint.is_optional(tensor["name"])
    return {
        "name": model,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": plane.max_rows,
        "input": inputs,
        "output": outputs,
        "dynamic_batching": {"preferred_batch_size": [loaded.executor.batch_sizes_of(endpoint.name)[-1]]},
    }


def statistics(plane: DataPlane, model: str = "", version: str = "") -> dict[str, Any]:
    """Of one model or all since they were loaded, as the statistics extension has it: summed nanoseconds."""
    if model:
        loaded, endpoint = plane.find(model, version)
        return {"model_stats": [_statistics(model, loaded, endpoint.name)]}
    return {
        "model_stats": [
            _statistics(f"{name}.{endpoint}", entry.loaded, endpoint)
            for name, entry in plane.repository.entries.items()
            if entry.loaded is not None
            for endpoint in entry.loaded.endpoints
        ]
    }


def _config(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = {"BYTES": "STRING"}.get(tensor["datatype"], tensor["datatype"])
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": tensor["shape"][1:] or [1]}


def _statistics(name: str, loaded: LoadedModel, endpoint: str) -> dict[str, Any]:
    stats = loaded.counters()[endpoint]

    def total(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": int(1e9 * seconds)}

    return {
        "name": name,
        "version": loaded.version,
        "last_inference": loaded.last_inference,
        "inference_count": stats.rows,
        "execution_count": stats.batches,
        "inference_stats": {
            "success": total(stats.requests, stats.request_seconds),
            "fail": total(stats.failed + stats.expired + stats.overloaded, 0.0),
            "queue": total(stats.requests, stats.queue_seconds),
            "compute_input": total(stats.requests, stats.input_seconds),
            "compute_infer": total(stats.requests, stats.infer_seconds),
            "compute_output": total(stats.requests, stats.output_seconds),
        },
        "batch_stats": [],
    }
