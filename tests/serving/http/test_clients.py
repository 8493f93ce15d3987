"""What clients of the protocol send beside it: it is taken, and means nothing."""

import copy

import orjson
import pytest
from served import live

from artifex.serving import create_app

X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
PLAIN = {"inputs": [X]}


@pytest.fixture(scope="module")
def server(compiled_plain):
    with live(create_app({"plain": compiled_plain})) as server:
        yield server


def asked(server, content):
    return server.client.post("/v2/models/plain.double/infer", json=content)


def changed(**changes):
    content = copy.deepcopy(PLAIN)
    content["inputs"][0] |= changes.pop("input", {})
    return content | changes


@pytest.mark.parametrize(
    "content",
    [
        changed(model_name="plain.double"),  # KServe's
        changed(model_name="plain.double", model_version="1", id=None, parameters=None, outputs=None),
        changed(parameters={"content_type": "np", "headers": {"a": "b"}}),  # MLServer's
        changed(input={"parameters": {"content_type": "np", "binary_data_size": None}}),
        changed(input={"parameters": None}),
        changed(outputs=[{"name": "y", "parameters": {"content_type": "np"}}]),
        changed(outputs=[{"name": "y", "parameters": None}]),
    ],
)
def test_what_means_nothing_is_taken(server, content):
    wanted = asked(server, PLAIN)
    answer = asked(server, content)
    assert (wanted.status_code, answer.status_code) == (200, 200)
    assert answer.json()["outputs"] == wanted.json()["outputs"]


def test_null_is_absent_on_other_routes(server):
    for path, content in (
        ("/v2/repository/index", {"ready": None}),
        ("/v2/repository/models/plain/load", {"parameters": None}),
        ("/v2/models/plain.double/generate", {"x": [1, 2, 3], "id": None, "parameters": None, "power": None}),
        ("/v2/models/plain.double/generate", {"x": [1, 2, 3], "content_type": "np", "headers": None}),
    ):
        answer = server.client.post(path, content=orjson.dumps(content))
        assert answer.status_code == 200, (path, content, answer.text)


@pytest.mark.parametrize(
    "content",
    [
        changed(input={"data": None}),
        changed(input={"name": None}),
        changed(input={"parameters": {"contents": "np"}}),
        changed(parameters=[]),
        changed(unknown=1),
    ],
)
def test_what_means_something_else_is_refused(server, content):
    assert asked(server, content).status_code == 400


def test_large_bodies_are_what_small_ones_are(server):
    rows = 20_000
    data = [float(i % 100) / 7 for i in range(3 * rows)]
    flat = changed(input={"shape": [rows, 3], "data": data})
    nested = changed(input={"shape": [rows, 3], "data": [data[i : i + 3] for i in range(0, 3 * rows, 3)]})
    server.app.plane.max_rows, limit = rows, server.app.plane.max_rows
    try:
        answers = [asked(server, content) for content in (flat, nested)]
    finally:
        server.app.plane.max_rows = limit
    assert [answer.status_code for answer in answers] == [200, 200]
    found, other = (answer.json()["outputs"][0]["data"] for answer in answers)
    assert found == other
    assert found == pytest.approx([2 * value for value in data], rel=1e-6)


def _numbers(*, number: bytes, count: int) -> bytes:
    data = b",".join([number] * count)
    return b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [%s]}]}' % data


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs": [' + b" " * 200_000 + b"]", "the body is not JSON"),
        (_numbers(number=b'"a"', count=50_000), "expected numbers"),
        (_numbers(number=b"1", count=90_000), "90000 elements do not fill shape"),
        (b"[%s]" % b",".join([b"1"] * 90_000), "not a JSON object"),
    ],
    ids=["no JSON", "strings", "too many", "no object"],
)
def test_large_bodies_that_are_wrong(server, body, words):
    answer = server.client.post("/v2/models/plain.double/infer", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
