"""Bad requests: each gets its status and words, tells nothing of the inside, and the next good one works."""

import json

import numpy as np
import pytest
from served import GOOD, URL, X, error_of

LONG = "a" * 50_000  # is not sent back


@pytest.fixture
def server(unharmed):
    return unharmed


def x_with(**changes):
    return {"inputs": [{**X, **changes}]}


def x_without(name):
    return {"inputs": [{key: value for key, value in X.items() if key != name}]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\x00" * 100,
        b'{"inputs": [NaN]}',
        b"[" * 5000 + b"]" * 5000,
        b'{"inputs": ' * 3000,
        json.dumps(GOOD).encode() + b"x",
        b'{"inputs": [], "inputs_": []}',
        b'{"inputs": {}}',
        b'{"inputs": [3]}',
        b'{"inputs": [], "parameters": [1]}',
        b'{"inputs": [], "id": 7}',
    ],
)
def test_what_is_no_request_is_400(server, body):
    response = server.client.post(URL, content=body)
    assert response.status_code == 400
    assert error_of(response)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (x_with(shape=[1, 4]), "shape"),
        (x_with(shape=[-1, 3]), "shape"),
        (x_with(shape=[2**62, 2**62]), "shape"),
        (x_with(shape=[2**64, 3]), "shape"),
        (x_with(shape=[1.0, 3]), "shape"),
        (x_with(shape="1, 3"), "shape"),
        (x_with(shape=[1] * 40), "shape"),
        (x_with(shape=[0, 3], data=[]), "row"),
        (x_with(shape=[1, 1, 3]), "shape"),
        (x_with(datatype="FP8"), "datatype"),
        (x_with(datatype=32), "datatype"),
        (x_with(datatype="BF16"), "BF16"),
        (x_with(datatype="BYTES", data=["a", "b", "c"]), "BYTES"),
        (x_with(datatype="INT64", data=[2**63, 0, 0]), "range"),
        (x_with(datatype="UINT8", data=[-1, 0, 0]), "range"),
        (x_with(data=[1, 2]), "elements"),
        (x_with(data=[1, 2, "3"]), "numbers"),
        (x_with(data=[[1, 2], [3]]), "equal lengths"),
        (x_with(data=[1, 2, 1e39]), "finite"),
        (x_with(data=7), "list"),
        (x_with(name="y"), "unknown input"),
        (x_with(name=3), "name"),
        (x_with(content=[1]), "unknown"),
        (x_with(parameters={"binary_data_size": 12}), "both data and"),
        (x_with(parameters={"scale": 2}), "unknown"),
        (x_without("name"), "name"),
        (x_without("shape"), "shape"),
        (x_without("datatype"), "datatype"),
        (x_without("data"), "neither data nor"),
        (x_with(name=LONG), "unknown input"),
        (x_with(**{LONG: 1}), "unknown"),
        ({**GOOD, LONG: 1}, "unknown"),
        ({**GOOD, "outputs": [{"name": LONG}]}, "output"),
        ({**GOOD, "parameters": {LONG: 1}}, "unknown parameter"),
        ({**GOOD, "parameters": {"priority": LONG}}, "priority"),
        ({**GOOD, "parameters": {"power": LONG}}, "power"),
        (x_with(name=LONG, data=[1]), "elements"),
        ({"inputs": [X, X]}, "twice"),
        ({"inputs": []}, "x"),
        ({**GOOD, "outputs": [{"name": "z"}]}, "z"),
        ({**GOOD, "outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({**GOOD, "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data"),
        ({**GOOD, "parameters": {"seed": 3}}, "seed"),
        ({**GOOD, "parameters": {"power": [2]}}, "power"),
        ({**GOOD, "parameters": {"timeout": -1}}, "timeout"),
        ({**GOOD, "parameters": {"priority": "high"}}, "priority"),
        ({**GOOD, "parameters": {"num_samples": 2}}, "rows"),
        ({**GOOD, "parameters": {"binary_data_output": "yes"}}, "binary_data_output"),
    ],
)
def test_a_wrong_tensor_or_parameter_is_400_and_named(server, body, word):
    response = server.client.post(URL, json=body)
    assert response.status_code == 400
    assert word in error_of(response)


def binary(entry, tail, header_length=None):
    header = json.dumps({"inputs": [{k: v for k, v in entry.items() if k != "data"}]}).encode()
    length = len(header) if header_length is None else header_length
    return header + tail, {"inference-header-content-length": str(length)}


def sized(size, **changes):
    return {**X, "parameters": {"binary_data_size": size}, **changes}


ROW = np.arange(3, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        binary(sized(12), ROW[:8]),
        binary(sized(8), ROW[:8]),
        binary(sized(12), ROW + b"x"),
        binary(sized(13), ROW + b"x"),
        binary(sized(-12), ROW),
        binary(sized(2**70), ROW),
        binary(sized("12"), ROW),
        binary(sized(True), ROW),
        binary(sized(12, shape=[2**61, 8]), ROW),
        binary(sized(12, datatype="FP64"), ROW),
        binary(sized(3, datatype="BOOL"), b"\x02\x00\x01"),
        binary(sized(7, datatype="BYTES", shape=[1]), b"\xff\xff\xff\x7fabc"),
        binary(sized(12), np.array([1, np.nan, 3], np.float32).tobytes()),
        binary(sized(12), np.array([1, np.inf, 3], np.float32).tobytes()),
        *(binary(sized(12), ROW, n) for n in (1, 5000, "99999999999999999999", "-1", "+1", "", "1.0", "a")),
        (ROW + b"x", {"inference-header-content-length": "0"}),
        (ROW[:4], {"inference-header-content-length": "0"}),
        (*binary(sized(12), ROW)[:1], {}),
    ],
)
def test_wrong_sizes_are_400(server, content, headers):
    response = server.client.post(URL, content=content, headers=headers)
    assert response.status_code == 400
    assert error_of(response)


def test_a_raw_request_is_for_models_of_one_input(server):
    headers = {"inference-header-content-length": "0"}
    response = server.client.post("/v2/models/plain.scaled/infer", content=ROW, headers=headers)
    assert response.status_code == 400
    assert "temperature" in error_of(response)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%2e%2e%2f%2e%2e%2fplain/infer",
        "/v2/models/../../etc/passwd/infer",
        "/v2/models/plain.double%00/infer",
        "/v2/models/plain%2edouble%2f/infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/mod%C3%A8le/infer",
        "/v2/models//infer",
        "/v2/models/infer",
        "/infer",
        f"/v2/models/{'a' * 5000}/infer",
        "/v2/models/plain.double/versions/7/infer",
        "/v2/models/plain.double/versions//var/infer",
        "/v2/models/plain.double/versions/%2e%2e/infer",
        "/v2/models/plain.double/infer/",
        "/v2/models/nobody/generate",
        "/v2/repository/models/..%2fplain/load",
        "/v2/nothing",
    ],
)
def test_what_is_not_there_is_404(server, path):
    body = json.dumps(GOOD).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = server.exchange(head.encode(), body)
    assert answer.status == 404
    assert answer.error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", URL, "POST"),
        ("PUT", URL, "POST"),
        ("DELETE", "/v2/models/plain.double", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("GET", "/v2/models/tiny/generate", "POST"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
def test_another_method_is_405_and_told_which(server, method, path, allowed):
    response = server.client.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"].split(", ")
    assert error_of(response)


def test_too_many_rows_are_413(server):
    rows = np.ones((17, 3), np.float32)
    response = server.client.post(URL, json=x_with(shape=[17, 3], data=rows.ravel().tolist()))
    assert response.status_code == 413
    assert "17 rows" in error_of(response)
