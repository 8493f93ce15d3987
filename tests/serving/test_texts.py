"""A model of text behind the server: prompts in, text out, by every protocol, and as it is written."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from served import Live, error_of, grpc_of, live

from artifex.generative_models.inference import InferencePipeline
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.serving import create_app

GPT2 = Path(__file__).parent.parent / "golden" / "gpt2"
URL = "/v2/models/writer/generate"
PROMPTS = ["The quick", "Zwölf Boxkämpfer, it's"]


@pytest.fixture(scope="module")
def pipeline() -> InferencePipeline:
    return load_pipeline(GPT2, batch_size=2)


@pytest.fixture(scope="module")
def server(pipeline: InferencePipeline) -> Iterator[Live]:
    with live(create_app({"writer": pipeline})) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(pipeline: InferencePipeline) -> dict[str, np.ndarray]:
    return pipeline.call("generate", num_rows=2, rngs=7, prompt=PROMPTS, num_tokens=12)


def test_by_json(server: Live, wanted: dict[str, np.ndarray]) -> None:
    answer = server.client.post(URL, json={"prompt": PROMPTS, "num_tokens": 12, "seed": 7}).json()
    assert answer["text"] == wanted["text"].tolist()
    assert answer["length"] == wanted["length"].tolist()
    some = {"prompt": PROMPTS, "num_tokens": 12, "seed": 7, "outputs": ["text"]}
    answer = server.client.post(URL, json=some).json()
    assert answer["text"] == wanted["text"].tolist()
    assert "tokens" not in answer


@pytest.mark.parametrize("binary", [True, False])
def test_by_tensors(server: Live, wanted: dict[str, np.ndarray], binary: bool) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    prompt = triton.InferInput("prompt", [2], "BYTES")
    prompt.set_data_from_numpy(np.array(PROMPTS, object), binary_data=binary)
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("text", "length")]
    given = {"parameters": {"num_tokens": 12, "seed": 7}}
    found = client.infer("writer", [prompt], outputs=asked, **given)
    assert [text.decode() if binary else text for text in found.as_numpy("text")] == wanted["text"].tolist()
    np.testing.assert_array_equal(found.as_numpy("length"), wanted["length"])
    assert found.as_numpy("tokens") is None
    outputs = {one["name"]: one for one in client.get_model_metadata("writer")["outputs"]}
    assert outputs["text"] == {"name": "text", "datatype": "BYTES", "shape": [-1]}


def test_by_grpc(server: Live, wanted: dict[str, np.ndarray]) -> None:
    with grpc_of(server) as address:
        client = triton_grpc.InferenceServerClient(address)
        prompt = triton_grpc.InferInput("prompt", [2], "BYTES")
        prompt.set_data_from_numpy(np.array(PROMPTS, object))
        found = client.infer("writer", [prompt], parameters={"num_tokens": 12, "seed": 7})
        assert [text.decode() for text in found.as_numpy("text")] == wanted["text"].tolist()


def test_text_comes_as_it_is_written(server: Live, pipeline: InferencePipeline) -> None:
    said = {"prompt": PROMPTS[1], "num_tokens": 12, "seed": 7}
    wanted = str(pipeline.call("generate", num_rows=1, rngs=7, prompt=PROMPTS[1], num_tokens=12)["text"][0])
    answer = server.client.post(f"{URL}_stream", json={**said, "every": 1})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["text"] == wanted
    for event in events[:-1]:
        assert event["preview"]
        assert event["text"].startswith(PROMPTS[1])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "A " * 60}, "prompt: expected at most 47 tokens"),
        ({"prompt": "A", "top_p": 1.5}, "top_p: expected above 0, at most 1, got 1.5"),
        ({"prompt": "A", "outputs": ["words"]}, "no output 'words'; it gives text, "),
    ],
)
def test_bad_requests(server: Live, body: dict[str, object], words: str) -> None:
    answer = server.client.post(URL, json=body)
    assert answer.status_code == 400
    assert words in error_of(answer)


def test_the_document_names_it(server: Live) -> None:
    document = server.client.get("/openapi.json").json()
    answer = document["paths"][URL]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["text"] == {"type": "array", "items": {"type": "string"}}
