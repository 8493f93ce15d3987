"""Clients that are slow, endless, half open, or do not speak HTTP: they are refused, and harm nobody."""

import socket

import pytest
from served import live, live_asgi, read_answer, read_answers, watched
from shared import TIMEOUT

from artifex.serving import create_app
from artifex.serving.http import connection as connections

HEAD = b"POST /v2/models/plain.double/infer HTTP/1.1\r\nHost: a\r\n"
BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}'
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def server(compiled_plain):
    with live(create_app({"plain": compiled_plain})) as server:
        yield server


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection, without another word."""
    return connection.recv(1) == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00" * 100,
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_400_in_the_protocols_form(server, garbage):
    with server.connect(garbage) as connection:
        answer = read_answer(connection)
        assert answer.status == 400
        assert answer.error == "invalid HTTP request"
        assert is_closed(connection)
    assert server.exchange(REQUEST).status == 200


def test_a_broken_chunk_in_a_body_is_refused(server):
    with server.connect(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n") as connection:
        assert read_answer(connection).status == 400
        assert is_closed(connection)
    assert server.exchange(REQUEST).status == 200


def send_until_refused(connection: socket.socket, start: bytes, more: bytes) -> None:
    connection.sendall(start)
    try:
        for _ in range(4 * connections.MAX_HEAD_BYTES // len(more)):
            connection.sendall(more)
    except (BrokenPipeError, ConnectionResetError):
        pass


@pytest.mark.parametrize(
    ("start", "more"),
    [(HEAD, b"X-Filler: abcdefgh\r\n" * 50), (HEAD + b"X-Endless: ", b"a" * 1000), (b"GET /", b"a" * 1000)],
    ids=["many headers", "one long header", "long path"],
)
def test_an_endless_head_is_cut_off(server, start, more):
    with server.connect() as connection:
        send_until_refused(connection, start, more)
        try:
            answer = read_answer(connection)
        except ConnectionError:
            pass  # what it still sent has reset the connection before the answer was read
        else:
            assert answer.status == 431
            assert answer.error
    assert server.exchange(REQUEST).status == 200


def test_a_head_just_over_the_limit_is_431(server):
    with server.connect(HEAD + b"X-Long: " + b"a" * connections.MAX_HEAD_BYTES) as connection:
        answer = read_answer(connection)
        assert answer.status == 431
        assert answer.error == "the request's headers are too large"
        assert is_closed(connection)


def test_a_large_head_that_is_not_too_large_is_taken(server):
    head = HEAD + b"X-Long: " + b"a" * (connections.MAX_HEAD_BYTES // 2) + b"\r\n"
    for _ in range(2):  # the next request of a connection starts anew
        assert server.exchange(head + REQUEST[len(HEAD) :]).status == 200
    with server.connect() as connection:
        for _ in range(4):
            connection.sendall(head + REQUEST[len(HEAD) :])
            assert read_answer(connection).status == 200


@pytest.mark.parametrize("sent", [b"", b"P", HEAD, HEAD + b"Content-Length: 3\r\n"])
def test_a_head_that_is_never_finished_is_408(server, monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with server.connect(sent) as connection:
        answer = read_answer(connection)
        assert answer.status == 408
        assert answer.error == "no request came in time"
        assert is_closed(connection)


def test_the_second_head_of_a_connection_has_its_time_too(server, monkeypatch):
    with server.connect(REQUEST) as connection:
        assert read_answer(connection).status == 200
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        connection.sendall(HEAD)
        assert read_answer(connection).status == 408
        assert is_closed(connection)


def test_time_for_the_head_is_not_time_for_the_answer(plain, gate, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with live(create_app({"plain": plain})) as server:
        gate.hold()
        with server.connect(REQUEST) as connection, server.connect() as late:
            gate.wait(1)
            assert read_answer(late).status == 408  # so that long has passed
            gate.release()
            assert read_answer(connection).status == 200


def test_requests_in_one_packet_are_answered_in_order(server):
    three = [REQUEST.replace(b"[1, 2, 3]", b"[%d, 2, 3]" % n) for n in (4, 5, 6)]
    with server.connect(b"".join(three)) as connection:
        firsts = [answer.body for answer in read_answers(connection, len(three))]
    assert [b'"data":[%d.0,' % (2 * n) in body for n, body in zip((4, 5, 6), firsts, strict=True)] == [
        True
    ] * 3


def test_half_open_connections_harm_nobody(server):
    waiting = [server.connect(part) for part in (b"", HEAD, REQUEST[:-5], b"G") for _ in range(10)]
    try:
        for _ in range(3):
            assert server.exchange(REQUEST).status == 200
    finally:
        for connection in waiting:
            connection.close()
    assert server.exchange(REQUEST).status == 200


def test_a_client_that_closes_its_side_still_gets_its_answer(plain, gate):
    with live(create_app({"plain": plain})) as server, server.connect() as connection:
        gate.hold()
        connection.sendall(REQUEST)
        gate.wait(1)
        gate.release()
        assert read_answer(connection).status == 200


def test_a_request_split_into_bytes_is_one_request(server):
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(REQUEST)):
            connection.sendall(REQUEST[i : i + 1])
        assert read_answer(connection).status == 200


async def large(scope, receive, send):
    """An application whose only answer is larger than what the kernel takes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(64 << 20)})


async def streamed(scope, receive, send):
    """An application whose only answer is as large, and comes in parts."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for i in range(1024, 0, -1):
        await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": i > 1})


@pytest.mark.parametrize("answer", [large, streamed])
@pytest.mark.parametrize("keep_alive", [0.05, TIMEOUT])
def test_a_client_that_does_not_read_its_answer_is_let_go(monkeypatch, answer, keep_alive):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.2)
    wait = watched(monkeypatch, connections.Connection, "connection_lost")
    with live_asgi(answer, lifespan=False, keep_alive=keep_alive) as server, server.connect(HEAD + b"\r\n"):
        wait("connection_lost", 1)


def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    wait = watched(monkeypatch, connections.Connection, "timeout_keep_alive_handler", "look_at_reading")
    with (
        live_asgi(large, lifespan=False, keep_alive=0.05) as server,
        server.connect(HEAD + b"\r\n") as connection,
        connection.makefile("rb") as answer,
    ):
        for looks in (1, 2):
            answer.read(12 << 20)  # more than the kernel holds
            wait("look_at_reading", looks)
        wait("timeout_keep_alive_handler", 2)
        rest = answer.read()
    assert len(rest) > 40 << 20


def test_an_idle_connection_is_closed_after_its_answer(compiled_plain):
    app = create_app({"plain": compiled_plain})
    with live_asgi(app, lifespan=True, keep_alive=0.2) as server, server.connect(REQUEST) as connection:
        assert read_answer(connection).status in (200, 503)
        assert is_closed(connection)


OFFERS = {
    "curl": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "lower case": b"connection: upgrade\r\nupgrade: h2c\r\n",
    "a websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_of_another_protocol_is_ignored_and_the_body_kept(server, offer):
    head = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(BODY)
    whole = head + BODY
    for cut in range(len(head) - 40, len(head) + 2, 7):
        with server.connect() as connection:
            for part in (whole[:cut], whole[cut:], REQUEST, head, BODY):
                connection.sendall(part)
            answers = read_answers(connection, 3)
        assert [answer.status for answer in answers] == [200] * 3
        assert len({answer.body for answer in answers}) == 1


def test_a_head_that_comes_byte_by_byte(server):
    head = HEAD + OFFERS["curl"] + b"Content-Length: %d\r\n\r\n" % len(BODY)
    assert server.exchange(*(head[i : i + 1] for i in range(len(head))), BODY).status == 200
