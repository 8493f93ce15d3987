"""JSON schemas of what the server reads and writes, for its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.inference.images import is_picture
from artifex.serving.pages.examples import needed_fields, needed_inputs
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.seeds import MAX_SEED
from artifex.serving.plane.tensors import DTYPES

Json = dict[str, Any]

_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}  # of dtypes
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
OBJECT: Json = {"type": "object"}
TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0}
_SEED: Json = {**COUNT, "maximum": MAX_SEED}


def ref(name: str) -> Json:
    """A schema of the document, by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(items: Json) -> Json:
    """The schema of a list."""
    return {"type": "array", "items": items}


def described(schema: Json, about: str) -> Json:
    """A schema with a sentence, where there is one."""
    return {**schema, "description": about} if about else schema


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
    names = [*properties] if required is None else [*required]
    schema = {**OBJECT, "properties": properties, "required": names}
    return described({**schema, "additionalProperties": False} if closed else schema, about)


def generate_request(endpoint: ServedEndpoint, max_rows: int) -> Json:
    """The JSON body of generate for one endpoint."""
    inputs = {name: _input(spec) for name, spec in endpoint.inputs.items()}
    fields = {name: _one_or_many(_of_field(field), field.doc) for name, field in endpoint.fields.items()}
    properties = {**inputs, **generate_options(endpoint, max_rows), **inputs, **fields}
    if endpoint.draws:
        properties["seed"] = _one_or_many(_SEED, "Of all rows, or one for each; a random one by default.")
    names = array_of({**TEXT, "enum": [*endpoint.texts, *endpoint.outputs]})
    properties |= {
        "outputs": described(names, "Which outputs; all by default."),
        "id": _ID,
        "timeout": described(COUNT, "Microseconds to wait in the queue; 0 is the server's."),
        "priority": described(COUNT, "Taken, and all are alike."),
        "parameters": described(OBJECT, "May hold what is no input."),
    }
    needed = [*needed_inputs(endpoint), *needed_fields(endpoint)]
    return object_of(properties, needed, closed=True, about=endpoint.doc)


def generate_options(endpoint: ServedEndpoint, max_rows: int) -> Json:
    """The values besides tensors that generate takes, in its body or the query string."""
    options = {"num_samples": described({"type": "integer", "minimum": 1, "maximum": max_rows}, "Rows.")}
    if endpoint.draws:
        options["seed"] = described(_SEED, "Of all rows; a random one by default.")
    if endpoint.picture_inputs:
        about = "Resizes picture files; those of another size are refused otherwise."
        options["resize"] = described({**FLAG, "default": False}, about)
    if endpoint.picture_outputs:
        about = "The form of pictures in JSON: nested numbers, or a PNG each, as a data URL."
        options["pictures"] = described({"enum": ["numbers", "png"], "default": "numbers"}, about)
    for name, spec in endpoint.inputs.items():
        if spec.shape == ():
            options[name] = _of_spec(_element(spec), spec)
    options |= {name: _of_field(field) for name, field in endpoint.fields.items()}
    for name, option in endpoint.options.items():
        kind = _TYPES.get(type(option.default))
        options[name] = described({"type": kind, **_stated(option)}, option.doc) if kind else {}
    return options


def generate_response(endpoint: ServedEndpoint) -> Json:
    """The JSON that generate answers with for one endpoint."""
    outputs = {name: array_of(TEXT) for name in endpoint.texts}
    outputs |= {name: _output(spec) for name, spec in endpoint.outputs.items()}
    return object_of({**_ORIGIN, **outputs}, [*_NAMED])


def _input(spec: TensorSpec) -> Json:
    """An input: rows, or one row without its axis; pictures also as files."""
    schema = _one_or_many(_nested(_element(spec), spec), spec.doc)
    if is_picture(spec):
        file = described(TEXT, "A PNG, JPEG, WebP or BMP file in base64.")
        schema["anyOf"] += [file, {**array_of(file), "minItems": 1}]
    return _of_spec(schema, spec)


def _output(spec: TensorSpec) -> Json:
    """Rows of an output; JSON has no infinity and no NaN, so null stands for them. A picture may be a PNG."""
    element = _element(spec)
    if element["type"] == "number":
        element = {"type": ["number", "null"]}
    row = _nested(element, spec)
    return array_of({"anyOf": [row, TEXT]} if is_picture(spec) else row)


def _one_or_many(schema: Json, about: str) -> Json:
    return {"description": about, "anyOf": [{**array_of(schema), "minItems": 1}, schema]}


def _nested(schema: Json, spec: TensorSpec) -> Json:
    for size in reversed(spec.shape):
        schema = {**array_of(schema), "minItems": size, "maxItems": size}
    return schema


def _element(spec: TensorSpec) -> Json:
    dtype = np.dtype(spec.dtype)
    schema: Json = {"type": _KINDS.get(dtype.kind, "number")}  # bfloat16 is of a kind of its own
    if dtype.kind in "iu":
        schema |= dict(zip(("minimum", "maximum"), spec.limits, strict=True))
    return schema


def _of_field(field: Field) -> Json:
    """One value of a field."""
    above = {} if field.above is None else {"exclusiveMinimum": field.above}
    return described({"type": _TYPES[field.kind], **_stated(field), **above}, field.doc)


def _stated(of: Field | Option) -> Json:
    """What is stated of the values that something may have."""
    facts = {"default": of.default, "minimum": of.minimum, "maximum": of.maximum, "enum": of.choices}
    return {key: value for key, value in facts.items() if value is not None}


def _of_spec(schema: Json, spec: TensorSpec) -> Json:
    return described(schema if spec.default is None else {**schema, "default": spec.default}, spec.doc)


_ID = described(TEXT, "Comes back with the response.")
_NAMED: Json = {"model_name": TEXT, "model_version": TEXT}
_ORIGIN: Json = {**_NAMED, "id": TEXT, "seed": _SEED}
_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_SIZES = array_of(COUNT)
_TENSORS = array_of(ref("TensorMetadata"))
_CONFIGS = array_of(ref("TensorConfig"))
_TENSOR: Json = {"name": TEXT, "shape": _SIZES, "datatype": ref("Datatype")}
_DATA: Json = {"type": "array", "description": "Elements, row-major, nested or flat."}
_BINARY_SIZE: Json = {"binary_data_size": described(COUNT, "Bytes after the JSON, in place of data.")}
_VALUES: Json = {**OBJECT, "additionalProperties": {"type": ["string", "number", "boolean"]}}
_PARAMETERS = (
    "seed, num_samples, timeout (microseconds), priority, binary_data_output, "
    "and the fields and options of the endpoint."
)

SCHEMAS: Json = {
    "Error": object_of({"error": TEXT}, about="What is wrong, and what to do."),
    "Ready": object_of({"ready": FLAG}),
    "ModelReady": object_of({"name": TEXT, "ready": FLAG}),
    "Server": object_of({"name": TEXT, "version": TEXT, "extensions": array_of(TEXT)}),
    "Datatype": {**TEXT, "enum": [*DTYPES]},
    "TensorMetadata": object_of(
        {"name": TEXT, "datatype": ref("Datatype"), "shape": array_of({"type": "integer", "minimum": -1})},
        about="A tensor; -1 in its shape is any number of rows.",
    ),
    "Model": object_of(
        {"name": TEXT, "versions": array_of(TEXT), "platform": TEXT, "inputs": _TENSORS, "outputs": _TENSORS}
    ),
    "TensorConfig": object_of(
        {"name": TEXT, "data_type": TEXT, "dims": _SIZES, "optional": FLAG}, ["name", "data_type", "dims"]
    ),
    "ModelConfig": object_of(
        {
            **dict.fromkeys(("name", "platform", "backend"), TEXT),
            "max_batch_size": COUNT,
            "input": _CONFIGS,
            "output": _CONFIGS,
            "dynamic_batching": object_of({"preferred_batch_size": _SIZES}),
        },
        about="As Triton's clients ask for it; shapes are those of one row.",
    ),
    "Duration": object_of({"count": COUNT, "ns": COUNT}, about="Events, and nanoseconds in all."),
    "ModelStatistics": object_of(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": described(COUNT, "Milliseconds since 1970; 0 is never."),
            "inference_count": described(COUNT, "Rows."),
            "execution_count": described(COUNT, "Batches."),
            "inference_stats": object_of(dict.fromkeys(_TIMES, ref("Duration"))),
            "batch_stats": array_of(OBJECT),
        }
    ),
    "Statistics": object_of({"model_stats": array_of(ref("ModelStatistics"))}),
    "IndexEntry": object_of(
        {
            "name": TEXT,
            "version": described(TEXT, "Empty where none is loaded."),
            "state": {**TEXT, "enum": ["UNAVAILABLE", "LOADING", "READY"]},
            "reason": described(TEXT, "Why it is not ready."),
        }
    ),
    "Index": array_of(ref("IndexEntry")),
    "StudioControl": object_of(
        {
            "name": TEXT,
            "kind": {
                **TEXT,
                "enum": ["integer", "number", "text", "choice", "flag", "picture", "vector", "seed"],
            },
            "default": described({}, "What holds where nobody says anything; null is that nothing does."),
            "minimum": {"type": ["number", "null"]},
            "maximum": {"type": ["number", "null"]},
            "choices": {"type": ["array", "null"]},
            "multiple": {"type": ["integer", "null"]},
            "doc": TEXT,
            "shape": described(_SIZES, "Of a row; empty for a scalar."),
            "is_needed": FLAG,
        }
    ),
    "StudioEndpoint": object_of(
        {
            "name": described(TEXT, "What requests call it."),
            "endpoint": described(TEXT, "Its name within its model."),
            "doc": TEXT,
            "draws": described(FLAG, "Whether it takes a seed."),
            "takes_steps": described(FLAG, "Whether streams have previews."),
            "max_rows": COUNT,
            "controls": array_of(ref("StudioControl")),
            "outputs": array_of(object_of({"name": TEXT, "shape": _SIZES, "is_picture": FLAG})),
        }
    ),
    "StudioModels": object_of(
        {
            "draining": FLAG,
            "max_rows": COUNT,
            "models": array_of(
                object_of(
                    {
                        **dict.fromkeys(("name", "version", "reason"), TEXT),
                        "state": {**TEXT, "enum": ["UNAVAILABLE", "LOADING", "READY"]},
                        "endpoints": array_of(ref("StudioEndpoint")),
                    }
                )
            ),
        }
    ),
    "InputTensor": object_of(
        {**_TENSOR, "parameters": object_of(_BINARY_SIZE, [], closed=True), "data": _DATA},
        [*_TENSOR],
        closed=True,
    ),
    "RequestedOutput": object_of(
        {"name": TEXT, "parameters": object_of({"binary_data": FLAG}, [], closed=True)}, ["name"], closed=True
    ),
    "InferRequest": object_of(
        {
            "id": _ID,
            "parameters": described(_VALUES, _PARAMETERS),
            "inputs": array_of(ref("InputTensor")),
            "outputs": described(array_of(ref("RequestedOutput")), "Which; all by default."),
        },
        [],
        closed=True,
    ),
    "OutputTensor": object_of({**_TENSOR, "parameters": object_of(_BINARY_SIZE), "data": _DATA}, [*_TENSOR]),
    "InferResponse": object_of(
        {**_NAMED, "id": TEXT, "parameters": _VALUES, "outputs": array_of(ref("OutputTensor"))},
        ["model_name", "outputs"],
    ),
    "GenerateRequest": described(
        OBJECT, "Inputs and parameters of the endpoint by name; see the paths of the single models."
    ),
    "GenerateResponse": object_of(_ORIGIN, [*_NAMED], about="The outputs are there by name, nested."),
}
