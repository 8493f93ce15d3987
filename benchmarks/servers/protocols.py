"""The bodies of requests in each protocol, and the tensors in the answers.

Each body asks for one row. `json` is what people write by hand; `v2-json` and `v2-binary` are the Open
Inference Protocol's two forms; `v2-raw` is the second with no JSON in the request at all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import digits  # the folder above has it

PROTOCOLS = ("json", "v2-json", "v2-binary", "v2-raw")
ENDPOINTS = ("encode", "generate")
LENGTH = "Inference-Header-Content-Length"
OUTPUTS = {"encode": ("mean", "log_var"), "generate": ("x",)}
BODIES = 32  # distinct ones, so that nothing can cache


class Requests(NamedTuple):
    """Headers, the same for all, and bodies to send in turn."""

    headers: Mapping[str, str]
    bodies: tuple[bytes, ...]


def rows(endpoint: str, count: int = BODIES) -> tuple[str, np.ndarray]:
    """An endpoint's input name and `count` rows of it, [count, 1, ...]: real digits, or temperatures."""
    if endpoint == "encode":
        return "x", digits(count)[:, None]
    return "temperature", np.linspace(0.5, 1.0, count, dtype=np.float32)[:, None]


def bodies(protocol: str, endpoint: str, *, shape: tuple[int, ...] | None = None) -> Requests:
    """The requests of a protocol.

    Args:
        protocol: One of `PROTOCOLS`.
        endpoint: One of `ENDPOINTS`.
        shape: Of the input tensor where the server wants another than the row's own.
    """
    name, batches = rows(endpoint)
    shapes = [list(shape or batch.shape) for batch in batches]
    if protocol == "json":
        values: Iterable[object] = map(_decimals, batches)
        if endpoint == "generate":
            values = (value for (value,) in map(_decimals, batches))
        return _json([{name: value} for value in values])
    if protocol == "v2-raw":
        raw = tuple(batch.tobytes() for batch in batches)
        return Requests({"Content-Type": "application/octet-stream", LENGTH: "0"}, raw)
    tensors = [{"name": name, "shape": shape, "datatype": "FP32"} for shape in shapes]
    if protocol == "v2-json":
        return _json(
            [
                {"inputs": [{**tensor, "data": _decimals(batch)}]}
                for tensor, batch in zip(tensors, batches, strict=True)
            ]
        )
    heads = [
        json.dumps(
            {
                "inputs": [{**tensor, "parameters": {"binary_data_size": batch.nbytes}}],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        for tensor, batch in zip(tensors, batches, strict=True)
    ]
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(heads[0]))}
    return Requests(
        headers, tuple(head + batch.tobytes() for head, batch in zip(heads, batches, strict=True))
    )


def answer(headers: Mapping[str, str], body: bytes) -> dict[str, np.ndarray]:
    """The output tensors in an answer of any protocol, flat float32; `headers` ignores case."""
    length = headers.get(LENGTH)
    content = json.loads(body if length is None else body[: int(length)])
    if "outputs" not in content:
        return {name: np.asarray(values, np.float32).ravel() for name, values in content.items()}
    offset = int(length or 0)
    tensors = {}
    for output in content["outputs"]:
        if "data" in output:
            tensors[output["name"]] = np.asarray(output["data"], np.float32).ravel()
            continue
        size = output["parameters"]["binary_data_size"]
        tensors[output["name"]] = np.frombuffer(body[offset : offset + size], np.float32)
        offset += size
    return tensors


def _json(contents: list[dict[str, object]]) -> Requests:
    return Requests(
        {"Content-Type": "application/json"}, tuple(json.dumps(content).encode() for content in contents)
    )


def _decimals(batch: np.ndarray) -> list[float]:
    """Flat, with no more decimals than float32 needs."""
    return [float(str(value)) for value in batch.ravel()]
