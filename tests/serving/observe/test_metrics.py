"""Prometheus counters under the names that dashboards know."""

import json
import re
from typing import NamedTuple

import pytest
from served import URL, live

from artifex.serving import create_app
from artifex.serving.observe.metrics import prometheus_text

TRITON = [
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
]
MORE = ["artifex_queue_rows", "artifex_rows_per_batch_count", "artifex_rows_per_batch_sum"]


@pytest.fixture
def server(plain):
    with live(create_app({"plain": plain})) as server:
        yield server


def double(num_rows):
    x = {"name": "x", "datatype": "FP32", "shape": [num_rows, 3], "data": [1] * (3 * num_rows)}
    return json.dumps({"inputs": [x]})


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def samples_of(text):
    """What Prometheus reads; its Python client's parser would add `_total` to the names of counters."""
    found = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    return [
        Sample(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
        for name, labels, value in found
    ]


def scrape(server, model="plain.double", version="1"):
    """The samples of an endpoint, by name."""
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    labels = {"model": model, "version": version}
    return {s.name: s.value for s in samples_of(response.text) if s.labels == labels}


def test_names_and_labels(server):
    text = server.client.get("/metrics").text
    samples = samples_of(text)
    assert {*TRITON, *MORE, "artifex_compiles", "process_resident_memory_bytes"} <= {s.name for s in samples}
    for name in TRITON:
        models = {s.labels["model"]: s.labels["version"] for s in samples if s.name == name}
        assert models == {"plain.double": "1", "plain.scaled": "1", "plain.noise": "1"}
        kind = "gauge" if "pending" in name else "counter"
        assert f"\n# TYPE {name} {kind}\n" in f"\n{text}"
    assert "untyped" not in text
    (ready,) = (s for s in samples if s.name == "artifex_model_ready")
    assert (ready.labels, ready.value) == ({"model": "plain"}, 1)


def test_every_sample_follows_its_help_and_type(server):
    said, kinds = [], {}
    for line in server.client.get("/metrics").text.splitlines():
        mark, what, name, *rest = [*line.split(" ", 3), "", ""] if line.startswith("#") else ("", "", line)
        if mark:
            assert rest[0]
            said.append((what, name))
            kinds[name] = rest[0]
        else:
            sample, family = re.sub(r"[{ ].*", "", name), said[-1][1]
            assert said[-2:] == [("HELP", family), ("TYPE", family)]
            ends = ("_count", "_sum") if kinds[family] == "summary" else ("",)
            assert sample in [family + end for end in ends]
            assert kinds[family] in ("counter", "gauge", "summary")
    assert len(said) == len(set(said)) == 2 * len(kinds)


def test_known_requests_give_known_values(server):
    assert set(scrape(server).values()) == {0}
    for num_rows in (1, 2, 5):
        assert server.client.post(URL, content=double(num_rows)).status_code == 200
    assert server.client.post(URL, content="{").status_code == 400
    assert server.client.post(URL, json={"inputs": []}).status_code == 400
    assert server.client.post("/v2/models/plain.double/generate", json={"y": 1}).status_code == 400
    found = scrape(server)
    assert found["nv_inference_request_success"] == 3
    assert found["nv_inference_request_failure"] == 3
    assert found["nv_inference_count"] == found["artifex_rows_per_batch_sum"] == 8
    assert 3 <= found["nv_inference_exec_count"] == found["artifex_rows_per_batch_count"] <= 8
    assert found["nv_inference_pending_request_count"] == found["artifex_queue_rows"] == 0
    assert found["nv_inference_request_duration_us"] > found["nv_inference_queue_duration_us"] > 0
    for part in ("input", "infer", "output"):
        assert found[f"nv_inference_compute_{part}_duration_us"] > 0
    assert set(scrape(server, "plain.noise").values()) == {0}


def test_a_failure_to_run_counts(server, gate):
    def fault(rows):
        raise RuntimeError

    gate.fault = fault
    assert server.client.post(URL, content=double(1)).status_code == 500
    gate.fault = lambda rows: None
    found = scrape(server)
    assert (found["nv_inference_request_failure"], found["nv_inference_request_success"]) == (1, 0)


def test_what_waits_is_told_while_it_waits(server, gate, plain):
    gate.hold()
    connections = []
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: {{}}\r\n\r\n"
    for n in range(plain.executions_in_flight + 1):
        body = double(2 if n == plain.executions_in_flight else 1)
        connections.append(server.connect((head.format(len(body)) + body).encode()))
        if n < plain.executions_in_flight:
            gate.wait(n + 1)
    found = scrape(server)
    while not found["nv_inference_pending_request_count"]:  # the last one is on its way
        found = scrape(server)
    assert found["nv_inference_pending_request_count"] == 1
    assert found["artifex_queue_rows"] == 2
    assert found["artifex_rows_in_flight"] == plain.executions_in_flight
    gate.release()
    for connection in connections:
        with connection:
            assert connection.recv(12) == b"HTTP/1.1 200"
    assert scrape(server)["artifex_queue_rows"] == 0


def test_counters_survive_reloads_and_unloading(server):
    for n in range(1, 4):
        assert server.client.post(URL, content=double(1)).status_code == 200
        assert server.client.post(URL, content="{").status_code == 400
        assert server.client.post("/v2/repository/models/plain/load").status_code == 200
        found = scrape(server)
        while found["nv_inference_request_success"] < n:  # what is replaced drains first
            found = scrape(server)
        assert found["nv_inference_request_success"] == found["nv_inference_count"] == n
        assert found["nv_inference_request_failure"] == n
    server.client.post("/v2/repository/models/plain/unload")
    assert scrape(server)["nv_inference_request_success"] == 3
    server.client.post("/v2/repository/models/plain/load")
    assert scrape(server)["nv_inference_request_success"] == 3


def test_counters_never_go_down(server):
    """A counter that falls for a moment is a reset to Prometheus, and its rate is then wrong."""
    assert server.client.post(URL, content=double(4)).status_code == 200

    async def reload():
        """Looks between the swap and the end of what is replaced, as a scrape may."""
        await server.app.plane.repository.load("plain")
        return prometheus_text([server.app.plane.repository.entries["plain"].counters()]).decode()

    (count,) = [
        s.value
        for s in samples_of(server.call(reload()))
        if (s.name, s.labels.get("model")) == ("nv_inference_count", "plain.double")
    ]
    assert count == 4
