"""Long JSON is taken apart and put together in another process, and the event loop does not wait."""

import asyncio
import gzip
import json
import os
import signal

import numpy as np
import orjson
import pytest
from served import live

from artifex.generative_models.core.errors import InputError
from artifex.serving import create_app
from artifex.serving.http.json_process import LARGE_BYTES, JsonProcess


@pytest.fixture(scope="module")
def server(compiled_plain):
    with live(create_app({"plain": compiled_plain}, max_rows=1 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def helper():
    helper = JsonProcess()
    yield helper
    asyncio.run(helper.close())


@pytest.fixture
def parsed_here(monkeypatch):
    """Sizes of the JSON that this process itself takes apart."""
    sizes = []
    loads = orjson.loads

    def counting(body):
        sizes.append(len(body))
        return loads(body)

    for module in ("codec", "generate_extension", "json_process"):
        monkeypatch.setattr(f"artifex.serving.http.{module}.orjson.loads", counting)
    monkeypatch.setattr("artifex.serving.http.codec.decode_request.__defaults__", (counting,))
    monkeypatch.setattr("artifex.serving.http.codec.parse_object.__defaults__", (counting,))
    return sizes


RNG = np.random.default_rng(0)
FLOATS, INTS = RNG.random((30_000, 3)), RNG.integers(-100, 100, (30_000, 3))


@pytest.mark.parametrize(
    "array",
    [FLOATS, INTS, INTS > 0, INTS + (1 << 62), FLOATS[:, 0], np.array([2**64 - 1, 0] * 1000, np.uint64)],
    ids=["floats", "integers", "booleans", "large integers", "flat", "unsigned"],
)
def test_arrays_come_and_go_as_they_are(helper, array):
    found = helper.loads(json.dumps({"a": {"b": [1, array.tolist()]}, "c": "é" * 70_000}).encode())
    assert found["c"] == "é" * 70_000
    assert found["a"]["b"][0] == 1
    np.testing.assert_array_equal(found["a"]["b"][1], array)
    assert (found["a"]["b"][1].dtype.kind in "iu") == (array.dtype.kind in "iu")
    assert json.loads(helper.dumps({"a": array, "b": [None]})) == {"a": array.tolist(), "b": [None]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2", "not JSON"),
        (b"[" + b'"a",' * 70_000 + b"0]", "65,536 values"),
        (b"[" + b"{}," * 70_000 + b"0]", "65,536 values"),
        (b"[" + b"[1.5]," * 70_000 + b"[]]", "65,536 values"),
        (b"[" * 1000 + b"]" * 1000, "64 levels"),
        (b"[" * 900 + b"1," * 2000 + b"1" + b"]" * 900, "64 levels"),
    ],
    ids=["no JSON", "strings", "objects", "lists of unequal lengths", "deep", "deep numbers"],
)
def test_what_would_take_long_here_is_refused_there(helper, content, words):
    with pytest.raises(InputError, match=words):
        helper.loads(content)
    assert helper.loads(b"[1]") == [1]


def test_a_process_that_was_killed_is_started_again(helper):
    assert helper.loads(b"[1]") == [1]
    first = helper._process
    os.killpg(first.pid, signal.SIGINT)  # as from a terminal; it is for the server
    os.kill(first.pid, signal.SIGTERM)
    assert helper.loads(b"[2]") == [2]
    assert helper._process is first
    first.kill()
    assert helper.loads(b"[3]") == [3]
    assert helper._process is not first
    assert first.poll() == -signal.SIGKILL


def test_it_ends_with_the_server(compiled_plain):
    with live(create_app({"plain": compiled_plain}, max_rows=1 << 20)) as server:
        assert server.client.post(INFER, content=infer()).status_code == 200
        process = server.app._json._process
        assert process.poll() is None
    assert process.poll() is not None


INFER, GENERATE = "/v2/models/plain.double/infer", "/v2/models/plain.double/generate"
JSON = {"content-type": "application/json"}


def infer():
    x = {"name": "x", "datatype": "FP32", "shape": FLOATS.shape, "data": FLOATS.tolist()}
    return json.dumps({"inputs": [x]}).encode()


def plain():
    return json.dumps({"x": FLOATS.tolist()}).encode()


def form():
    head = b'--BB\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
    return head + json.dumps(FLOATS.tolist()).encode() + b"\r\n--BB--\r\n"


REQUESTS = {
    "infer": (INFER, infer(), {}),
    "its length told": (INFER, infer(), {"inference-header-content-length": str(len(infer()))}),
    "gzip": (INFER, gzip.compress(infer(), 1), {"content-encoding": "gzip"}),
    "generate": (GENERATE, plain(), {}),
    "a form": (GENERATE, form(), {"content-type": "multipart/form-data; boundary=BB"}),
    "an answer": (
        INFER,
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [30000, 3], "parameters": '
        b'{"binary_data_size": 360000}}]}' + FLOATS.astype(np.float32).tobytes(),
        {"inference-header-content-length": "112"},
    ),
}


@pytest.mark.parametrize(("path", "body", "headers"), REQUESTS.values(), ids=REQUESTS)
def test_no_route_parses_long_json_itself(server, parsed_here, path, body, headers):
    answer = server.client.post(path, content=body, headers=JSON | headers)
    assert answer.status_code == 200, answer.text[:200]
    content = answer.json()
    found = content["outputs"][0]["data"] if "outputs" in content else content["y"]
    wanted = 2 * FLOATS.astype(np.float32)
    np.testing.assert_array_equal(np.float32(found).reshape(-1, 3), wanted)
    assert all(size < LARGE_BYTES for size in parsed_here)


def test_a_long_body_of_the_repository_is_parsed_there_too(server, parsed_here):
    body = b'{"ready": false, "a": [' + b"0," * 100_000 + b"0]}"
    assert server.client.post("/v2/repository/index", content=body).status_code == 200
    assert all(size < LARGE_BYTES for size in parsed_here)
