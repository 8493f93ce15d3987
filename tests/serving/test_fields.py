"""What callers say to a model that takes steps, by every way in: the samples are those of Python."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from served import error_of, grpc_of, live, watched
from shared import TOLERANCE
from tritonclient.utils import InferenceServerException
from walks import StepGate

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.fields import Field
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.batching.scheduler import Scheduler
from artifex.serving import create_app

URL = "/v2/models/tiny/generate"
INFER = "/v2/models/tiny/infer"
SAID = {"label": [0, 1, 2, 3], "sampler": ["ddim", "euler", "ddim", "heun"], "num_steps": [3, 2, 4, 2]}
FORMS = {"label": np.int32, "num_steps": np.int64, "sampler": object, "eta": np.float32}


class Shifted:
    """A field beside an input that callers give as it is."""

    fields: ClassVar = {
        "by": Field(int, 1, minimum=0, maximum=9),
        "loud": Field(bool, doc="Whether to shout."),
    }
    provides = ("shift",)

    def options(self, said):
        return {}

    def rows(self, said, num_rows, options):
        by = np.where(said.get("loud", False), 100, 1) * said["by"]
        return {"shift": np.broadcast_to(by, num_rows).astype(np.float32)}


def shifted(model, keys, inputs, *, twice=False):
    return {"y": (inputs["x"] + inputs["shift"][:, None]) * (2 if twice else 1)}


@pytest.fixture(scope="module")
def server(drawer):
    inputs = {"x": TensorSpec((3,), np.float32), "shift": TensorSpec((), np.float32)}
    endpoint = Endpoint(shifted, inputs, {"twice": False}, says=Shifted())
    plain = Executor(None, {"shifted": endpoint}, batch_sizes=(1, 2, 4))
    with live(create_app({"tiny": drawer, "plain": plain}, max_rows=300)) as server:
        yield server


@pytest.fixture(scope="module")
def grpc_address(server):
    with grpc_of(server) as address:
        yield address


@pytest.fixture(scope="module")
def drawn(drawer):
    """Samples as Python draws them, before they become uint8."""
    raw = InferencePipeline(drawer.executor)
    return lambda count, seed, **said: raw.generate(count, rngs=seed, **said)


@pytest.fixture(scope="module")
def wanted(drawn):
    return drawn(4, 7, **SAID)


def generated(server, **body):
    answer = server.client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["x"], np.float32)


def tensors(module, said):
    found = []
    for name, values in said.items():
        array = np.array(values, FORMS[name])
        datatype = {"i4": "INT32", "i8": "INT64", "f4": "FP32"}.get(array.dtype.str[1:], "BYTES")
        found.append(module.InferInput(name, array.shape, datatype).set_data_from_numpy(array))
    return found


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_over_http(server, wanted, binary):
    with triton.InferenceServerClient(server.address) as client:
        inputs = tensors(triton, SAID)
        if not binary:
            for one, values in zip(inputs, SAID.values(), strict=True):
                one.set_data_from_numpy(np.array(values, FORMS[one.name()]), binary_data=False)
        found = client.infer("tiny", inputs, parameters={"seed": 7})
        np.testing.assert_allclose(found.as_numpy("x"), wanted, **TOLERANCE)


def test_tensors_over_grpc(grpc_address, wanted):
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        found = client.infer("tiny", tensors(triton_grpc, SAID), parameters={"seed": 7})
        np.testing.assert_allclose(found.as_numpy("x"), wanted, **TOLERANCE)
        one = client.infer(
            "tiny", [], parameters={"seed": 7, "num_samples": 2, "label": 3, "sampler": "euler"}
        )
        assert one.as_numpy("x").shape == (2, 4, 4, 1)
        with pytest.raises(InferenceServerException, match=r"label: expected from 0 to 3, got 4") as caught:
            client.infer("tiny", [], parameters={"label": 4})
        assert "INVALID_ARGUMENT" in caught.value.status()


def test_one_value_is_for_all_rows(server, drawn):
    wanted = drawn(4, 3, label=2, sampler="ddim", num_steps=[1, 2, 3, 4], eta=0.5)
    said = {"label": [2], "sampler": ["ddim"], "num_steps": [[1], [2], [3], [4]], "eta": [0.5]}
    with triton.InferenceServerClient(server.address) as client:
        found = client.infer("tiny", tensors(triton, said), parameters={"seed": 3})
        np.testing.assert_allclose(found.as_numpy("x"), wanted, **TOLERANCE)
        parameters = {"seed": 3, "label": 2, "sampler": "ddim", "eta": 0.5}
        found = client.infer("tiny", tensors(triton, {"num_steps": [1, 2, 3, 4]}), parameters=parameters)
        np.testing.assert_allclose(found.as_numpy("x"), wanted, **TOLERANCE)


def test_json_forms_and_query_strings(server, drawn, wanted):
    np.testing.assert_allclose(generated(server, seed=7, **SAID), wanted, **TOLERANCE)
    one = drawn(1, 7, label=3, sampler="euler")
    np.testing.assert_allclose(generated(server, seed=7, label=3, sampler="euler"), one, **TOLERANCE)
    for asked in (
        {"params": {"seed": 7, "label": 3, "sampler": "euler"}},
        {"files": {"seed": (None, "7"), "label": (None, "3"), "sampler": (None, "euler")}},
    ):
        answer = server.client.post(URL, **asked).raise_for_status()
        np.testing.assert_allclose(answer.json()["x"], one, **TOLERANCE)


def test_a_stream_of_rows(server, wanted):
    answer = server.client.post("/v2/models/tiny/generate_stream", json={"seed": 7, **SAID})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [event["index"] for event in events] == [0, 1, 2, 3]
    np.testing.assert_allclose([event["x"] for event in events], wanted, **TOLERANCE)


def test_a_png_of_what_python_draws(server, drawer):
    answer = server.client.post(URL, json={"seed": 7, "label": 1}, headers={"accept": "image/png"})
    assert answer.headers["artifex-seed"] == "7"
    assert answer.content.startswith(b"\x89PNG")
    assert drawer.generate(1, rngs=7, label=1).dtype == np.uint8


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"label": 4}, "generate: label: expected from 0 to 3, got 4"),
        ({"label": "three"}, "label: expected an integer from 0 to 3, got 'three'"),
        ({"label": [0.5]}, "label: expected an integer from 0 to 3, got 0.5"),
        ({"label": [[0], [1, 2]]}, "label: expected an integer from 0 to 3, got [0]"),
        ({"label": True}, "label: expected an integer from 0 to 3, got True"),
        ({"label": []}, "label: expected one value"),
        ({"label": [1, 2], "num_samples": 3}, "label: expected one value, or 3, got shape [2]"),
        ({"label": {}}, "parameter 'label': expected a string, a number, true or false"),
        ({"sampler": "dpm"}, "sampler: expected one of ddpm, ddim, euler, euler_a, heun,"),
        ({"sampler": ["ddim", 3]}, "sampler: expected one of ddpm"),
        ({"num_steps": 0}, "num_steps: expected from 1 to 100, got 0"),
        ({"num_steps": 2**70}, "num_steps: expected"),
        ({"guidance_scale": 1e39}, "guidance_scale: expected a finite number"),
        ({"eta": 0.5, "sampler": "euler"}, "eta: the sampler euler takes none"),
        ({"temperature": 0.5}, "unknown parameter 'temperature'; it takes seed, num_samples"),
        ({"max_steps": 256}, "unknown parameter 'max_steps'"),
        ({"table": [[1.0]]}, "parameter 'table'"),
    ],
)
def test_what_does_not_fit_is_400(server, body, words):
    answer = server.client.post(URL, json=body)
    assert answer.status_code == 400, answer.text
    assert words in error_of(answer)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"name": "label", "datatype": "FP32", "shape": [1], "data": [1]}, "expected an integer"),
        ({"name": "label", "datatype": "BYTES", "shape": [1], "data": ["1"]}, "expected an integer"),
        ({"name": "sampler", "datatype": "INT64", "shape": [1], "data": [1]}, "expected one of ddpm"),
        ({"name": "table", "datatype": "FP32", "shape": [1], "data": [1]}, "unknown input 'table'; it takes"),
    ],
)
def test_tensors_that_do_not_fit_are_400(server, tensor, words):
    answer = server.client.post(INFER, json={"inputs": [tensor]})
    assert answer.status_code == 400, answer.text
    assert words in error_of(answer)


def test_text_that_is_no_utf_8_is_400(server):
    with triton.InferenceServerClient(server.address) as client:
        sampler = triton.InferInput("sampler", [1], "BYTES")
        sampler.set_data_from_numpy(np.array([b"\xff"], object))
        with pytest.raises(InferenceServerException, match="sampler: expected UTF-8"):
            client.infer("tiny", [sampler])


def test_a_tensor_and_a_parameter_are_one_too_many(server):
    label = {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]}
    answer = server.client.post(INFER, json={"inputs": [label], "parameters": {"label": 1}})
    assert "label: expected a tensor or a parameter, got both" in error_of(answer)


def test_fields_go_with_inputs_and_options_that_callers_give(server):
    url = "/v2/models/plain.shifted/generate"
    x = [[1, 2, 3], [4, 5, 6]]
    for body, wanted in (
        ({}, [[2, 3, 4], [5, 6, 7]]),
        ({"by": [0, 2]}, [[1, 2, 3], [6, 7, 8]]),
        ({"by": 3, "loud": [True, False]}, [[301, 302, 303], [7, 8, 9]]),
        ({"by": 1, "twice": True}, [[4, 6, 8], [10, 12, 14]]),
    ):
        answer = server.client.post(url, json={"x": x, **body})
        assert answer.json()["y"] == wanted
    assert error_of(server.client.post(url, json={"by": 3})) == "shifted: missing input 'x', rows of (3,)"
    refused = server.client.post(url, json={"x": x, "shift": 3})
    assert "unknown parameter 'shift'; it takes timeout, priority, twice, by, loud" in error_of(refused)


@pytest.fixture
def gate(server, monkeypatch):
    """Holds batches of the model between their steps, and tells of those that came."""
    return StepGate(monkeypatch)


def test_requests_that_differ_in_fields_share_batches_and_compile_nothing(
    server, drawn, gate, compilations, monkeypatch
):
    def said(number):
        sampler, scale = ["ddim", "unipc"][number % 2], 1 + number / 8
        return {
            "label": number % 4,
            "num_steps": 1 + number % 9,
            "sampler": sampler,
            "guidance_scale": scale,
        }

    wanted = [drawn(1, number, **said(number)) for number in range(15)]
    wait = watched(monkeypatch, Scheduler, "add")
    compilations.clear()
    gate.hold()
    with ThreadPoolExecutor(15) as pool:
        asked = [pool.submit(generated, server, seed=number, **said(number)) for number in range(15)]
        wait("add", 15)
        gate.release()
        for one, samples in zip(asked, wanted, strict=True):
            np.testing.assert_allclose(one.result(), samples, **TOLERANCE)
    assert compilations == []
    assert sum(rows for _, rows in gate.seen) == sum(said(number)["num_steps"] for number in range(15))
    assert max(rows for _, rows in gate.seen) == 4


def test_longer_tables_run_apart(server, drawn, gate, monkeypatch):
    wait = watched(monkeypatch, Scheduler, "add")
    counts = [3, 70, 4, 70, 5, 90]
    wanted = [drawn(1, count, sampler="ddim", num_steps=count) for count in counts]
    gate.hold()
    with ThreadPoolExecutor(len(counts)) as pool:
        asked = [
            pool.submit(generated, server, seed=count, sampler="ddim", num_steps=count) for count in counts
        ]
        wait("add", len(counts))
        gate.release()
        for one, samples in zip(asked, wanted, strict=True):
            np.testing.assert_allclose(one.result(), samples, **TOLERANCE)
    steps = {64: 0, 256: 0}
    for program, (_, rows) in zip(gate.programs, gate.seen, strict=True):
        steps[program.options["max_steps"]] += rows
    assert steps == {64: 3 + 4 + 5, 256: 70 + 70 + 90}


@pytest.mark.parametrize(("said", "status"), [({}, 200), ({"timeout": 50_000}, 504)])
def test_what_a_server_lets_wait_may_take_longer_unless_the_client_says_so(
    server, gate, monkeypatch, said, status
):
    monkeypatch.setattr(server.app.plane, "timeout", 0.05)
    gate.hold()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.client.post, URL, json={"seed": 1, "num_steps": 5, **said})
        gate.wait(1)
        time.sleep(0.06)
        gate.release()
        assert asked.result().status_code == status


def test_tables_take_no_memory_while_they_wait(server):
    loaded = server.app.plane.repository.entries["tiny"].loaded
    program = loaded.executor._catalog.find("generate", {})
    request = {"seed": 1, "num_samples": 300, "num_steps": 1, "label": [i % 4 for i in range(300)]}
    seen = []
    add = loaded.batcher._scheduler.add

    def adding(queued):
        seen.append(queued.job)
        return add(queued)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.batcher._scheduler, "add", adding)
        assert generated(server, **request).shape == (300, 4, 4, 1)
    (job,) = seen
    assert job.inputs == {}
    assert job.bytes_per_row == 4 * 4 * 4 < program.bytes_per_row


def test_the_metadata_lists_the_fields_and_no_table(server, grpc_address):
    wanted = {
        "num_steps": "INT64",
        "sampler": "BYTES",
        "eta": "FP32",
        "label": "INT64",
        "guidance_scale": "FP32",
        "guidance_rescale": "FP32",
        "guidance_start": "FP32",
        "guidance_stop": "FP32",
        "seed": "INT64",
    }
    with triton.InferenceServerClient(server.address) as client:
        inputs = client.get_model_metadata("tiny")["inputs"]
        assert {one["name"]: one["datatype"] for one in inputs} == wanted
        assert all(one["shape"] == [-1] for one in inputs)
        config = client.get_model_config("tiny")["input"]
        assert all(one["optional"] for one in config)
        shifted = {one["name"]: one["optional"] for one in client.get_model_config("plain.shifted")["input"]}
        assert shifted == {"x": False, "by": True, "loud": True}
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        assert [one.name for one in client.get_model_metadata("tiny").inputs] == list(wanted)


def test_the_document_and_the_page_tell_of_fields(server):
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/tiny/generate"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    many, one = body["schema"]["properties"]["label"]["anyOf"]
    assert one == {
        "type": "integer",
        "minimum": 0,
        "maximum": 3,
        "description": "The class; any if not said.",
    }
    assert many == {"type": "array", "items": one, "minItems": 1}
    assert body["schema"]["required"] == []
    query = {one["name"]: one["schema"] for one in operation["parameters"]}
    assert query["sampler"]["enum"][:2] == ["ddpm", "ddim"]
    assert query["num_steps"]["default"] == 3
    assert "table" not in body["schema"]["properties"]
    assert "max_steps" not in body["schema"]["properties"]
    assert body["example"]["guidance_scale"] == 1.0
    assert server.client.post(URL, json=body["example"]).status_code == 200
    general = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    example = general["application/json"]["examples"]["tiny"]["value"]
    assert server.client.post(INFER, json=example).status_code == 200
    page = server.client.get("/").text
    for words in ("from 0 to 3; The class; any if not said.", "one of ddpm, ddim", "With its fields"):
        assert words in page
