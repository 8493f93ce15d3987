"""What a server says: a line for each event, and for each request only if asked for."""

import json
import logging

import pytest
import tritonclient.grpc.aio as triton
from served import GOOD, MAX_BYTES, URL, live
from tritonclient.utils import InferenceServerException

from artifex.serving import create_app
from artifex.serving.grpc.service import create_grpc_server
from artifex.serving.observe.events import LEVELS, flush_events, log_event, show_events


@pytest.fixture(autouse=True)
def _events_go_where_they_went():
    logs = [logging.getLogger(name) for name in LEVELS]
    before = [(log.handlers[:], log.level, log.propagate) for log in logs]
    yield
    for log, (handlers, level, propagate) in zip(logs, before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)  # which also forgets what was let through


def lines(capsys):
    flush_events()
    return capsys.readouterr().err.splitlines()


def said(capsys):
    return list(map(json.loads, lines(capsys)))


def test_events_are_json_for_machines(capsys):
    show_events(as_json=True)
    log_event("ready", model="tiny", compiled=0, path=None)
    log_event('odd "words"\n', name="é\n")
    first, second = said(capsys)
    assert first.pop("time").endswith("Z")
    assert first == {"event": "ready", "model": "tiny", "compiled": 0, "path": None}
    assert second["event"] == 'odd "words"\n'
    assert second["name"] == "é\n"


def test_an_error_brings_its_traceback_to_the_log_alone(capsys):
    show_events(as_json=True)
    try:
        raise RuntimeError("inside")
    except RuntimeError as error:
        log_event("internal error", error)
    (line,) = said(capsys)
    assert "RuntimeError: inside" in line["traceback"]
    assert __file__ in line["traceback"]


def test_events_are_lines_for_people(capsys):
    show_events(as_json=False)
    log_event("ready", model="tiny", compiled=0)
    (line,) = lines(capsys)
    assert line.partition(" ")[2] == "ready model=tiny compiled=0"


def test_what_a_client_sends_cannot_forge_a_line(capsys):
    show_events(as_json=False)
    log_event("request", path="/\n2026-01-01T00:00:00Z ready model=evil")
    assert len(lines(capsys)) == 1


def test_requests_are_not_logged_unless_asked_for(compiled_plain, capsys):
    show_events(as_json=True)
    with live(create_app({"plain": compiled_plain})) as server:
        assert server.client.post(URL, json=GOOD).status_code == 200
    assert "request" not in {event["event"] for event in said(capsys)}


def test_the_access_log(compiled_plain, capsys):
    show_events(as_json=True)
    with live(create_app({"plain": compiled_plain}, access_log=True)) as server:
        server.client.post(URL, json=GOOD, headers={"x-request-id": "abc"})
        server.client.post(URL, content="{")
        server.client.get("/v2/nothing")
        size = len(server.client.get("/v2").content)
    *events, last = [event for event in said(capsys) if event["event"] == "request"]
    assert [(e["method"], e["path"], e["status"]) for e in events] == [
        ("POST", URL, 200),
        ("POST", URL, 400),
        ("GET", "/v2/nothing", 404),
    ]
    assert [event["request_id"] for event in events] == ["abc", "", ""]
    assert last["bytes"] == size
    assert last["client"] == "127.0.0.1"
    assert last["milliseconds"] > 0


def test_the_access_log_of_grpc(runner, plane, capsys):
    show_events(as_json=True)

    async def use(access_log):
        server, port = create_grpc_server(
            plane, "127.0.0.1:0", max_message_bytes=MAX_BYTES, access_log=access_log
        )
        await server.start()
        async with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            await client.get_server_metadata(headers={"x-request-id": "abc"})
            with pytest.raises(InferenceServerException):
                await client.get_model_metadata("other")
            assert [result async for result in client.stream_infer(requests())]
        await server.stop(None)

    async def requests():
        yield {"model_name": "tiny", "inputs": []}

    runner.run(use(access_log=False))
    assert said(capsys) == []
    runner.run(use(access_log=True))
    events = said(capsys)
    assert [(e["event"], e["method"], e["path"].rpartition("/")[2], e["status"]) for e in events] == [
        ("request", "gRPC", "ServerMetadata", "OK"),
        ("request", "gRPC", "ModelMetadata", "NOT_FOUND"),
        ("request", "gRPC", "ModelStreamInfer", "OK"),
    ]
    assert [event["request_id"] for event in events] == ["abc", "", ""]
    assert events[0]["bytes"] > 0
    assert events[0]["client"].startswith("ipv4:127.0.0.1:")
    assert events[0]["milliseconds"] > 0


def test_what_is_loaded_at_the_start_is_loaded_once(compiled_plain, pipeline, capsys):
    show_events(as_json=True)
    models = {"plain": compiled_plain, "tiny": pipeline}
    with live(create_app(models, watch_seconds=1e-6)) as server:
        assert server.client.get("/v2/health/ready").status_code == 200
    assert [event["model"] for event in said(capsys) if event["event"] == "loading"] == ["plain", "tiny"]


def test_the_api_key_is_in_no_log(compiled_plain, capsys):
    show_events(as_json=True)
    with live(create_app({"plain": compiled_plain}, access_log=True, api_key="sesame")) as server:
        server.client.get("/v2", headers={"authorization": "Bearer sesame"})
        server.client.get("/v2", headers={"authorization": "Bearer sesame2"})
    assert "sesame" not in capsys.readouterr().err


def test_loading_and_unloading_are_told(compiled_plain, capsys):
    show_events(as_json=True)
    with live(create_app({"plain": compiled_plain})) as server:
        server.client.post("/v2/repository/models/plain/unload")
    events = said(capsys)
    assert [event["event"] for event in events if event["event"] != "warm-up"] == [
        "loading",
        "ready",
        "unloaded",
    ]
    assert {event["model"] for event in events} == {"plain"}
    *_, last = [event for event in events if event["event"] == "warm-up" and event["endpoint"] == "noise"]
    assert last["done"] == last["total"] == 12


def test_an_internal_error_is_told_to_the_log_and_not_to_the_client(plain, gate, capsys):
    show_events(as_json=True)

    def fault(rows):
        raise RuntimeError("inside")

    gate.fault = fault
    with live(create_app({"plain": plain})) as server:
        response = server.client.post(URL, json=GOOD)
    assert "inside" not in response.text
    (event,) = [event for event in said(capsys) if event["event"] == "internal error"]
    assert "RuntimeError: inside" in event["traceback"]
