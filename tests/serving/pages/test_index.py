import asyncio
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import httpx
import pytest
from PIL import Image
from served import Live, live
from shared import TIMEOUT

from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.serving import create_app
from artifex.serving.http.asgi import App
from artifex.serving.pages.index import docs_page, index_page
from artifex.serving.plane.dataplane import DataPlane

GPT2 = Path(__file__).parent.parent.parent / "golden" / "gpt2"
HOSTILE = "\"'><script>alert(1)</script>$(touch x);`id`"


def commands(page: str, kind: str) -> list[str]:
    return [html.unescape(code) for code in re.findall(f"<code class='{kind}'>(.*?)</code>", page, re.DOTALL)]


def in_a_shell(command: str, folder: Path) -> str:
    """What a curl command prints; the answer is a good one."""
    words = ["sh", "-ec", command.replace("curl ", "curl --fail-with-body ", 1)]
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    assert run.returncode == 0, (command, run.stdout, run.stderr)
    return run.stdout


async def get(app: App, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        return await client.get(path, headers=headers)


@pytest.fixture
def app(runner: asyncio.Runner, pipeline: InferencePipeline) -> Iterator[App]:
    """An application that has not loaded its model yet."""
    app = create_app({"tiny": pipeline})
    yield app
    runner.run(app.close())


@pytest.fixture
def loaded(runner: asyncio.Runner, app: App) -> App:
    async def load() -> None:
        await app.start()

    runner.run(load())
    return app


@pytest.fixture(scope="module")
def server(pipeline: InferencePipeline, compiled_plain: Executor) -> Iterator[Live]:
    with live(create_app({"tiny": pipeline, "plain": compiled_plain})) as server:
        yield server


def test_the_page_has_the_models_and_their_endpoints(runner: asyncio.Runner, loaded: App):
    page = runner.run(get(loaded, "/")).text
    assert ">READY</span>" in page
    assert "http-equiv='refresh'" not in page
    for name in ("tiny", "tiny.encode", "tiny.decode", "tiny.reconstruct"):
        assert f"<h3><code>{name}</code></h3>" in page
    for row in (
        ["x", "FP32", "[rows, 8, 8, 1]", "", "pictures in [0, 1]"],
        ["z", "FP32", "[rows, 4]", "", "latent vectors"],
        ["temperature", "FP32", "[rows]", "1.0"],
    ):
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    for path in ("docs", "openapi.json", "metrics", "v2/health/live", "v2/health/ready"):
        assert f"href='http://here/{path}'" in page


def test_a_model_that_is_not_loaded_yet_shows_so(runner: asyncio.Runner, app: App):
    page = runner.run(get(app, "/"))
    assert page.status_code == 200
    assert ">LOADING</span>" in page.text
    assert "http-equiv='refresh'" in page.text  # until it is there
    assert not commands(page.text, "curl")


def test_an_unloaded_model_shows_so(runner: asyncio.Runner, loaded: App):
    runner.run(loaded.plane.repository.unload("tiny"))
    page = runner.run(get(loaded, "/")).text
    assert ">UNAVAILABLE</span>" in page
    assert "<p>unloaded</p>" in page
    assert "http-equiv='refresh'" not in page


def test_every_command_works(server: Live, tmp_path: Path):
    page = server.client.get("/").text
    found = commands(page, "curl")
    assert len(found) >= 10
    for command in found:
        assert in_a_shell(command, tmp_path) or " -o " in command
    sizes = {}
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            picture.load()
            sizes[file.name] = picture.size
    assert sizes.pop("pictures.png") > (32, 32)
    assert sizes == dict.fromkeys(["picture.png", "reconstruct.png", "decode.png"], (8, 8))


def test_python_works(server: Live):
    script = "\n".join(commands(server.client.get("/").text, "python"))
    run = forked.run(["-c", script], timeout=TIMEOUT)
    assert run.returncode == 0, run.stderr
    tiny = ["(4, 8, 8, 1)", "(4, 4)", "(4, 4)", "(4, 8, 8, 1)", "(4, 8, 8, 1)", "(4,)", "(4,)"]
    assert run.stdout.splitlines() == [*tiny, *3 * ["(4, 3)"]]


def test_commands_say_what_cannot_be_left_out(tmp_path: Path):
    shutil.copytree(GPT2, folder := tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    with live(create_app({"writer": load_pipeline(folder, batch_size=1)})) as server:
        page = server.client.get("/").text
        found = [command for command in commands(page, "curl") if "writer/" in command]
        assert len(found) >= 4
        for command in found:
            assert "The" in in_a_shell(command, tmp_path)
        script = next(code for code in commands(page, "python") if "'writer'" in code)
        run = forked.run(["-c", script], timeout=TIMEOUT)
        assert run.returncode == 0, run.stderr
        assert len(re.findall("b['\"]The", run.stdout)) == 4
        assert "<td>text</td><td>BYTES</td>" in page
        schemas = server.client.get("/openapi.json").json()["paths"]["/v2/models/writer/generate"]["post"]
        body = schemas["requestBody"]["content"]["application/json"]["schema"]
        assert body["required"] == ["prompt"]


@pytest.mark.parametrize("page", [index_page, docs_page])
def test_a_hostile_address_injects_nothing(loaded: App, page: Callable[[DataPlane, str], str]):
    shown = page(loaded.plane, f"http://{HOSTILE}")
    assert html.escape(HOSTILE) in shown
    assert "<script>" not in shown
    assert re.findall("<script[^>]*>", shown) in ([], ["<script type='module' src='/studio/studio.js'>"])
    assert not re.search("href='[^']*'[^>]", shown)  # nothing follows an address in its tag


def test_a_hostile_address_runs_nothing(loaded: App, tmp_path: Path):
    found = commands(index_page(loaded.plane, "http://here;touch${IFS}there;'`touch${IFS}there`"), "curl")
    (tmp_path / "curl").write_text("#!/bin/sh\necho called\n")
    (tmp_path / "curl").chmod(0o755)
    for command in found:
        run = subprocess.run(
            ["sh", "-c", f"PATH=.:$PATH; {command}"], cwd=tmp_path, capture_output=True, timeout=TIMEOUT
        )
        assert run.stdout == b"called\n"
    assert [file.name for file in tmp_path.iterdir()] == ["curl"]


def test_a_hostile_host_header_is_harmless(server: Live):
    request = b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % HOSTILE.encode()
    assert b"<script>" not in server.exchange(request, method="GET").body


def test_docs_list_every_operation_of_the_document_that_has_an_answer(runner: asyncio.Runner, loaded: App):
    page = runner.run(get(loaded, "/docs")).text
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)</td>", page)
    paths = runner.run(get(loaded, "/openapi.json")).json()["paths"]
    operations = {
        (method.upper(), path): o for path, methods in paths.items() for method, o in methods.items()
    }
    assert rows == [named for named, operation in operations.items() if "200" in operation["responses"]]
    assert ("POST", "/v2/models/tiny.encode/generate") in rows
    assert ("POST", "/v2/logging") not in rows
    assert "href='http://here/openapi.json'" in page
