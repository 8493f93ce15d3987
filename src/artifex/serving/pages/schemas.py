"""JSON schemas of what the server reads and writes, for its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from artifex.generative_models.core.endpoint import TensorSpec
from artifex.generative_models.inference.images import is_picture
from artifex.serving.pages.examples import needed_inputs
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.tensors import DTYPES

Json = dict[str, Any]

_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}
_VALUE: Json = {"type": ["string", "number", "boolean"]}
_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_SEED: Json = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_SIZES: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_DATA: Json = {"type": "array", "description": "Elements, row-major, nested or flat."}


def ref(name: str) -> Json:
    """A schema of the document, by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _array_of(items: Json) -> Json:
    return {"type": "array", "items": items}


def object_of(
    properties: Json, required: Sequence[str] | None = None, *, closed: bool = False, about: str = ""
) -> Json:
    """The schema of an object.

    Args:
        properties: Schemas by name.
        required: Names that must be there; None is all.
        closed: Whether other names are refused.
        about: A sentence.
    """
    schema: Json = {"type": "object", "properties": properties}
    schema["required"] = [*properties] if required is None else [*required]
    if closed:
        schema["additionalProperties"] = False
    return {**schema, "description": about} if about else schema


def generate_request(endpoint: ServedEndpoint, max_rows: int) -> Json:
    """The JSON body of generate for one endpoint."""
    properties: Json = {name: _input(spec) for name, spec in endpoint.inputs.items()}
    for name, value in generate_options(endpoint, max_rows).items():
        properties.setdefault(name, value)
    if endpoint.draws:
        properties["seed"] = _one_or_many(_SEED, "Of all rows, or one for each; a random one by default.")
    names: Json = {"type": "string", "enum": [*endpoint.outputs]}
    properties["outputs"] = {**_array_of(names), "description": "Which outputs; all by default."}
    properties["id"] = {**_TEXT, "description": "Comes back with the response."}
    properties["timeout"] = {**_COUNT, "description": "Microseconds to wait in the queue; 0 is the server's."}
    properties["priority"] = {**_COUNT, "description": "Taken, and all are alike."}
    properties["parameters"] = {"type": "object", "description": "May hold what is no input."}
    return object_of(properties, needed_inputs(endpoint), closed=True, about=endpoint.doc)


def generate_options(endpoint: ServedEndpoint, max_rows: int) -> Json:
    """The values besides tensors that generate takes, in its body or the query string."""
    options: Json = {
        "num_samples": {"type": "integer", "minimum": 1, "maximum": max_rows, "description": "Rows."}
    }
    if endpoint.draws:
        options["seed"] = {**_SEED, "description": "Of all rows; a random one by default."}
    if endpoint.picture_inputs:
        about = "Resizes picture files; those of another size are refused otherwise."
        options["resize"] = {"type": "boolean", "default": False, "description": about}
    for name, spec in endpoint.inputs.items():
        if spec.shape == ():
            options[name] = _described(_element(spec), spec)
    for name, default in endpoint.options.items():
        kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
        kind = kinds.get(type(default))
        options[name] = {"type": kind, "default": default} if kind else {}
    return options


def generate_response(endpoint: ServedEndpoint) -> Json:
    """The JSON that generate answers with for one endpoint."""
    outputs = {name: _output(spec) for name, spec in endpoint.outputs.items()}
    return object_of({**_ORIGIN, **outputs}, ["model_name", "model_version"])


def _input(spec: TensorSpec) -> Json:
    """An input: rows, or one row without its axis; pictures also as files."""
    schema = _one_or_many(_nested(_element(spec), spec), spec.doc)
    if is_picture(spec):
        file = {"type": "string", "description": "A PNG, JPEG, WebP or BMP file in base64."}
        schema["anyOf"] += [file, {**_array_of(file), "minItems": 1}]
    return _described(schema, spec)


def _output(spec: TensorSpec) -> Json:
    """Rows of an output; JSON has no infinity and no NaN, so null stands for them."""
    element = _element(spec)
    if element["type"] == "number":
        element = {"type": ["number", "null"]}
    return _array_of(_nested(element, spec))


def _one_or_many(schema: Json, about: str) -> Json:
    return {"description": about, "anyOf": [{**_array_of(schema), "minItems": 1}, schema]}


def _nested(schema: Json, spec: TensorSpec) -> Json:
    for size in reversed(spec.shape):
        schema = {**_array_of(schema), "minItems": size, "maxItems": size}
    return schema


def _element(spec: TensorSpec) -> Json:
    dtype = np.dtype(spec.dtype)
    schema: Json = {"type": _KINDS.get(dtype.kind, "number")}  # bfloat16 is of a kind of its own
    if dtype.kind in "iu":
        schema |= {"minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}
    return schema


def _described(schema: Json, spec: TensorSpec) -> Json:
    about = {"description": spec.doc} if spec.doc else {}
    return {**schema, **about, **({} if spec.default is None else {"default": spec.default})}


_ORIGIN: Json = {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "seed": _SEED}
_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_BINARY_SIZE: Json = {**_COUNT, "description": "Bytes after the JSON, in place of data."}

SCHEMAS: Json = {
    "Error": object_of({"error": _TEXT}, about="What is wrong, and what to do."),
    "Ready": object_of({"ready": {"type": "boolean"}}),
    "ModelReady": object_of({"name": _TEXT, "ready": {"type": "boolean"}}),
    "Server": object_of({"name": _TEXT, "version": _TEXT, "extensions": _array_of(_TEXT)}),
    "Datatype": {"type": "string", "enum": [*DTYPES]},
    "TensorMetadata": object_of(
        {"name": _TEXT, "datatype": ref("Datatype"), "shape": _array_of({"type": "integer", "minimum": -1})},
        about="A tensor; -1 in its shape is any number of rows.",
    ),
    "Model": object_of(
        {
            "name": _TEXT,
            "versions": _array_of(_TEXT),
            "platform": _TEXT,
            "inputs": _array_of(ref("TensorMetadata")),
            "outputs": _array_of(ref("TensorMetadata")),
        }
    ),
    "TensorConfig": object_of(
        {"name": _TEXT, "data_type": _TEXT, "dims": _SIZES, "optional": {"type": "boolean"}},
        ["name", "data_type", "dims"],
    ),
    "ModelConfig": object_of(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "max_batch_size": _COUNT,
            "input": _array_of(ref("TensorConfig")),
            "output": _array_of(ref("TensorConfig")),
            "dynamic_batching": object_of({"preferred_batch_size": _SIZES}),
        },
        about="As Triton's clients ask for it; shapes are those of one row.",
    ),
    "Duration": object_of({"count": _COUNT, "ns": _COUNT}, about="Events, and nanoseconds in all."),
    "ModelStatistics": object_of(
        {
            "name": _TEXT,
            "version": _TEXT,
            "last_inference": {**_COUNT, "description": "Milliseconds since 1970; 0 is never."},
            "inference_count": {**_COUNT, "description": "Rows."},
            "execution_count": {**_COUNT, "description": "Batches."},
            "inference_stats": object_of({name: ref("Duration") for name in _TIMES}),
            "batch_stats": _array_of({"type": "object"}),
        }
    ),
    "Statistics": object_of({"model_stats": _array_of(ref("ModelStatistics"))}),
    "IndexEntry": object_of(
        {
            "name": _TEXT,
            "version": {**_TEXT, "description": "Empty where none is loaded."},
            "state": {"type": "string", "enum": ["UNAVAILABLE", "LOADING", "READY"]},
            "reason": {**_TEXT, "description": "Why it is not ready."},
        }
    ),
    "Index": _array_of(ref("IndexEntry")),
    "InputTensor": object_of(
        {
            "name": _TEXT,
            "shape": _SIZES,
            "datatype": ref("Datatype"),
            "parameters": object_of({"binary_data_size": _BINARY_SIZE}, [], closed=True),
            "data": _DATA,
        },
        ["name", "shape", "datatype"],
        closed=True,
    ),
    "RequestedOutput": object_of(
        {"name": _TEXT, "parameters": object_of({"binary_data": {"type": "boolean"}}, [], closed=True)},
        ["name"],
        closed=True,
    ),
    "InferRequest": object_of(
        {
            "id": {**_TEXT, "description": "Comes back with the response."},
            "parameters": {
                "type": "object",
                "additionalProperties": _VALUE,
                "description": "seed, num_samples, timeout (microseconds), priority, binary_data_output, "
                "and the options of the endpoint.",
            },
            "inputs": _array_of(ref("InputTensor")),
            "outputs": {**_array_of(ref("RequestedOutput")), "description": "Which; all by default."},
        },
        [],
        closed=True,
    ),
    "OutputTensor": object_of(
        {
            "name": _TEXT,
            "shape": _SIZES,
            "datatype": ref("Datatype"),
            "parameters": object_of({"binary_data_size": _BINARY_SIZE}),
            "data": _DATA,
        },
        ["name", "shape", "datatype"],
    ),
    "InferResponse": object_of(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": {"type": "object", "additionalProperties": _VALUE},
            "outputs": _array_of(ref("OutputTensor")),
        },
        ["model_name", "outputs"],
    ),
    "GenerateRequest": {
        "type": "object",
        "description": "Inputs and parameters of the endpoint by name; see the paths of the single models.",
    },
    "GenerateResponse": object_of(
        _ORIGIN, ["model_name", "model_version"], about="The outputs are there by name, nested."
    ),
}
