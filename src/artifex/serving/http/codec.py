"""Requests and responses of the Open Inference Protocol V2 as HTTP bodies.

A body is JSON, after which tensors may follow in binary form, in the order in which the JSON names them;
the header `Inference-Header-Content-Length` then tells where the JSON ends.

References:
    https://github.com/kserve/open-inference-protocol, `inference_rest.md`, and Triton's binary tensor
    data extension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.requests import (
    NO_EFFECT,
    InferRequest,
    InferResponse,
    Parameters,
    present,
    refuse_many,
    refuse_shared_memory,
    refuse_unknown,
)
from artifex.serving.plane.statuses import UnsupportedError
from artifex.serving.plane.tensors import (
    checked_shape,
    datatype_of,
    short,
    tensor_from_bytes,
    tensor_from_json,
    tensor_to_bytes,
)

_KEPT_HEADER_BYTES = 4096

Loads = Callable[[bytes], Any]
Dumps = Callable[[Any], bytes]


def dump_json(content: Any) -> bytes:
    """JSON of what may hold NumPy arrays."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(slots=True)
class OutputForm:
    """Which outputs a client wants in binary form: those that it names so, and by default the others."""

    default: bool = False
    by_name: dict[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Whether one output is wanted in binary form."""
        return self.by_name.get(name, self.default)


def decode_request(
    model: str, version: str, body: bytes, header_length: int | None, loads: Loads = orjson.loads
) -> tuple[InferRequest, OutputForm]:
    """A request from an HTTP body.

    Args:
        header_length: Bytes of its JSON, where tensors follow; None is all.
        loads: Parses JSON.

    Raises:
        InputError: It is not what the protocol says.
        UnsupportedError: It asks for shared memory or for classification.
    """
    if header_length is None:
        header, tail = body, memoryview(b"")
    elif 0 <= header_length <= len(body):
        header, tail = body[:header_length], memoryview(body)[header_length:]
    else:
        raise InputError(
            f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"
        )
    binary = header_length is not None and len(header) <= _KEPT_HEADER_BYTES
    said = _known_header(header) if binary else _parse_header(header, loads)
    inputs: dict[str, np.ndarray] = {}
    for name, datatype, shape, size, data in said.inputs:
        label = name[:100]
        if size is None:
            inputs[name] = tensor_from_json(label, datatype, shape, data)
            continue
        if type(size) is not int or not 0 <= size <= len(tail):
            raise InputError(f"input {label!r}: binary_data_size is {short(size)} of {len(tail)} bytes")
        inputs[name] = tensor_from_bytes(label, datatype, shape, tail[:size])
        tail = tail[size:]
    if len(tail):
        raise InputError(f"{len(tail)} bytes follow the last tensor")
    return InferRequest(model, version, said.id, inputs, dict(said.parameters), said.outputs), said.form


def encode_response(
    response: InferResponse, form: OutputForm, dumps: Dumps = dump_json
) -> tuple[list[Any], int | None]:
    """The HTTP body of a response.

    Args:
        dumps: Gives the JSON of what holds NumPy arrays.

    Returns:
        The parts of the body, and the bytes of its JSON where tensors follow.

    Raises:
        InputError: An output that has no form in JSON is not wanted in binary form.
    """
    outputs: list[dict[str, Any]] = []
    tensors: list[Any] = []
    for name, array in response.outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
        if form.is_binary(name):
            tensors.append(data := tensor_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(data)}
        elif entry["datatype"] == "BF16":
            raise InputError(f"output {name!r} is BF16, which has no form in JSON; ask for binary data")
        else:
            entry["data"] = array.tolist() if entry["datatype"] == "BYTES" else array.ravel()
        outputs.append(entry)
    content: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        content["id"] = response.id
    if response.parameters:
        content["parameters"] = response.parameters
    content["outputs"] = outputs
    header = dumps(content)
    return ([header, *tensors], len(header)) if tensors else ([header], None)


def parse_object(body: bytes, loads: Loads = orjson.loads) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: It is something else.
    """
    try:
        content = loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError("the body is not a JSON object")
    return content


def parameter_values(of: str, parameters: Any) -> Parameters:
    """Parameters from parsed JSON.

    Args:
        of: What they belong to, for the error.
        parameters: What should be an object of strings, numbers and booleans.

    Raises:
        InputError: It is not.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f"{of}: parameters: expected an object")
    refuse_many(f"{of}: parameters", parameters)
    parameters = {name: value for name, value in present(parameters).items() if name not in NO_EFFECT}
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{of}: parameter {short(name)}: expected a string, a number, true or false")
    return parameters


def _entries(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name}: expected a list of objects")
    refuse_many(name, entries)
    return list(map(present, entries))


class _InputEntry(NamedTuple):
    """What the JSON says of one input; its size where its bytes follow, else its elements."""

    name: str
    datatype: Any
    shape: tuple[int, ...]
    size: Any
    data: Any


class _Header(NamedTuple):
    """What the JSON of a request says; not to be written to, since it may be kept."""

    id: str
    parameters: Parameters
    inputs: list[_InputEntry]
    outputs: list[str] | None
    form: OutputForm


def _parse_header(header: bytes, loads: Loads = orjson.loads) -> _Header:
    content = present(parse_object(header, loads))
    # What KServe's client repeats of the address means nothing more.
    named = ("model_name", "model_version")
    refuse_unknown("request", content, ("id", "parameters", "inputs", "outputs", *named))
    request_id = content.get("id", "")
    if not isinstance(request_id, str):
        raise InputError("id: expected a string")
    parameters = parameter_values("request", content.get("parameters", {}))
    default = parameters.pop("binary_data_output", False)
    if not isinstance(default, bool):
        raise InputError("binary_data_output: expected true or false")
    inputs: dict[str, _InputEntry] = {}
    for entry in map(_input, _entries(content, "inputs")):
        if entry.name in inputs:
            raise InputError(f"input {short(entry.name)} is there twice")
        inputs[entry.name] = entry
    form = OutputForm(default)
    names = [_output(entry, form) for entry in _entries(content, "outputs")]
    if len(set(names)) != len(names):
        raise InputError("an output is asked for twice")
    return _Header(request_id, parameters, [*inputs.values()], names or None, form)


# Clients that send tensors in binary form send the same JSON before them every time.
_known_header = functools.lru_cache(maxsize=256)(_parse_header)


def _input(entry: dict[str, Any]) -> _InputEntry:
    name = _name(entry, "inputs")
    of = f"input {short(name)}"
    refuse_unknown(of, entry, ("name", "shape", "datatype", "parameters", "data"))
    size = None
    if "parameters" in entry:
        parameters = parameter_values(of, entry["parameters"])
        refuse_shared_memory(parameters)
        size = parameters.pop("binary_data_size", None)
        refuse_unknown(of, parameters, ())
    shape = checked_shape(name[:100], entry.get("shape"))
    if size is None and "data" not in entry:
        raise InputError(f"{of} has neither data nor a binary_data_size")
    if size is not None and "data" in entry:
        raise InputError(f"{of} has both data and a binary_data_size")
    return _InputEntry(name, entry.get("datatype"), shape, size, entry.get("data"))


def _output(entry: dict[str, Any], form: OutputForm) -> str:
    name = _name(entry, "outputs")
    of = f"output {short(name)}"
    refuse_unknown(of, entry, ("name", "parameters"))
    parameters = parameter_values(of, entry.get("parameters", {}))
    refuse_shared_memory(parameters)
    if parameters.pop("classification", 0):
        raise UnsupportedError("classification of outputs is not supported")
    binary = parameters.pop("binary_data", None)
    refuse_unknown(of, parameters, ())
    if binary is not None:
        if not isinstance(binary, bool):
            raise InputError(f"{of}: binary_data: expected true or false")
        form.by_name[name] = binary
    return name


def _name(entry: dict[str, Any], of: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise InputError(f"{of}: each needs a name")
    return name
