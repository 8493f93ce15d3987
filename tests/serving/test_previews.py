"""Steps as streams: previews by server-sent events and over gRPC, for clients fast, slow and gone."""

import asyncio
import base64
import io
import json
import queue
import signal
import threading

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from every_family import FAMILIES
from PIL import Image
from served import Process, error_of, grpc_of, live
from shared import TIMEOUT, TOLERANCE
from walks import StepGate, walking

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import Executor, InferencePipeline, export_model
from artifex.generative_models.inference.offline.sampling import sampling
from artifex.serving import create_app
from artifex.serving.plane.origins import PipelineSource
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.streams import rows_and_previews

STREAM = "/v2/models/tiny/generate_stream"
SAID = {"num_steps": 6, "label": 1, "sampler": "ddim"}


def one_pass(model, keys, inputs):
    return {"y": inputs["x"] + 1}


@pytest.fixture(scope="module")
def walker():
    executor = Executor(
        {"scale": np.float32(0.9) * np.ones((), np.float32)}, {"walk": walking()}, batch_sizes=(1, 2, 4)
    )
    executor._runner.threaded = False  # one lane, whatever the machine
    return executor


@pytest.fixture(scope="module")
def server(drawer, walker):
    plain = Executor(
        None, {"plain": Endpoint(one_pass, {"x": TensorSpec((3,), np.float32)})}, batch_sizes=(1, 2)
    )
    with live(create_app({"tiny": drawer, "walker": walker, "plain": plain}, max_rows=40)) as server:
        yield server


@pytest.fixture(scope="module")
def grpc_address(server):
    with grpc_of(server) as address:
        yield address


@pytest.fixture
def gate(monkeypatch):
    gate = StepGate(monkeypatch)
    yield gate
    gate.release()


def events_of(response):
    """The events of a stream, which has nothing else."""
    assert response.status_code == 200, response.text
    *events, rest = response.content.split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def picture(url):
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_previews_come_before_each_row(server):
    body = {**SAID, "num_samples": 19, "seed": 5, "every": 2}
    events = events_of(server.client.post(STREAM, json=body))
    done = [event for event in events if "preview" not in event]
    assert [event["index"] for event in done] == list(range(19))
    whole = server.client.post(
        "/v2/models/tiny/generate", json={**SAID, "num_samples": 19, "seed": 5}
    ).json()["x"]
    np.testing.assert_allclose(np.array([e["x"] for e in done]), np.array(whole), **TOLERANCE)
    previews = [event for event in events if "preview" in event]
    assert previews
    finished = set()
    steps = {}
    for event in events:
        if "preview" in event:
            assert event["preview"] is True
            assert event["index"] not in finished
            assert event["step"] in (2, 4)
            assert event["step"] > steps.get(event["index"], 0)
            steps[event["index"]] = event["step"]
            assert np.shape(event["x"]) == np.shape(whole[0])
        else:
            finished.add(event["index"])
        assert (event["model_name"], event["seed"]) == ("tiny", 5)


def test_a_preview_is_what_the_sample_looks_like_after_those_steps(server, drawer, gate):
    gate.hold()
    frames = queue.Queue()

    def read():
        body = {**SAID, "seed": 5, "every": 2}
        with httpx.stream("POST", server.url + STREAM, json=body, timeout=TIMEOUT) as response:
            for line in response.iter_lines():
                if line:
                    frames.put(json.loads(line.removeprefix("data: ")))

    reader = threading.Thread(target=read)
    reader.start()
    seen = {}
    for _ in range(2):
        gate.release(2)
        event = frames.get(timeout=TIMEOUT)
        seen[event["step"]] = event["x"]
    gate.release()
    last = frames.get(timeout=TIMEOUT)
    reader.join(TIMEOUT)
    assert list(seen) == [2, 4]
    how = sampling(drawer.executor, 1, 1.0, SAID)
    given = {"inputs": how.rows(0, 1), "key": sample_key(5), **how.options}
    wanted = [progress.outputs["x"][0] for progress in drawer.executor.iterate("generate", **given)]
    for after, x in {**seen, 6: last["x"]}.items():
        np.testing.assert_allclose(np.array(x, np.float32), wanted[after - 1], rtol=1e-4, atol=1e-4)


def test_pictures_as_png(server):
    body = {**SAID, "num_samples": 2, "seed": 5}
    answer = server.client.post("/v2/models/tiny/generate", json={**body, "pictures": "png"}).json()
    events = events_of(server.client.post(STREAM, json={**body, "pictures": "png", "every": 3}))
    for index, url in enumerate(answer["x"]):
        alone = server.client.post(
            "/v2/models/tiny/generate",
            json={**body, "num_samples": index + 1},
            headers={"accept": "image/png"},
        )
        whole = np.asarray(Image.open(io.BytesIO(alone.content)))
        assert picture(url).shape == (4, 4)
        if not index:
            np.testing.assert_array_equal(picture(url), whole)
        (last,) = (e["x"] for e in events if e["index"] == index and "preview" not in e)
        np.testing.assert_allclose(picture(last).astype(int), picture(url), atol=1)
    assert all(picture(event["x"]).shape == (4, 4) for event in events)
    numbers = server.client.post("/v2/models/tiny/generate", json={**body, "pictures": "numbers"}).json()
    assert np.shape(numbers["x"]) == (2, 4, 4, 1)


@pytest.mark.parametrize(
    ("url", "body", "status", "words"),
    [
        (STREAM, {"every": 0}, 400, "every: expected a number of steps from 1, got 0"),
        (STREAM, {"every": -3}, 400, "expected a number of steps from 1"),
        (STREAM, {"every": 1.5}, 400, "expected a number of steps from 1"),
        (STREAM, {"every": "often"}, 400, "expected a number of steps from 1"),
        (STREAM, {"every": True}, 400, "expected a number of steps from 1"),
        (STREAM, {"every": [1, 2]}, 400, "every"),
        (STREAM, {"num_samples": 41}, 413, "41 rows in one request; this server takes 40"),
        (STREAM, {"num_samples": 0}, 400, "num_samples"),
        (STREAM, {"temperature": 2.0}, 400, "unknown parameter 'temperature'; it takes"),
        (STREAM, {"label": "data:image/png;base64,iVBO"}, 400, "label: expected an integer"),
        (STREAM, {"sampler": 3}, 400, "sampler: expected one of"),
        (STREAM, {"pictures": "gif"}, 400, "pictures: expected one of numbers, png, got 'gif'"),
        ("/v2/models/tiny/generate", {"every": 2}, 400, "unknown parameter 'every'"),
        (
            "/v2/models/tiny/infer",
            {"inputs": [], "parameters": {"every": 2}},
            400,
            "unknown parameter 'every'",
        ),
        (
            "/v2/models/plain.plain/generate_stream",
            {"x": [[0, 0, 0]], "every": 2},
            400,
            "plain takes no steps, so it has no previews",
        ),
    ],
)
def test_bad_requests(server, url, body, status, words):
    response = server.client.post(url, json=body)
    assert response.status_code == status
    assert words in error_of(response)


@pytest.mark.parametrize("kind", ["banana", "application/xml", "video/mp4", "text/html; charset=utf-8"])
def test_a_content_type_that_is_none(server, kind):
    for url in (STREAM, "/v2/models/tiny/generate"):
        response = server.client.post(url, content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415
        assert "Content-Type: expected application/json" in error_of(response)


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/x-www-form-urlencoded", "Text/Plain"]
)
def test_json_by_whatever_name(server, kind):
    headers = {} if kind is None else {"content-type": kind}
    response = server.client.post(STREAM, content=b'{"num_steps": 1}', headers=headers)
    assert len(events_of(response)) == 1


def stats(server, model, endpoint):
    return server.app.plane.repository.entries[model].loaded.counters()[endpoint]


def present(counters):
    """Rows that wait, and those under way."""
    return counters.queued_rows, counters.rows_in_flight


def until(condition):
    deadline = threading.Event()
    for _ in range(int(TIMEOUT / 0.002)):
        if condition():
            return
        deadline.wait(0.002)  # what it waits for is a counter of another thread
    raise AssertionError("it never came to be")


def test_a_client_that_leaves_frees_its_places(server, gate):
    before = stats(server, "walker", "walk")
    gate.hold()
    body = json.dumps({"num_steps": [100, 100], "seed": 1, "every": 1}).encode()
    head = b"POST /v2/models/walker.walk/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    connection = server.connect(head % len(body) + body)
    until(lambda: sum(present(stats(server, "walker", "walk"))) == 2)
    gate.release(2)
    gate.wait(3)
    assert connection.recv(4) == b"HTTP"  # the first preview is there
    connection.close()
    until(lambda: stats(server, "walker", "walk").cancelled - before.cancelled == 2)
    gate.release()
    until(lambda: not stats(server, "walker", "walk").rows_in_flight)
    now = stats(server, "walker", "walk")
    assert now.cancelled_rows - before.cancelled_rows == 2
    assert now.row_steps - before.row_steps < 30
    metrics = server.client.get("/metrics").text
    of = 'model="walker.walk",version="1"'
    assert f'artifex_rows_evicted{{cause="cancelled",{of}}} {float(now.cancelled_rows)}' in metrics
    assert f"artifex_first_preview_seconds_count{{{of}}} {float(now.previewed)}" in metrics
    assert now.previewed > before.previewed


def test_a_slow_reader_gets_the_newest(serving, walker, gate, runner):
    async def main():
        async with serving({"walker": PipelineSource(InferencePipeline(walker))}) as plane:
            gate.hold()
            inputs = {"num_steps": np.array([40, 9], np.int32)}
            request = InferRequest("walker.walk", inputs=inputs, parameters={"seed": 3, "every": 1})
            call = await plane.prepare(request, is_stream=True)
            parts = rows_and_previews(call, [0, 1, 2])
            first = asyncio.ensure_future(anext(parts))
            await asyncio.to_thread(gate.wait, 1)
            gate.release(1)
            begun = await first
            assert set(begun.steps) == {1}
            seen = len(gate.seen)
            gate.release(20)
            await asyncio.to_thread(gate.wait, seen + 20)
            await asyncio.sleep(0.05)  # in which what was seen comes to the loop
            following = await anext(parts)
            assert following.rows == [0]  # since the other is done
            assert following.steps[0] > 15
            gate.release()
            rest = [part async for part in parts]
            assert [part.rows for part in rest if part.steps is None] == [range(1), range(1, 2)]
            wanted = walker.run(walker.check("walk", inputs, seed=3))
            for part in rest:
                if part.steps is None:
                    np.testing.assert_allclose(
                        part.outputs["y"][0], wanted["y"][part.rows[0]], rtol=1e-5, atol=1e-5
                    )

    runner.run(main())


def test_the_stock_client_has_previews(server, grpc_address):
    answers = queue.Queue()
    num_steps = triton_grpc.InferInput("num_steps", [2], "INT64").set_data_from_numpy(np.array([6, 4]))
    sampler = triton_grpc.InferInput("sampler", [1], "BYTES").set_data_from_numpy(np.array([b"ddim"], object))
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        inputs = [num_steps, sampler]
        told = {"every": 2, "seed": 5}
        client.async_stream_infer(
            "tiny", inputs, request_id="a", parameters=told, enable_empty_final_response=True
        )
        client.async_stream_infer("tiny", inputs, request_id="b", parameters=told | {"every": 0})
        client.async_stream_infer("tiny", inputs, request_id="c", parameters={"seed": 5})
        client.stop_stream()
        plain = client.infer("tiny", inputs, parameters={"seed": 5}).as_numpy("x")
    found = {"a": [], "b": [], "c": []}
    while not answers.empty():
        result, error = answers.get()
        found["b" if error is not None else result.get_response().id].append(
            result if error is None else error
        )
    (error,), (whole,) = found["b"], found["c"]
    assert "every: expected a number of steps from 1, got 0" in str(error)
    np.testing.assert_allclose(whole.as_numpy("x"), plain, **TOLERANCE)
    *previews, last = found["a"]
    assert previews
    steps = {0: [], 1: []}
    for preview in previews:
        parameters = preview.get_response().parameters
        assert parameters["preview"].bool_param
        assert not parameters["triton_final_response"].bool_param
        assert len(preview.as_numpy("x")) == len(preview.as_numpy("index"))
        for index, step in zip(
            preview.as_numpy("index").tolist(), preview.as_numpy("step").tolist(), strict=True
        ):
            steps[index].append(step)
    assert set(steps[0]) <= {2, 4}
    assert set(steps[1]) <= {2}
    assert all(found == sorted(found) for found in steps.values())
    parameters = last.get_response().parameters
    assert parameters["triton_final_response"].bool_param
    assert "preview" not in parameters
    np.testing.assert_allclose(last.as_numpy("x"), plain, **TOLERANCE)


def test_a_unary_call_has_no_previews(server, grpc_address):
    with (
        triton_grpc.InferenceServerClient(grpc_address) as client,
        pytest.raises(triton_grpc.InferenceServerException, match="unknown parameter 'every'"),
    ):
        client.infer("tiny", [], parameters={"every": 2})


def test_a_grpc_client_that_leaves_frees_its_places(server, grpc_address, gate):
    before = stats(server, "walker", "walk")
    gate.hold()
    num_steps = triton_grpc.InferInput("num_steps", [2], "INT32").set_data_from_numpy(
        np.array([90, 90], np.int32)
    )
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(result))
        client.async_stream_infer("walker.walk", [num_steps], parameters={"every": 1})
        gate.wait(1)
        gate.release(2)
        answers.get(timeout=TIMEOUT)
        client.stop_stream(cancel_requests=True)
    until(lambda: stats(server, "walker", "walk").cancelled > before.cancelled)
    gate.release()
    until(lambda: not stats(server, "walker", "walk").rows_in_flight)
    now = stats(server, "walker", "walk")
    assert now.cancelled_rows - before.cancelled_rows == 2
    assert now.row_steps - before.row_steps < 30


def test_one_width_whatever_the_load(walker):
    with live(create_app({"walker": walker}, deterministic=True)) as server:
        loaded = server.app.plane.repository.entries["walker"].loaded
        assert len(loaded.batcher.batch_sizes_of("walk")) == 1
        url = "/v2/models/walker.walk/generate"
        alone = server.client.post(url, json={"num_steps": [9], "seed": 4}).json()["y"]
        body = {"num_steps": [9, 20, 3], "seed": 4}
        assert server.client.post(url, json=body).json()["y"][:1] == alone


def test_sigterm_ends_streams_when_they_are_done(tmp_path):
    path = export_model(FAMILIES["autoregressive"](), tmp_path / "tiny", step=1)
    with Process(path, "--batch-size", 2) as server:
        server.ready()
        found = []
        begun = threading.Semaphore(0)

        def draw(seed):
            body = {"num_samples": 1 + seed % 3, "seed": seed, "every": 10}
            with httpx.stream("POST", server.url + STREAM, json=body, timeout=TIMEOUT) as response:
                assert response.status_code == 200
                lines = response.iter_lines()
                first = next(lines)
                begun.release()
                events = [json.loads(line.removeprefix("data: ")) for line in (first, *lines) if line]
                found.append((body["num_samples"], events))

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=TIMEOUT)
        server.signal(signal.SIGTERM)
        for thread in threads:
            thread.join(TIMEOUT)
        assert server.wait() == 0
    assert len(found) == 6
    for num_samples, events in found:
        assert not [event["error"] for event in events if "error" in event]
        assert [event["index"] for event in events if "preview" not in event] == [*range(num_samples)]
