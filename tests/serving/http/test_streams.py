"""`/generate_stream`: samples as server-sent events."""

import http.client
import json

import numpy as np
import pytest
from served import error_of, live, read_answer, watched
from shared import TOLERANCE

from artifex.generative_models.inference.batching import batcher
from artifex.serving import create_app

URL = "/v2/models/tiny/generate_stream"


@pytest.fixture(scope="module")
def server(pipeline):
    with live(create_app({"tiny": pipeline}, max_rows=40)) as server:
        yield server


@pytest.fixture
def gated(plain, gate):
    """A server of `plain` behind a gate."""
    with live(create_app({"plain": plain})) as server:
        yield server
        gate.release()


@pytest.fixture
def changes(monkeypatch):
    """Waits until schedulers have taken, or given up, so many requests."""
    return watched(monkeypatch, batcher.Scheduler, "add", "give_up")


def frames(content):
    """The events of a stream, which has nothing else."""
    *events, rest = content.split(b"\n\n")
    assert rest == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def stream_of(rows, endpoint="plain.double"):
    content = json.dumps({"x": [[float(row)] * 3 for row in rows]}).encode()
    head = f"POST /v2/models/{endpoint}/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: "
    return head.encode() + b"%d\r\n\r\n" % len(content) + content


@pytest.mark.parametrize("num_samples", [1, 2, 17, 18, 40])
def test_rows_come_in_order_and_are_those_of_generate(server, num_samples):
    body = {"num_samples": num_samples, "seed": 5}
    response = server.client.post(URL, json=body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = frames(response.content)
    assert [event["index"] for event in events] == list(range(num_samples))
    assert {(e["model_name"], e["model_version"], e["seed"]) for e in events} == {("tiny", "3", 5)}
    whole = server.client.post(URL.removesuffix("_stream"), json=body).json()["x"]
    np.testing.assert_allclose(
        np.array([event["x"] for event in events], np.float32), np.array(whole, np.float32), **TOLERANCE
    )


def test_a_seed_is_told_and_each_row_may_have_its_own(server):
    (first,) = frames(server.client.post(URL).content)
    (again,) = frames(server.client.post(URL, json={"seed": first["seed"]}).content)
    assert again == first
    seeds = [*range(20)]
    events = frames(server.client.post(URL, json={"seed": seeds}).content)
    alone = server.client.post(URL, json={"seed": seeds[18]})
    np.testing.assert_allclose(events[18]["x"], frames(alone.content)[0]["x"], **TOLERANCE)
    assert "seed" not in events[0]


@pytest.mark.parametrize(
    ("body", "status"), [({"seed": -1}, 400), ({"num_samples": 41}, 413), ({"outputs": ["z"]}, 400)]
)
def test_an_error_before_the_first_row_is_a_plain_response(server, body, status):
    response = server.client.post(URL, json=body)
    assert response.status_code == status
    assert error_of(response)


def test_the_first_row_comes_before_the_others_are_computed(gated, gate):
    gate.hold()
    with gated.connect(stream_of(range(30))) as connection:
        gate.wait(1)
        gate.release(1)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        first = response.readline() + response.readline()
        assert frames(first)[0]["y"] == [0, 0, 0]
        assert max(row for batch in gate.batches for row in batch.rows) < 17
        gate.release()
        assert len(frames(first + response.read())) == 30


def test_an_error_in_the_middle_is_the_last_event(gated, gate):
    def fault(rows):
        if 5 in rows:
            raise RuntimeError("secret of /srv/models")

    gate.fault = fault
    answer = gated.exchange(stream_of(range(30)))
    assert answer.status == 200
    *events, last = frames(answer.body)
    assert [event["index"] for event in events] == [0]
    assert last == {"error": "internal error; the server's log tells more"}
    gate.fault = lambda rows: None
    assert len(frames(gated.exchange(stream_of(range(30))).body)) == 30


def test_an_error_of_the_first_row_is_500(gated, gate):
    def fault(rows):
        raise RuntimeError("secret of /srv/models")

    gate.fault = fault
    answer = gated.exchange(stream_of(range(30)))
    assert answer.status == 500
    assert answer.error == "internal error; the server's log tells more"


def given_up(server):
    stats = server.app.plane.repository.entries["plain"].loaded.batcher.stats()
    return stats["double"].cancelled


def test_the_work_of_a_client_that_left_stops(gated, gate, changes):
    connection = gated.connect()
    gate.hold()
    connection.sendall(stream_of(range(100)))
    gate.wait(1)
    gate.release(1)
    assert connection.recv(1) == b"H"  # the first row has come
    gate.wait(2)
    connection.close()
    changes("give_up", 1)
    gate.release()
    assert gated.exchange(stream_of([200, 201])).status == 200
    rows = {row for batch in gate.batches for row in batch.rows}
    assert {200, 201} <= rows
    assert not rows & {*range(17, 100)}
    assert given_up(gated) == 1


def test_the_work_of_a_client_that_left_before_the_first_row_is_not_begun(gated, gate, changes, plain):
    gate.hold()
    first = []
    for n in range(plain.executions_in_flight):
        first.append(gated.connect(stream_of([0])))
        gate.wait(n + 1)
    connection = gated.connect(stream_of(range(100, 130)))
    changes("add", len(first) + 1)
    connection.close()
    changes("give_up", 1)
    gate.release()
    for connection in first:
        with connection:
            assert read_answer(connection).status == 200
    assert not {row for batch in gate.batches for row in batch.rows} & {*range(100, 130)}
