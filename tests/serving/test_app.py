"""`create_app`: what it takes, keys and origins, and mounting it in another application."""

import hmac
import re
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
from flax import nnx
from served import GOOD, URL, error_of, live, live_asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from artifex.generative_models.core.errors import InputError
from artifex.serving import create_app

KEY = {"authorization": "Bearer sesame"}
HEALTH = ["/v2/health/live", "/v2/health/ready"]
PATHS = ["/docs", "/openapi.json", "/metrics", "/studio/models.json", "/v2", "/v2/models/plain.double"]
PATHS += ["/v2/nothing", "/infer", "/studio/nothing.js", "/studio/%2e%2e/x"]


@pytest.fixture(scope="module")
def server(compiled_plain):
    with live(create_app({"plain": compiled_plain})) as server:
        yield server


@pytest.fixture(scope="module")
def locked(compiled_plain):
    with live(
        create_app({"plain": compiled_plain}, api_key="sesame", cors_origins=["https://a.b"])
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("models", "settings"),
    [
        ([], {}),
        ({}, {}),
        (["a/tiny", "b/tiny"], {}),
        ({"a b": "tiny"}, {}),
        ({"../tiny": "tiny"}, {}),
        ({"": "tiny"}, {}),
        ({".": "tiny"}, {}),
        (["tiny"], {"max_rows": 0}),
        (["tiny"], {"max_body_bytes": 0}),
        (["tiny"], {"max_queued_rows": -1}),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(models, settings):
    with pytest.raises(InputError):
        create_app(models, **settings)


def test_a_model_a_pipeline_an_executor_and_an_export_are_served(tiny_vae, pipeline, compiled_plain, made):
    from artifex.generative_models.inference import Executor

    model = Executor(tiny_vae, batch_sizes=(1,))
    models = {"pipeline": pipeline, "executor": compiled_plain, "model": model, "export": made}
    with live(create_app(models, batch_size=1)) as server:
        index = server.client.post("/v2/repository/index").json()
        assert {(m["name"], m["version"], m["state"]) for m in index} == {
            ("pipeline", "3", "READY"),
            ("executor", "1", "READY"),
            ("model", "1", "READY"),
            ("export", "3", "READY"),
        }
        drawn = [
            server.client.post(f"/v2/models/{name}/generate", json={"seed": 5}).json()["x"]
            for name in ("pipeline", "model", "export")
        ]
    wanted = pipeline.executor("generate", key=nnx.Rngs(5).sample(), num_rows=1)["x"]
    for x in drawn:  # the same weights
        np.testing.assert_allclose(np.array(x, np.float32), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer sesam", "Basic sesame", "Bearer sesame2"]
)
@pytest.mark.parametrize("path", [*PATHS, URL])
def test_without_the_key_nothing_is_told(locked, path, authorization):
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    response = locked.client.request("POST" if path == URL else "GET", path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "sesame" not in error_of(response)


@pytest.mark.parametrize("authorization", [None, "Bearer sesam"])
def test_without_the_key_the_page_asks_for_it_and_names_no_model(locked, authorization):
    headers = {} if authorization is None else {"authorization": authorization}
    page = locked.client.get("/", headers=headers)
    assert page.status_code == 200
    assert "data-locked" in page.text
    assert "plain" not in page.text
    assert "data-locked" not in locked.client.get("/", headers=KEY).text
    for file in ("studio.js", "studio.css", "page.css", "icon.svg"):
        assert locked.client.get(f"/studio/{file}", headers=headers).status_code == 200


def test_with_the_key_all_is_as_without_keys(locked):
    statuses = [locked.client.get(path, headers=KEY).status_code for path in PATHS]
    assert statuses == [200] * 6 + [404] * 4
    assert "plain.double" in locked.client.get("/", headers=KEY).text
    assert locked.client.post(URL, json=GOOD, headers=KEY).status_code == 200


def test_a_key_is_the_same_text_as_a_terminal_sends_it(compiled_plain):
    with live(create_app({"plain": compiled_plain}, api_key="sésame")) as server:
        response = server.client.get("/v2", headers={"authorization": "Bearer sésame".encode()})
        assert response.status_code == 200


def test_health_takes_no_key(locked):
    for path in HEALTH:
        assert locked.client.get(path).status_code == 200


def test_a_body_without_the_key_is_not_read(locked):
    head = f"POST {URL} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    assert locked.exchange(head.encode()).status == 401


def test_keys_are_compared_in_constant_time(locked, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    response = locked.client.get("/v2", headers=KEY)
    assert response.status_code == 401
    ((given, key),) = compared
    assert key == b"sesame"
    assert given == key


PREFLIGHT = {"origin": "https://a.b", "access-control-request-method": "POST"}


def test_other_origins_are_off_by_default(server):
    response = server.client.options(URL, headers=PREFLIGHT)
    assert response.status_code == 405
    simple = server.client.get("/v2", headers={"origin": "https://a.b"})
    for answer in (response, simple):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_that_is_let_in(locked):
    asks = {**PREFLIGHT, "access-control-request-headers": "authorization, inference-header-content-length"}
    response = locked.client.options(URL, headers=asks)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.b"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "inference-header-content-length" in response.headers["access-control-allow-headers"].lower()
    headers = {**KEY, "origin": "https://a.b"}
    response = locked.client.post(URL, json=GOOD, headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.b"


def test_a_script_that_is_let_in_may_read_how_long_the_json_is(locked):
    headers = {**KEY, "origin": "https://a.b"}
    binary = {**GOOD, "parameters": {"binary_data_output": True}}
    response = locked.client.post(URL, json=binary, headers=headers)
    exposed = response.headers["access-control-expose-headers"].lower()
    assert "inference-header-content-length" in exposed


def test_another_origin_is_not_let_in(locked):
    response = locked.client.options(URL, headers={**PREFLIGHT, "origin": "https://evil"})
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", URL, GOOD),
        ("POST", URL, {}),
        ("GET", "/v2", None),
        ("GET", "/v2/health/ready", None),
        ("POST", "/v2/models/plain.double/generate", {"x": [1, 2, 3]}),
        ("POST", "/v2/models/plain.double/generate_stream", {"x": [1, 2, 3]}),
        ("GET", "/v2/nothing", None),
    ],
)
def test_the_request_id_comes_back(server, method, path, body):
    response = server.client.request(method, path, json=body, headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"


def test_mounted_without_a_lifespan_it_loads_with_the_first_request(compiled_plain):
    app = create_app({"plain": compiled_plain})
    with live_asgi(Starlette(routes=[Mount("/models", app)]), lifespan=True) as server:
        assert [entry.state for entry in app.plane.repository.entries.values()] == ["UNAVAILABLE"]
        response = server.client.get("/models/v2/health/ready")
        while response.status_code == 503:
            assert response.json() == {"ready": False}
            response = server.client.get("/models/v2/health/ready")
        assert response.json() == {"ready": True}
        assert server.client.post("/models" + URL, json=GOOD).json()["outputs"][0]["data"] == [2, 4, 6]
        generate = server.client.post("/models/v2/models/plain.double/generate", json={"x": [1, 2, 3]})
        assert generate.json()["y"] == [[2, 4, 6]]
        assert server.client.get("/models/v2/nothing").status_code == 404
        page = server.client.get("/models/").text
        assert f"{server.url}/models/v2/models/" in page
        assert f"{server.url}/v2" not in page
        links = re.findall(r"href=['\"]([^'\"#]+)", page)
        assert len(links) >= 4
        for link in links:
            assert server.client.get(urljoin(f"{server.url}/models/", link)).status_code == 200
        server.call(app.close())


def test_requests_before_it_is_ready_are_503_and_come_again(plain, gate):
    app = create_app({"plain": plain})
    app.plane.repository.entries["plain"].reason = "not loaded yet"
    app._tasks = [None]  # as if loading had begun, and took its time
    with live_asgi(app, lifespan=False) as server:
        response = server.client.post(URL, json=GOOD)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert "not ready" in error_of(response)
        assert server.client.get("/v2/health/live").status_code == 200
        assert server.client.get("/v2/health/ready").status_code == 503
        assert server.client.get("/v2/models/plain.double/ready").json() == {
            "name": "plain.double",
            "ready": False,
        }
    app._tasks = []


def test_a_server_of_its_own_runs_its_lifespan(compiled_plain):
    app = create_app({"plain": compiled_plain})
    with live_asgi(app, lifespan=True) as server:
        while server.client.get("/v2/health/ready").status_code == 503:
            pass
        batcher = app.plane.repository.entries["plain"].loaded.batcher
        assert server.client.post(URL, json=GOOD).status_code == 200
    assert app.plane.draining
    assert not [thread for thread in batcher._scheduler._threads if thread.is_alive()]


def test_a_websocket_is_refused(server):
    asks = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "a" * 24,
    }
    response = httpx.get(f"{server.url}/v2", headers=asks)
    assert response.status_code in (200, 400, 426)
