"""What nobody waits for any more is not computed; what waits too long, or is too much, is refused."""

import json
import socket
import struct

import pytest
from served import URL, live, read_answer, watched

from artifex.generative_models.inference.batching import batcher
from artifex.serving import create_app
from artifex.serving.http import departures


def body(first, num_rows=1, **parameters):
    data = [float(first + i) for i in range(num_rows) for _ in range(3)]
    x = {"name": "x", "datatype": "FP32", "shape": [num_rows, 3], "data": data}
    return json.dumps({"inputs": [x], "parameters": parameters}).encode()


def request(first, num_rows=1, path=URL, **parameters):
    content = body(first, num_rows, **parameters)
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def reset(connection):
    """Closes a connection as a client does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def changes(monkeypatch):
    """Waits until schedulers have taken, or given up, so many requests."""
    return watched(monkeypatch, batcher.Scheduler, "add", "give_up")


class Busy:
    """A server of `plain` whose device is taken by as many requests as it runs at once, held at the gate."""

    def __init__(self, server, gate, executor):
        self.server = server
        self.gate = gate
        gate.hold()
        self.num_first = executor.executions_in_flight
        self.first = []
        for n in range(self.num_first):
            self.first.append(server.connect(request(0)))
            gate.wait(n + 1)

    @property
    def stats(self):
        return self.server.app.plane.repository.entries["plain"].loaded.batcher.stats()["double"]

    def finish(self):
        """Opens the gate; what was held first is answered."""
        self.gate.release()
        for connection in self.first:
            with connection:
                assert read_answer(connection).status == 200


@pytest.fixture
def busy(plain, gate, changes):
    servers = []

    def make(**settings):
        block = live(create_app({"plain": plain}, **settings))
        servers.append(block)
        return Busy(block.__enter__(), gate, plain)

    yield make
    gate.release()
    for block in servers:
        block.__exit__(None, None, None)


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_request_whose_client_left_is_not_computed(busy, changes, leave):
    server = busy()
    leaving = server.server.connect(request(100, 2))
    changes("add", server.num_first + 1)
    leave(leaving)
    changes("give_up", 1)
    staying = server.server.connect(request(200))
    changes("add", server.num_first + 2)
    server.finish()
    with staying:
        assert read_answer(staying).status == 200
    computed = [row for batch in server.gate.batches for row in batch.rows]
    assert 200 in computed
    assert 100 not in computed
    assert server.stats.cancelled == 1
    assert server.stats.queued_requests == 0
    assert server.stats.rows == server.num_first + 1


def test_a_generate_whose_client_left_is_not_computed(busy, changes):
    server = busy()
    content = b'{"x": [[300, 300, 300]]}'
    head = b"POST /v2/models/plain.double/generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    leaving = server.server.connect(head % len(content) + content)
    changes("add", server.num_first + 1)
    leaving.close()
    changes("give_up", 1)
    server.finish()
    assert 300 not in [row for batch in server.gate.batches for row in batch.rows]


def test_a_client_that_left_is_not_an_error_of_the_server(busy, changes, caplog):
    server = busy()
    leaving = server.server.connect(request(100))
    changes("add", server.num_first + 1)
    leaving.close()
    changes("give_up", 1)
    server.finish()
    assert server.server.exchange(request(1)).status == 200
    assert caplog.records == []


def test_many_leave_and_those_who_stay_are_answered(busy, changes):
    server = busy()
    connections = [server.server.connect(request(100 + i)) for i in range(20)]
    changes("add", server.num_first + 20)
    for connection in connections[::2]:
        connection.close()
    changes("give_up", 10)
    server.finish()
    for i, connection in [*enumerate(connections)][1::2]:
        with connection:
            answer = read_answer(connection)
        assert answer.status == 200
        assert json.loads(answer.body)["outputs"][0]["data"] == [2 * (100 + i)] * 3
    assert server.stats.cancelled == 10


def test_nothing_is_left_behind(busy, changes):
    server = busy()
    leaving = server.server.connect(request(100))
    changes("add", server.num_first + 1)
    leaving.close()
    changes("give_up", 1)
    server.finish()

    async def left():
        watched: departures.Departures = server.server.app._departures
        return [*watched._waiting, *watched._listeners]

    assert server.server.call(left()) == []


def test_a_full_queue_is_429_with_retry_after(busy, changes):
    server = busy(max_queued_rows=4)
    waiting = server.server.connect(request(1, 4))
    changes("add", server.num_first + 1)
    answer = server.server.exchange(request(50))
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.error
    assert server.stats.overloaded == 1
    server.finish()
    with waiting:
        assert read_answer(waiting).status == 200
    assert server.server.exchange(request(50)).status == 200
    assert [row for batch in server.gate.batches for row in batch.rows].count(50) == 1


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [({"timeout": 0.05}, {}), ({}, {"timeout": 50_000}), ({"timeout": None}, {"timeout": 50_000})],
    ids=["of the server", "of the request", "of the request alone"],
)
def test_what_waits_too_long_is_504(busy, settings, parameters):
    server = busy(**settings)
    answer = server.server.exchange(request(70, **parameters))
    assert answer.status == 504
    assert "queued" in answer.error
    server.finish()
    assert 70 not in [row for batch in server.gate.batches for row in batch.rows]
    assert server.stats.expired == 1


def test_a_request_may_wait_longer_than_the_servers_default(busy, changes):
    server = busy(timeout=0.05)
    patient = server.server.connect(request(80, timeout=60_000_000))
    changes("add", server.num_first + 1)
    assert server.server.exchange(request(70)).status == 504
    server.finish()
    with patient:
        assert read_answer(patient).status == 200


def test_an_error_of_one_row_is_not_one_of_its_batch(busy, changes):
    server = busy()

    def fault(rows):
        if 100 in rows:
            raise RuntimeError("secret of /srv/models")

    server.gate.fault = fault
    connections = [server.server.connect(request(100 + i)) for i in range(3)]
    changes("add", server.num_first + 3)
    server.finish()
    answers = []
    for connection in connections:
        with connection:
            answers.append(read_answer(connection))
    assert [answer.status for answer in answers] == [500, 200, 200]
    assert answers[0].error == "internal error; the server's log tells more"
    assert server.server.exchange(request(1)).status == 200
