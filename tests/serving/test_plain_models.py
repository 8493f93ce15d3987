"""`/generate` of models that are in memory, without a config or a range of pixels, and of rare dtypes."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from served import error_of, live

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Executor
from artifex.serving import create_app

HALVED = "/v2/models/m.halved"
DRAWN = "/v2/models/m"
PNG = {"accept": "image/png"}


def halved(model, keys, inputs, *, twice=False):
    return {"y": inputs["x"] / (4 if twice else 2)}


def drawn(model, keys, inputs):
    pictures = jax.vmap(lambda key: jax.random.uniform(key, (4, 5, 1)))(keys)
    return {"image": pictures, "mean": pictures.mean((1, 2, 3))}


@pytest.fixture(scope="module")
def server():
    endpoints = {
        "halved": Endpoint(halved, {"x": TensorSpec((3,), jnp.bfloat16)}, {"twice": False}),
        "generate": Endpoint(drawn, {}),
        "chosen": Endpoint(
            lambda m, k, inputs: {"y": inputs["x"]}, {"x": TensorSpec((2,), np.int32, minimum=3, maximum=5)}
        ),
    }
    with live(create_app({"m": Executor(None, endpoints, batch_sizes=(1, 2))})) as server:
        yield server


def test_bfloat16_is_numbers(server):
    answer = server.client.post(f"{HALVED}/generate", json={"x": [[1, 2, 3], [4, 5, 6]]})
    assert answer.json()["y"] == [[0.5, 1, 1.5], [2, 2.5, 3]]
    stream = server.client.post(f"{HALVED}/generate_stream", json={"x": [1, 2, 3]}).text
    assert json.loads(stream.removeprefix("data: "))["y"] == [0.5, 1, 1.5]


def test_integers_of_a_range(server):
    url = "/v2/models/m.chosen/generate"
    assert server.client.post(url, json={"x": [3, 5]}).json()["y"] == [[3, 5]]
    for x in ([2, 4], [5, 6]):
        response = server.client.post(url, json={"x": x})
        assert response.status_code == 400
        assert "x: expected integers from 3 to 5" in error_of(response)
    document = server.client.get("/openapi.json").json()["paths"]
    body = document[url]["post"]["requestBody"]["content"]["application/json"]
    _, one = body["schema"]["properties"]["x"]["anyOf"]
    assert one["items"] == {"type": "integer", "minimum": 3, "maximum": 5}
    assert server.client.post(url, json=body["example"]).json()["y"] == [[3, 3]]


def test_options_are_parameters(server):
    assert server.client.post(f"{HALVED}/generate", json={"x": [4, 4, 4], "twice": True}).json()["y"] == [
        [1] * 3
    ]


@pytest.mark.parametrize(
    "body", [{"x": 0}, {"x": None}, {"x": {}}, {"x": [4, 4, 4], "twice": "no"}, {"x": []}]
)
def test_what_is_no_row_is_400(server, body):
    assert error_of(server.client.post(f"{HALVED}/generate", json=body))
    assert server.client.post(f"{HALVED}/generate", json={"x": [1, 2, 3]}).status_code == 200


@pytest.mark.parametrize("body", [{"seed": 1}, {"seed": 1, "outputs": []}, {"seed": 1, "outputs": ["image"]}])
def test_a_png_shows_a_range_from_0_to_1(server, body):
    numbers = np.array(server.client.post(f"{DRAWN}/generate", json={"seed": 1}).json()["image"])[0, ..., 0]
    response = server.client.post(f"{DRAWN}/generate", json=body, headers=PNG)
    assert response.headers["artifex-seed"] == "1"
    pixels = np.asarray(Image.open(io.BytesIO(response.content)))
    np.testing.assert_allclose(pixels, 255 * numbers, atol=0.51)


def test_a_png_of_numbers_alone_is_400(server):
    response = server.client.post(f"{DRAWN}/generate", json={"outputs": ["mean"]}, headers=PNG)
    assert response.status_code == 400
    assert "no pictures" in error_of(response)
