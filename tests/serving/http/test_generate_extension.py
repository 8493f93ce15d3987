"""The generate extension: JSON with defaults, picture files in, PNGs out, and samples as they are drawn."""

import base64
import io
import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from served import Answer, error_of, live, read_answer
from shared import TOLERANCE

from artifex.serving import create_app

URL = "/v2/models/tiny/generate"
ENCODE = "/v2/models/tiny.encode/generate"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)


@pytest.fixture(scope="module")
def server(pipeline, compiled_plain):
    with live(create_app({"tiny": pipeline, "plain": compiled_plain}, max_rows=40)) as server:
        yield server


@pytest.fixture(scope="module")
def drawn(pipeline):
    """Samples of a seed, as the executor draws them."""
    return lambda seed, n: np.asarray(
        pipeline.executor("generate", key=nnx.Rngs(seed).sample(), num_rows=n)["x"]
    )


def file_of(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def shown(content):
    """A PNG's pixels."""
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_nothing_at_all_is_one_sample_that_can_be_drawn_again(server, drawn):
    for content in (b"", b"{}"):
        response = server.client.post(URL, content=content)
        assert response.status_code == 200
        answer = response.json()
        assert (answer["model_name"], answer["model_version"]) == ("tiny", "3")
        assert response.headers["artifex-seed"] == str(answer["seed"])
        x = np.array(answer["x"], np.float32)
        np.testing.assert_array_equal(x, drawn(answer["seed"], 1))


def test_content_types_of_careless_clients_are_json_all_the_same(server, drawn):
    body = b'{"num_samples": 3, "seed": 5}'
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        response = server.client.post(URL, content=body, headers={"content-type": kind})
        assert response.status_code == 200
        np.testing.assert_allclose(np.array(response.json()["x"], np.float32), drawn(5, 3), **TOLERANCE)


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("?num_samples=3&seed=5&temperature=0.5", {}),
        ("?seed=5", {"num_samples": 3, "temperature": 0.5}),
        ("", {"num_samples": 3, "seed": 5, "temperature": [0.5]}),
        ("", {"num_samples": 3, "seed": 5, "temperature": [0.5] * 3}),
        ("?seed=5", {"temperature": 0.5, "parameters": {"num_samples": 3}}),
    ],
)
def test_parameters_come_by_any_way(server, query, body, pipeline):
    answer = server.client.post(URL + query, json=body).json()
    inputs = {"temperature": np.full(3, 0.5, np.float32)}
    wanted = pipeline.executor("generate", inputs, key=nnx.Rngs(5).sample())["x"]
    np.testing.assert_allclose(np.array(answer["x"], np.float32), wanted, **TOLERANCE)


def test_a_list_of_seeds_is_one_a_row(server, drawn):
    answer = server.client.post(URL, json={"seed": [5, 9]}).json()
    wanted = np.concatenate([drawn(5, 1), drawn(9, 1)])
    np.testing.assert_allclose(np.array(answer["x"], np.float32), wanted, **TOLERANCE)
    assert "seed" not in answer


def test_outputs_are_chosen_and_the_id_comes_back(server):
    x = np.zeros((8, 8, 1)).tolist()
    answer = server.client.post(ENCODE, json={"x": x, "outputs": ["mean"], "id": "mine"}).json()
    assert {*answer} == {"model_name", "model_version", "id", "mean"}
    assert answer["id"] == "mine"


def test_a_version_may_be_named(server):
    assert server.client.post("/v2/models/tiny/versions/3/generate").json()["model_version"] == "3"
    assert server.client.post("/v2/models/tiny/versions/4/generate").status_code == 404


def test_a_png_of_one_sample_is_its_picture(server, pipeline):
    response = server.client.post(URL, json={"seed": 5}, headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.headers["artifex-seed"] == "5"
    wanted = pipeline.postprocess_fn(pipeline.executor("generate", key=nnx.Rngs(5).sample(), num_rows=1)["x"])
    np.testing.assert_array_equal(shown(response.content), np.asarray(wanted)[0, ..., 0])


SIDES = range(0, 4 * 130, 130)


def test_a_png_of_several_samples_is_a_grid_of_them(server, pipeline, drawn):
    response = server.client.post(
        URL, content=b'{"num_samples": 16, "seed": 1}', headers={"accept": "image/png"}
    )
    grid = shown(response.content)
    assert grid.shape[0] == grid.shape[1] == 4 * (16 * 8 + 2) - 2  # sixteen times as large, to be seen
    grid = np.block([[grid[y : y + 128 : 16, x : x + 128 : 16] for x in SIDES] for y in SIDES])
    pixels = np.asarray(pipeline.postprocess_fn(drawn(1, 16)))[..., 0].astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(grid.astype(int), (8, 8)).reshape(-1, 8, 8)
    for picture in pixels:  # each is somewhere, up to one level of rounding
        assert np.abs(windows - picture).max(axis=(1, 2)).min() <= 1


def test_a_png_of_what_is_no_picture_is_400(server):
    response = server.client.post(
        ENCODE, json={"x": np.zeros((8, 8, 1)).tolist()}, headers={"accept": "image/png"}
    )
    assert response.status_code == 400
    assert "no pictures" in error_of(response)


def encoded(pipeline, pixels):
    return pipeline.executor("encode", {"x": np.float32(pixels[..., None] / np.float32(255))})["mean"]


def check_means(response, pipeline, pixels):
    assert response.status_code == 200, response.text
    mean = np.array(response.json()["mean"], np.float32)
    np.testing.assert_allclose(mean, encoded(pipeline, pixels), **TOLERANCE)


def test_an_uploaded_picture_is_an_input(server, pipeline):
    jpeg = file_of(PIXELS[0], "JPEG")
    for content, kind, pixels in [
        (file_of(PIXELS[0]), "image/png", PIXELS[0]),
        (jpeg, "image/jpeg", np.asarray(Image.open(io.BytesIO(jpeg)))),
    ]:
        response = server.client.post(ENCODE, content=content, headers={"content-type": kind})
        check_means(response, pipeline, pixels[None])


@pytest.mark.parametrize("field", ["x", "file"])
def test_files_of_a_form_are_rows(server, pipeline, field):
    files = [(field, (f"{i}.png", file_of(PIXELS[i]), "image/png")) for i in range(3)]
    response = server.client.post(ENCODE, files=files, data={"outputs": '["mean"]', "id": "seven"})
    check_means(response, pipeline, PIXELS)
    assert {*response.json()} == {"model_name", "model_version", "id", "mean"}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_strings_are_pictures_in_base64(server, pipeline, start, many):
    strings = [start + base64.b64encode(file_of(picture)).decode() for picture in PIXELS]
    response = server.client.post(ENCODE, json={"x": strings if many else strings[0]})
    check_means(response, pipeline, PIXELS if many else PIXELS[:1])


def test_pictures_of_another_size_are_resized_only_if_asked(server):
    large = file_of(np.kron(PIXELS[0], np.ones((4, 4), np.uint8)))
    headers = {"content-type": "image/png"}
    refused = server.client.post(ENCODE, content=large, headers=headers)
    assert refused.status_code == 400
    assert "32" in error_of(refused)
    resized = server.client.post(f"{ENCODE}?resize=true", content=large, headers=headers)
    assert resized.status_code == 200
    as_form = server.client.post(ENCODE, files={"x": ("a.png", large)}, data={"resize": "true"})
    assert as_form.json()["mean"] == resized.json()["mean"]


def lying(pixels):
    """A PNG whose header says that it is far larger than it is."""
    content = bytearray(file_of(pixels))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        lying(PIXELS[0]),
        file_of(PIXELS[0])[:-30],
        file_of(PIXELS[0])[:20],
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"GIF89a" + b"\0" * 50,
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0" * 1000,
    ],
)
def test_a_damaged_picture_is_400(server, content):
    by_file = server.client.post(ENCODE, content=content, headers={"content-type": "image/png"})
    by_string = server.client.post(ENCODE, json={"x": base64.b64encode(content).decode()})
    for response in (by_file, by_string):
        assert response.status_code == 400
        assert error_of(response)
    good = server.client.post(ENCODE, content=file_of(PIXELS[0]), headers={"content-type": "image/png"})
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        (URL, "image/png", file_of(PIXELS[0])),
        (URL, "application/json", b"{"),
        (URL, "application/json", b"[" * 5000),
        (URL, "application/json", b'{"num_samples": 0}'),
        (URL, "application/json", b'{"num_samples": 1.5}'),
        (URL, "application/json", b'{"num_samples": true}'),
        (URL, "application/json", b'{"samples": 3}'),
        (URL, "application/json", b'{"seed": -1}'),
        (URL, "application/json", b'{"seed": 4294967296}'),
        (URL, "application/json", b'{"seed": "five"}'),
        (URL, "application/json", b'{"seed": [1, "2"]}'),
        (URL, "application/json", b'{"seed": []}'),
        (URL, "application/json", b'{"seed": [null]}'),
        (URL, "application/json", b'{"seed": [1, 2], "num_samples": 3}'),
        (URL, "application/json", b'{"temperature": "hot"}'),
        (URL, "application/json", b'{"temperature": [null]}'),
        (URL, "application/json", b'{"temperature": {}}'),
        (URL, "application/json", b'{"outputs": "x"}'),
        (URL, "application/json", b'{"outputs": ["y"]}'),
        (URL, "application/json", b'{"id": 3}'),
        (URL, "application/json", b'{"parameters": []}'),
        (URL, "application/json", b'{"resize": 1}'),
        (URL + "?seed=1&seed=2", "application/json", b""),
        (URL + "?seed=1", "application/json", b'{"seed": 1}'),
        (URL + "?num_samples=" + "[" * 3000, "application/json", b""),
        (ENCODE, "application/json", b"{}"),
        (ENCODE, "application/json", b'{"x": "?"}'),
        (ENCODE, "application/json", b'{"x": ["data:image/png;base64,AAA", 1]}'),
        (ENCODE, "application/json", b'{"x": []}'),
        (ENCODE, "multipart/form-data", b"nonsense"),
        (ENCODE, "multipart/form-data; boundary=b", b"nonsense"),
        (
            ENCODE,
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n',
        ),
    ],
)
def test_bad_requests_are_400_and_the_next_works(server, path, kind, content):
    response = server.client.post(path, content=content, headers={"content-type": kind})
    assert response.status_code == 400
    assert error_of(response)
    assert server.client.post(URL).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b'{"temperature": null, "id": null, "outputs": null, "parameters": null, "resize": null}',
        b'{"parameters": {"temperature": null, "content_type": "np"}}',
    ],
)
def test_null_is_what_is_not_there(server, content):
    plain, answer = (server.client.post(URL + "?seed=3", content=body) for body in (b"", content))
    assert (plain.status_code, answer.status_code) == (200, 200)
    assert plain.json() == answer.json()
    assert server.client.post(URL, content=b'{"seed": null, "num_samples": null}').status_code == 200


def test_too_many_samples_are_413(server):
    response = server.client.post(URL, json={"num_samples": 41})
    assert response.status_code == 413
    assert error_of(response)


def test_an_error_is_told_to_raw_clients_in_the_same_form(server):
    answer = server.exchange(f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{{".encode())
    assert isinstance(answer, Answer)
    assert "JSON" in answer.error
    with server.connect(f"POST {URL} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}".encode()) as connection:
        assert json.loads(read_answer(connection).body)["model_name"] == "tiny"
