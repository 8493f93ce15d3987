"""HTTP bodies: what they mean, and what is refused with which words."""

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from artifex.generative_models.core.errors import InputError
from artifex.serving.http.codec import (
    OutputForm,
    decode_request,
    encode_response,
    parameter_values,
    parse_object,
)
from artifex.serving.plane.requests import MAX_NAMED, InferRequest, InferResponse
from artifex.serving.plane.statuses import UnsupportedError

X = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
BINARY_X = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
BYTES_OF_X = struct.pack("<2f", 1, 2)


def decode(
    content: Any, tail: bytes = b"", header_length: int | None = None
) -> tuple[InferRequest, OutputForm]:
    """Decodes JSON and what follows; where something does, the header's length is right unless given."""
    header = content if isinstance(content, bytes) else json.dumps(content).encode()
    if header_length is None and tail:
        header_length = len(header)
    return decode_request("m", "7", header + tail, header_length)


def test_the_least_request() -> None:
    request, form = decode({"inputs": []})
    assert request == InferRequest("m", "7", "", {}, {}, None)
    assert form == OutputForm()
    assert decode({})[0] == request


def test_all_parts_of_a_request() -> None:
    request, form = decode(
        {
            "id": "mine",
            "parameters": {"a": 1, "b": 0.5, "c": "s", "d": True},
            "inputs": [X, {"name": "n", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "b"]}],
            "outputs": [
                {"name": "y", "parameters": {"binary_data": True}},
                {"name": "z", "parameters": {"binary_data": False, "classification": 0}},
                {"name": "w"},
            ],
        }
    )
    assert (request.id, request.outputs) == ("mine", ["y", "z", "w"])
    assert request.parameters == {"a": 1, "b": 0.5, "c": "s", "d": True}
    assert request.inputs["x"].dtype == np.float32
    assert request.inputs["x"].tolist() == [1, 2]
    assert request.inputs["n"].tolist() == [[b"a", b"b"]]
    assert [form.is_binary(name) for name in ("y", "z", "w", "other")] == [True, False, False, False]


@pytest.mark.parametrize("default", [True, False])
def test_outputs_take_the_form_of_the_request_unless_they_have_their_own(default: bool) -> None:
    named = [{"name": "y", "parameters": {"binary_data": not default}}, {"name": "z"}]
    request, form = decode({"parameters": {"binary_data_output": default}, "outputs": named})
    assert request.parameters == {}
    assert [form.is_binary(name) for name in ("y", "z", "other")] == [not default, default, default]


@pytest.mark.parametrize("outputs", [{}, {"outputs": []}])
def test_no_outputs_are_all(outputs: dict[str, Any]) -> None:
    assert decode({"inputs": [X], **outputs})[0].outputs is None


def test_tensors_follow_in_the_order_of_the_json() -> None:
    second = {"name": "b", "shape": [1], "datatype": "BF16", "parameters": {"binary_data_size": 2}}
    tail = np.array([3], ml_dtypes.bfloat16).tobytes() + BYTES_OF_X
    request, _ = decode({"inputs": [second, {**X, "name": "j"}, BINARY_X]}, tail)
    assert list(request.inputs) == ["b", "j", "x"]
    assert request.inputs["b"].dtype == ml_dtypes.bfloat16
    assert request.inputs["b"].tolist() == [3]
    for name in ("x", "j"):
        np.testing.assert_array_equal(request.inputs[name], np.array([1, 2], np.float32), strict=True)


def test_a_tensor_of_no_elements_takes_no_bytes() -> None:
    empty = {"name": "e", "shape": [0, 3], "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    request, _ = decode({"inputs": [empty, BINARY_X]}, BYTES_OF_X)
    assert request.inputs["e"].shape == (0, 3)
    assert request.inputs["x"].tolist() == [1, 2]


def test_the_json_may_say_its_length_where_nothing_follows() -> None:
    body = json.dumps({"inputs": [X]}).encode()
    assert decode(body, header_length=len(body))[0].inputs["x"].tolist() == [1, 2]


def changed(**changes: Any) -> dict[str, Any]:
    """A request of which the input is changed; `...` takes a key out."""
    entry = {name: value for name, value in {**X, **changes}.items() if value is not ...}
    return {"inputs": [entry]}


MANY = [str(i) for i in range(MAX_NAMED + 1)]
BAD = {
    "empty": (b"", "not JSON"),
    "not JSON": (b"inputs", "not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not JSON"),
    "a surrogate": (b'{"id": "\\ud800"}', "not JSON"),
    "a list": ([], "not a JSON object"),
    "a number": (b"1", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "deep": (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    "deep but for JSON": (
        b'{"inputs": [{"name": "x", "shape":' + b"[" * 1000 + b"]" * 1000 + b"}]}",
        "x: shape",
    ),
    "NaN": (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "not JSON"),
    "Infinity": (b'{"parameters": {"timeout": Infinity}}', "not JSON"),
    "1e400": (b'{"parameters": {"timeout": 1e400}}', "not JSON"),
    "unknown key": ({"input": []}, "request: unknown 'input'"),
    "id a number": ({"id": 1}, "id: expected a string"),
    "inputs an object": ({"inputs": {}}, "inputs: expected a list of objects"),
    "inputs of strings": ({"inputs": ["x"]}, "inputs: expected a list of objects"),
    "outputs of strings": ({"outputs": ["y"]}, "outputs: expected a list of objects"),
    "outputs 0": ({"outputs": 0}, "outputs: expected a list of objects"),
    "outputs {}": ({"outputs": {}}, "outputs: expected a list of objects"),
    "parameters a list": ({"parameters": [1]}, "request: parameters: expected an object"),
    "parameters []": ({"parameters": []}, "request: parameters: expected an object"),
    "parameters a string": ({"parameters": "a"}, "request: parameters: expected an object"),
    "a parameter a list": ({"parameters": {"a": [1]}}, "request: parameter 'a': expected"),
    "a parameter an object": ({"parameters": {"a": {}}}, "request: parameter 'a': expected"),
    "binary_data_output a number": (
        {"parameters": {"binary_data_output": 1}},
        "binary_data_output: expected",
    ),
    "no name": (changed(name=...), "inputs: each needs a name"),
    "a name a number": (changed(name=1), "inputs: each needs a name"),
    "unknown key of an input": (changed(type="FP32"), "input 'x': unknown 'type'"),
    "unknown parameter of an input": (changed(parameters={"a": 1}), "input 'x': unknown 'a'"),
    "no shape": (changed(shape=...), "x: shape: expected a list"),
    "no datatype": (changed(datatype=...), "x: unknown datatype None"),
    "no data": (changed(data=...), "neither data nor a binary_data_size"),
    "data null": (changed(data=None), "neither data nor a binary_data_size"),
    "data and size": (changed(parameters={"binary_data_size": 8}), "both data and a binary_data_size"),
    "many inputs": ({"inputs": [{**X, "name": name} for name in MANY]}, "inputs: expected at most"),
    "many outputs": ({"outputs": [{"name": name} for name in MANY]}, "outputs: expected at most"),
    "many parameters": ({"parameters": dict.fromkeys(MANY, 1)}, "parameters: expected at most"),
    "many parameters of an input": (
        changed(parameters=dict.fromkeys(MANY, 1)),
        "input 'x': parameters: expected at most",
    ),
    "twice": ({"inputs": [X, X]}, "input 'x' is there twice"),
    "no name of an output": ({"outputs": [{}]}, "outputs: each needs a name"),
    "output twice": ({"outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
    "unknown key of an output": ({"outputs": [{"name": "y", "data": []}]}, "output 'y': unknown 'data'"),
    "unknown parameter of an output": (
        {"outputs": [{"name": "y", "parameters": {"a": 1}}]},
        "output 'y': unknown 'a'",
    ),
    "binary_data a number": (
        {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        "output 'y': binary_data: expected",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_what_the_protocol_does_not_say_is_refused(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(content)


@pytest.mark.parametrize("size", [-1, 7, 9, 2**62, 8.0, True, "8"])
def test_a_wrong_binary_data_size_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match="x"):
        decode({"inputs": [{**BINARY_X, "parameters": {"binary_data_size": size}}]}, BYTES_OF_X)


@pytest.mark.parametrize("tail", [b"", BYTES_OF_X[:-1], BYTES_OF_X + b"\0", BYTES_OF_X * 2])
def test_bytes_that_are_missing_or_too_many_are_refused(tail: bytes) -> None:
    with pytest.raises(InputError, match=r"binary_data_size is 8 of|bytes follow the last tensor"):
        decode({"inputs": [BINARY_X]}, tail)


@pytest.mark.parametrize("change", [-1, 1, 9, 10**9, "negative"])
def test_a_wrong_length_of_the_json_is_refused(change: int | str) -> None:
    header = json.dumps({"inputs": [BINARY_X]}).encode()
    length = -len(BYTES_OF_X) if isinstance(change, str) else len(header) + change
    with pytest.raises(InputError):
        decode(header, BYTES_OF_X, length)


@pytest.mark.parametrize("parameter", ["region", "byte_size", "offset"])
def test_shared_memory_is_not_supported(parameter: str) -> None:
    parameters = {f"shared_memory_{parameter}": "a"}
    with pytest.raises(UnsupportedError, match="shared memory"):
        decode(changed(data=..., parameters=parameters))
    with pytest.raises(UnsupportedError, match="shared memory"):
        decode({"outputs": [{"name": "y", "parameters": parameters}]})


def test_classification_is_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="classification"):
        decode({"outputs": [{"name": "y", "parameters": {"classification": 3}}]})


def test_errors_are_short_whatever_the_names() -> None:
    long = "n" * 100_000
    for content in (
        {long: 1},
        changed(name=long, data=...),
        changed(**{long: 1}),
        {"parameters": {long: []}},
    ):
        with pytest.raises(InputError) as caught:
            decode(content)
        assert len(str(caught.value)) < 1000


def test_parameters_and_objects_are_for_other_bodies_too() -> None:
    assert parse_object(b'{"a": [1]}') == {"a": [1]}
    assert parameter_values("it", {"a": 1}) == {"a": 1}
    assert parameter_values("it", None) == parameter_values("it", {"a": None}) == {}
    with pytest.raises(InputError, match=r"^it: parameters: expected an object"):
        parameter_values("it", 1)


@pytest.mark.parametrize("binary", [True, False])
def test_requests_of_the_stock_client(binary: bool) -> None:
    x, n = InferInput("x", [2], "FP32"), InferInput("n", [1, 2], "BYTES")
    x.set_data_from_numpy(np.array([1, 2], np.float32), binary_data=binary)
    n.set_data_from_numpy(np.array([[b"a", "ä".encode()]], object), binary_data=binary)
    outputs = [
        InferRequestedOutput("y", binary_data=not binary),
        InferRequestedOutput("z", binary_data=binary),
    ]
    body, length = InferenceServerClient.generate_request_body(
        [x, n], outputs=outputs, request_id="mine", priority=2, timeout=5, parameters={"seed": 1}
    )
    request, form = decode_request("m", "", body, length)
    assert (request.id, request.outputs) == ("mine", ["y", "z"])
    assert request.parameters == {"priority": 2, "timeout": 5, "seed": 1}
    assert request.inputs["x"].tolist() == [1, 2]
    assert request.inputs["n"].tolist() == [[b"a", "ä".encode()]]
    assert [form.is_binary(name) for name in ("y", "z")] == [not binary, binary]


def test_the_stock_client_wants_all_outputs_in_binary_form_unless_told() -> None:
    body, length = InferenceServerClient.generate_request_body([])
    request, form = decode_request("m", "", body, length)
    assert (request.outputs, request.parameters, form) == (None, {}, OutputForm(True))


OUTPUTS = {"y": np.array([[0.1, -0.0]], np.float32), "z": np.array([True]), "w": np.array([2**63], np.uint64)}


@pytest.mark.parametrize("binary", [set(), {"y"}, {"z", "w"}, set(OUTPUTS)])
def test_responses_are_read_by_the_stock_client(binary: set[str]) -> None:
    response = InferResponse("m", "3", "mine", {"seed": 5}, OUTPUTS)
    parts, length = encode_response(response, OutputForm(False, dict.fromkeys(binary, True)))
    assert (length is None) == (not binary)
    result = InferResult.from_response_body(b"".join(parts), header_length=length)
    content = result.get_response()
    facts = {name: content[name] for name in ("model_name", "model_version", "id", "parameters")}
    assert facts == {"model_name": "m", "model_version": "3", "id": "mine", "parameters": {"seed": 5}}
    for name, array in OUTPUTS.items():
        np.testing.assert_array_equal(result.as_numpy(name), array, strict=True)
        assert ("data" in result.get_output(name)) == (name not in binary)


def test_a_response_without_id_or_parameters_has_none() -> None:
    (body,), _ = encode_response(InferResponse("m", "3", "", {}, {}), OutputForm())
    assert orjson.loads(body) == {"model_name": "m", "model_version": "3", "outputs": []}


def test_a_bf16_output_has_no_form_in_json() -> None:
    response = InferResponse("m", "3", "", {}, {"y": np.zeros(1, ml_dtypes.bfloat16)})
    with pytest.raises(InputError, match="BF16"):
        encode_response(response, OutputForm())
