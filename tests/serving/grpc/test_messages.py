"""The compiled messages against their source and against those of Triton's client."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2 as health
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2

from artifex.generative_models.core.errors import InputError
from artifex.serving.grpc import messages
from artifex.serving.grpc.messages import (
    SERVICE,
    decode_request,
    encode_response,
    message_class,
)
from artifex.serving.plane.requests import MAX_NAMED, InferResponse

FILE = SERVICE.file
TRITON = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
SCALARS = {
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_INT32: -7,
    FieldDescriptor.CPPTYPE_INT64: -(2**40),
    FieldDescriptor.CPPTYPE_UINT32: 2**31,
    FieldDescriptor.CPPTYPE_UINT64: 2**63,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    FieldDescriptor.CPPTYPE_DOUBLE: math.pi,
}


def scalar(field):
    """A value of a field."""
    if field.message_type is not None:
        return filled(GetMessageClass(field.message_type))
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"\xff" if field.type == FieldDescriptor.TYPE_BYTES else field.name
    return SCALARS[field.cpp_type]


def filled(cls):
    """A message with every field set; of a oneof, the last."""
    values = {}
    for field in cls.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values[field.name] = {"key": scalar(field.message_type.fields_by_name["value"])}
        else:
            values[field.name] = [scalar(field)] * 2 if field.is_repeated else scalar(field)
    return cls(**values)


def in_order(message):
    return message.SerializeToString(deterministic=True)


def test_the_compiled_form_is_that_of_the_source(tmp_path):
    folder = Path(messages.__file__).parent
    out = tmp_path / "oip.binpb"
    arguments = ["protoc", f"-I{folder}", f"--descriptor_set_out={out}", str(folder / "oip.proto")]
    assert protoc.main(arguments) == 0
    fresh, kept = (FileDescriptorSet.FromString(file.read_bytes()) for file in (out, folder / "oip.binpb"))
    assert fresh == kept


@pytest.mark.parametrize("name", [n for n in FILE.message_types_by_name if not n.startswith("Health")])
def test_every_message_is_tritons(name):
    ours = filled(message_class(name))
    triton = GetMessageClass(TRITON[name])
    theirs = triton.FromString(ours.SerializeToString())
    assert str(theirs) == str(ours)
    assert in_order(message_class(name).FromString(theirs.SerializeToString())) == in_order(ours)


def test_health_is_that_of_grpc():
    for name in ("HealthCheckRequest", "HealthCheckResponse"):
        ours, theirs = filled(message_class(name)), filled(getattr(health, name))
        assert ours.SerializeToString() == theirs.SerializeToString()
    status = message_class("HealthCheckResponse").DESCRIPTOR.enum_types_by_name["ServingStatus"]
    assert {value.name: value.number for value in status.values} == dict(
        health.HealthCheckResponse.ServingStatus.items()
    )


def test_every_verb_is_tritons():
    triton = service_pb2.DESCRIPTOR.services_by_name[SERVICE.name].methods_by_name
    assert triton[SERVICE.methods[0].name].containing_service.full_name == SERVICE.full_name
    for method in SERVICE.methods:
        theirs = triton[method.name]
        assert method.input_type.full_name == theirs.input_type.full_name
        assert method.output_type.full_name == theirs.output_type.full_name
        assert method.client_streaming == theirs.client_streaming
        assert method.server_streaming == theirs.server_streaming


def request(shape, datatype, **contents):
    entry = {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}
    return message_class("ModelInferRequest")(model_name="m", inputs=[entry])


@pytest.mark.parametrize(
    ("datatype", "field", "array"),
    [
        ("BOOL", "bool_contents", np.array([[True, False], [False, True]])),
        ("INT8", "int_contents", np.array([[-128, 127]], np.int8)),
        ("INT16", "int_contents", np.array([-(2**15), 2**15 - 1], np.int16)),
        ("INT32", "int_contents", np.array([-(2**31), 2**31 - 1], np.int32)),
        ("INT64", "int64_contents", np.array([-(2**63), 2**63 - 1], np.int64)),
        ("UINT8", "uint_contents", np.array([[0], [255]], np.uint8)),
        ("UINT16", "uint_contents", np.array([0, 2**16 - 1], np.uint16)),
        ("UINT32", "uint_contents", np.array([0, 2**32 - 1], np.uint32)),
        ("UINT64", "uint64_contents", np.array([0, 2**64 - 1], np.uint64)),
        ("FP32", "fp32_contents", np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100)),
        ("FP64", "fp64_contents", np.array([np.pi, np.nan, -0.0, np.inf])),
        ("BYTES", "bytes_contents", np.array([b"", b"\x00\xff"], object)),
        ("FP32", "fp32_contents", np.zeros((0, 3), np.float32)),
    ],
)
def test_contents(datatype, field, array):
    message = request(array.shape, datatype, **{field: array.reshape(-1).tolist()})
    decoded = decode_request(message).inputs["x"]
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(decoded, array)


def test_contents_with_bytes_that_nobody_knows():
    message = request([2], "FP32", fp32_contents=[1, 2])
    contents = message.inputs[0].contents
    contents.MergeFromString(b"\xfa\x01\x04\xff\xff\xff\xff")  # field 31
    np.testing.assert_array_equal(decode_request(message).inputs["x"], np.array([1, 2], np.float32))


@pytest.mark.parametrize(
    ("shape", "datatype", "contents", "words"),
    [
        ([2], "FP32", {"fp64_contents": [1, 2]}, "belongs in fp32_contents"),
        ([2], "FP32", {"fp32_contents": [1, 2], "fp64_contents": [1]}, "belongs in fp32_contents"),
        ([2], "FP32", {"fp32_contents": [1, 2, 3]}, "3 elements do not fill"),
        ([2], "FP32", {}, "0 elements do not fill"),
        ([1], "INT8", {"int_contents": [128]}, "out of the range of INT8"),
        ([1], "UINT16", {"uint_contents": [2**16]}, "out of the range of UINT16"),
        ([1], "FP16", {"fp32_contents": [1]}, "no form in contents"),
        ([1], "BF16", {"fp32_contents": [1]}, "no form in contents"),
        ([1], "FP8", {"fp32_contents": [1]}, "unknown datatype"),
        ([-1], "FP32", {"fp32_contents": [1]}, "sizes from 0"),
        ([2**62, 0, 2**62], "FP32", {}, "is too large"),
    ],
)
def test_contents_that_do_not_fit(shape, datatype, contents, words):
    with pytest.raises(InputError, match=words):
        decode_request(request(shape, datatype, **contents))


@pytest.mark.parametrize("field", ["inputs", "outputs", "parameters"])
def test_more_than_any_model_has(field):
    names = [str(i) for i in range(MAX_NAMED + 1)]
    many = {
        "inputs": [{"name": name, "datatype": "FP32", "shape": [0]} for name in names],
        "outputs": [{"name": name} for name in names],
        "parameters": {name: {"bool_param": True} for name in names},
    }
    message = message_class("ModelInferRequest")(model_name="m", **{field: many[field]})
    with pytest.raises(InputError, match=f"{field}: expected at most {MAX_NAMED}, got {len(names)}"):
        decode_request(message)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int64, np.bool_])
def test_outputs_are_raw(dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    parameters = {"a": True, "b": -1, "c": 2**63, "d": 0.5, "e": "words"}
    message = encode_response(InferResponse("m", "2", "id", parameters, {"y": array.T}))
    theirs = service_pb2.ModelInferResponse.FromString(message.SerializeToString())
    assert (theirs.model_name, theirs.model_version, theirs.id) == ("m", "2", "id")
    given = {
        name: (p.WhichOneof("parameter_choice"), getattr(p, p.WhichOneof("parameter_choice")))
        for name, p in theirs.parameters.items()
    }
    assert given == {
        "a": ("bool_param", True),
        "b": ("int64_param", -1),
        "c": ("uint64_param", 2**63),
        "d": ("double_param", 0.5),
        "e": ("string_param", "words"),
    }
    assert list(theirs.outputs[0].shape) == [3, 2]
    raw = np.frombuffer(theirs.raw_output_contents[0], dtype).reshape(3, 2)
    np.testing.assert_array_equal(raw, array.T)
