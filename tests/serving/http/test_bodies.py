"""Bodies: too large, too slow, compressed, damaged; they are refused, and the next good one works."""

import gzip
import json
import threading
import zlib

import numpy as np
import pytest
from served import GOOD, MAX_BYTES, URL, error_of, live, read_answer

from artifex.generative_models.core.errors import InputError
from artifex.serving import create_app
from artifex.serving.http import bodies
from artifex.serving.plane.statuses import TooLargeError


@pytest.fixture
def server(unharmed):
    return unharmed


def test_a_body_that_says_it_is_too_large_is_refused_unread(server):
    for path in (URL, "/v2/models/tiny/generate", "/v2/repository/index"):
        answer = server.exchange(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert "takes 65,536" in answer.error


@pytest.mark.parametrize("path", [URL, "/v2/models/tiny/generate"])
def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large(server, path):
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"%x\r\n%s\r\n" % (1 << 15, b" " * (1 << 15))
    with server.connect(head, chunk, chunk, b"1\r\n \r\n") as connection:  # and it never ends
        answer = read_answer(connection)
    assert answer.status == 413
    assert answer.error


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_413_before_it_grows(server, coding):
    bomb = b"0" * (100 << 20)
    packed = gzip.compress(bomb) if coding == "gzip" else zlib.compress(bomb)
    for content in (packed[: MAX_BYTES - 1], gzip.compress(packed)[:MAX_BYTES]):
        response = server.client.post(URL, content=content, headers={"content-encoding": coding})
        assert response.status_code in (413, 400)
        assert error_of(response)
    with pytest.raises(TooLargeError):
        bodies.decompress(packed, MAX_BYTES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-9],
        lambda c: c + b"x",
        lambda c: c[:-6] + b"\xff" + c[-5:],
        lambda c: b"",
        lambda c: c[10:],
    ],
)
def test_damaged_compression_is_400(server, damage):
    content = damage(gzip.compress(json.dumps(GOOD).encode()))
    response = server.client.post(URL, content=content, headers={"content-encoding": "gzip"})
    assert response.status_code == 400
    assert "decompressed" in error_of(response)
    with pytest.raises(InputError):
        bodies.decompress(content, MAX_BYTES)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 40_000, 200_000])
def test_compression_up_to_the_limit(coding, size):
    data = np.random.default_rng(0).integers(0, 4, size, np.uint8).tobytes()
    packed = gzip.compress(data) if coding == "gzip" else zlib.compress(data)
    assert bodies.decompress(packed, max(size, 1)) == data
    if size > 1:
        with pytest.raises(TooLargeError):
            bodies.decompress(packed, size - 1)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "x" * 500])
def test_another_coding_is_501(server, coding):
    response = server.client.post(URL, json=GOOD, headers={"content-encoding": coding})
    assert response.status_code == 501
    assert "gzip" in error_of(response)


@pytest.mark.parametrize("path", [URL, "/v2/models/tiny/generate"])
def test_a_body_that_does_not_come_is_408(compiled_plain, pipeline, path):
    models = {"plain": compiled_plain, "tiny": pipeline}
    with live(create_app(models, body_timeout=1)) as server:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n".encode()
        with server.connect(head, b"{") as connection:
            answer = read_answer(connection)
            assert answer.status == 408
            assert answer.headers["connection"] == "close"
            assert "1 s" in answer.error
            assert connection.recv(1) == b""
        assert server.client.post(URL, json=GOOD).status_code == 200


BINARY = {"inputs": [], "parameters": {"num_samples": 16, "binary_data_output": True}}


def test_text_is_compressed_for_who_accepts_it_and_nothing_else(server):
    url = "/v2/models/tiny.generate/infer"
    for path, content, accept, compressed in (
        (url, BINARY | {"parameters": {"num_samples": 16}}, "*/*", True),
        (url, BINARY, "*/*", False),
        ("/v2/models/tiny/generate", {"num_samples": 16}, "*/*", True),
        ("/v2/models/tiny/generate", {"num_samples": 16}, "image/png", False),
        ("/v2/models/tiny/generate_stream", {"num_samples": 16}, "*/*", False),
    ):
        headers = {"accept-encoding": "gzip, deflate", "accept": accept}
        response = server.client.post(path, json=content, headers=headers)
        assert response.status_code == 200
        assert response.headers.get("content-encoding") == ("gzip" if compressed else None)


def test_what_is_compressed_is_decompressed_beside_the_event_loop(server, monkeypatch):
    threads = []
    decompress = bodies.decompress

    def watched(data, max_bytes):
        threads.append(threading.current_thread())
        return decompress(data, max_bytes)

    monkeypatch.setattr(bodies, "decompress", watched)
    content = gzip.compress(json.dumps(GOOD).encode())
    response = server.client.post(URL, content=content, headers={"content-encoding": "gzip"})
    assert response.status_code == 200
    assert len(threads) == 1
    assert threads[0] is not server._thread
