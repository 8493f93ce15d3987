"""Requests that work as they are, for the OpenAPI document and the pages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint

_MAX_ELEMENTS = 64  # of a row that is written out


def all_endpoints(plane: DataPlane) -> dict[str, ServedEndpoint]:
    """The endpoints that are loaded, by `model.endpoint`, `generate` first.

    Without those whose name another model has: requests by that name go there.
    """
    entries = plane.repository.entries
    return {
        f"{name}.{endpoint.name}": endpoint
        for name, entry in entries.items()
        if entry.loaded is not None
        for endpoint in sorted(entry.loaded.endpoints.values(), key=lambda e: e.name != "generate")
        if f"{name}.{endpoint.name}" not in entries
    }


def needed_inputs(endpoint: ServedEndpoint) -> list[str]:
    """The inputs that a request cannot leave out."""
    return [name for name in endpoint.inputs if not endpoint.is_optional(name)]


def needed_fields(endpoint: ServedEndpoint) -> dict[str, Any]:
    """The fields that a request cannot leave out, and what they might be."""
    return {name: field.example for name, field in endpoint.fields.items() if field.example is not None}


def field_defaults(endpoint: ServedEndpoint) -> dict[str, Any]:
    """What is said where nobody says anything, as JSON takes it, and what cannot be left out."""
    defaults = {name: field.default for name, field in endpoint.fields.items() if field.default is not None}
    return needed_fields(endpoint) | defaults


def generate_example(endpoint: ServedEndpoint) -> dict[str, Any] | None:
    """A body for generate; None where an input is too long to read."""
    rows = _rows(endpoint)
    if rows is None:
        return None
    body: dict[str, Any] = {name: [row] for name, row in rows.items()}
    if not any(spec.shape for spec in endpoint.inputs.values()):
        body["num_samples"] = 1
    body |= field_defaults(endpoint)
    return {**body, "seed": 1} if endpoint.draws else body


def infer_example(endpoint: ServedEndpoint) -> dict[str, Any] | None:
    """A body for infer; None where an input is too long to read."""
    rows = _rows(endpoint)
    if rows is None:
        return None
    if endpoint.draws:
        rows["seed"] = 1
    rows |= field_defaults(endpoint)
    tensors = [tensor for tensor in endpoint.tensors[0] if tensor["name"] in rows]
    return {"inputs": [{**t, "shape": [1, *t["shape"][1:]], "data": [rows[t["name"]]]} for t in tensors]}


def _rows(endpoint: ServedEndpoint) -> dict[str, Any] | None:
    """A row for each input that is needed: of zeros, or of the least integer that it may be."""
    specs = {name: endpoint.inputs[name] for name in needed_inputs(endpoint)}
    if any(math.prod(spec.shape) > _MAX_ELEMENTS for spec in specs.values()):
        return None
    return {
        name: np.full(spec.shape, spec.minimum or 0, bool if np.dtype(spec.dtype) == bool else int).tolist()
        for name, spec in specs.items()
    }
