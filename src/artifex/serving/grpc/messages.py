"""The gRPC messages of the Open Inference Protocol V2: their classes, and requests and responses as such.

The classes are made from `oip.proto` in compiled form and belong to this package alone, since Triton's client
has messages of the same names, which the same process may use.

References:
    https://github.com/kserve/open-inference-protocol, `open_inference_grpc.proto`, and Triton's
    `grpc_service.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.requests import (
    NO_EFFECT,
    InferRequest,
    InferResponse,
    Parameters,
    refuse_many,
    refuse_shared_memory,
    refuse_unknown,
)
from artifex.serving.plane.statuses import UnsupportedError
from artifex.serving.plane.tensors import (
    as_dtype,
    checked_shape,
    datatype_of,
    dtype_of,
    reshaped,
    tensor_from_bytes,
    tensor_to_bytes,
)

_PACKAGE = "inference"
_CONTENTS = {
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_INTEGERS: dict[str, np.dtype[Any]] = {
    "int_contents": np.dtype(np.int32),
    "int64_contents": np.dtype(np.int64),
    "uint_contents": np.dtype(np.uint32),
    "uint64_contents": np.dtype(np.uint64),
}


def _load() -> DescriptorPool:
    pool = DescriptorPool()
    compiled = resources.files(__package__).joinpath("oip.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_POOL = _load()

SERVICE = _POOL.FindServiceByName(f"{_PACKAGE}.GRPCInferenceService")


def message_class(name: str) -> Any:
    """The class of a message of `oip.proto`, by its name there, such as `ModelInferRequest`."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_Response = message_class("ModelInferResponse")


def decode_request(message: Any) -> InferRequest:
    """A request from a ModelInferRequest.

    Raises:
        InputError: It is not what the protocol says.
        UnsupportedError: It asks for shared memory or for classification.
    """
    parameters = parameter_values("request", message.parameters) if message.parameters else {}
    refuse_many("outputs", message.outputs)
    names = [_output(entry) for entry in message.outputs] or None
    if names is not None and len(set(names)) != len(names):
        raise InputError("an output is asked for twice")
    return InferRequest(
        message.model_name, message.model_version, message.id, _inputs(message), parameters, names
    )


def encode_response(response: InferResponse) -> Any:
    """A ModelInferResponse; its tensors are all in `raw_output_contents`."""
    message = _Response(model_name=response.model, model_version=response.version, id=response.id)
    for name, value in response.parameters.items():
        setattr(message.parameters[name], _parameter_field(value), value)
    for name, array in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        message.raw_output_contents.append(bytes(tensor_to_bytes(array)))
    return message


def parameter_values(of: str, parameters: Mapping[str, Any]) -> Parameters:
    """Parameters from a message.

    Args:
        of: What they belong to, for the error.
        parameters: InferParameters by name.

    Raises:
        InputError: There are too many.
    """
    refuse_many(f"{of}: parameters", parameters)
    values: Parameters = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is not None and name not in NO_EFFECT:  # one without a value is left out
            values[name] = getattr(parameter, field)
    return values


def _parameter_field(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value < 2**63 else "uint64_param"
    return "string_param" if isinstance(value, str) else "double_param"


def _inputs(message: Any) -> dict[str, np.ndarray]:
    entries, raw = message.inputs, message.raw_input_contents
    refuse_many("inputs", entries)
    inputs: dict[str, np.ndarray] = {}
    for i, entry in enumerate(entries):
        name = entry.name
        if name in inputs:
            raise InputError(f"input {name!r} is there twice")
        if entry.parameters:
            parameters = parameter_values(f"input {name!r}", entry.parameters)
            refuse_shared_memory(parameters)
            refuse_unknown(f"input {name!r}", parameters, ("binary_data_size",))  # of REST: means nothing
        shape = checked_shape(name, list(entry.shape))
        if not raw:
            inputs[name] = _from_contents(name, entry.datatype, shape, entry.contents)
        elif len(raw) != len(entries):
            raise InputError(
                f"raw_input_contents: expected all {len(entries)} inputs or none, got {len(raw)}"
            )
        elif entry.HasField("contents") and entry.contents.ListFields():
            raise InputError(f"input {name!r} has both contents and raw_input_contents")
        else:
            inputs[name] = tensor_from_bytes(name, entry.datatype, shape, memoryview(raw[i]))
    if raw and not entries:
        raise InputError(f"raw_input_contents: {len(raw)} of them, and no input")
    return inputs


def _output(entry: Any) -> str:
    name: str = entry.name
    if entry.parameters:
        parameters = parameter_values(f"output {name!r}", entry.parameters)
        refuse_shared_memory(parameters)
        if parameters.pop("classification", 0):
            raise UnsupportedError("classification of outputs is not supported")
        refuse_unknown(f"output {name!r}", parameters, ("binary_data",))  # of REST: here all are binary
    return name


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> np.ndarray:
    """A tensor from an InferTensorContents."""
    dtype = dtype_of(name, datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InputError(f"{name}: {datatype} has no form in contents; send it as raw_input_contents")
    contents.DiscardUnknownFields()
    for given, _ in contents.ListFields():
        if given.name != field:
            raise InputError(f"{name}: {datatype} belongs in {field}, got {given.name}")
    elements = getattr(contents, field)
    if len(elements) != math.prod(shape):
        raise InputError(f"{name}: {len(elements)} elements do not fill shape {list(shape)}")
    if datatype == "BYTES":
        array = np.empty(len(elements), object)
        array[:] = elements
    elif field in _INTEGERS:
        array = np.fromiter(elements, _INTEGERS[field], len(elements))
        if array.dtype != dtype:
            array = as_dtype(name, array, dtype)
    else:
        # Elements of a fixed size end the message's own wire form: 60 times faster than one by one.
        wire = contents.SerializeToString()
        array = np.frombuffer(wire, dtype, offset=len(wire) - len(elements) * dtype.itemsize)
    return reshaped(name, array, shape)
