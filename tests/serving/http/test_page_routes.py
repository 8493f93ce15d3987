"""Pages load only what the server itself has, and files only by their names."""

import re
from collections.abc import Iterator
from importlib import resources

import pytest
from served import Live, error_of, live, live_asgi
from starlette.applications import Starlette
from starlette.routing import Mount

from artifex.generative_models.inference import Executor
from artifex.serving import create_app
from artifex.serving.pages.files import studio_files


@pytest.fixture(scope="module")
def server(compiled_plain: Executor) -> Iterator[Live]:
    with live(create_app({"plain": compiled_plain})) as server:
        yield server


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_run_and_load_nothing_but_the_servers_own(server: Live, path: str):
    page = server.client.get(path)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy.pop("img-src") == "'self' data: blob:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {*policy} == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert {*policy.values()} == {"'none'"}
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "<style" not in page.text
    assert not re.search(r"\s(style|on\w+)=", page.text)
    loaded = re.findall(r"<(?:script|link)[^>]*?(?:src|href)='([^']*)'", page.text)
    assert loaded
    for address in loaded:
        assert server.client.get(address).status_code == 200


def test_every_file_of_the_folder_is_served(server: Live):
    folder = resources.files("artifex.serving.pages") / "studio"
    assert {*studio_files()} == {entry.name for entry in folder.iterdir()}
    for name, file in studio_files().items():
        answer = server.client.get(f"/studio/{name}")
        assert answer.content == (folder / name).read_bytes()
        assert answer.headers["content-type"].startswith(file.media_type)
        assert answer.headers["x-content-type-options"] == "nosniff"
        unchanged = server.client.get(f"/studio/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        for module in re.findall(r'^import .* from "\./(.*)";', answer.text, re.MULTILINE):
            assert module in studio_files()


@pytest.mark.parametrize(
    "path",
    [
        "/studio",
        "/studio/",
        "/studio/nothing.js",
        "/studio/../index.py",
        "/studio/%2e%2e/index.py",
        "/studio/..%2findex.py",
        "/studio/%2e%2e%2findex.py",
        "/studio/..%5cindex.py",
        "/studio/%2fetc%2fpasswd",
        "/studio/studio.js%00",
        "/studio/STUDIO.JS",
    ],
)
def test_other_files_are_not_there(server: Live, path: str):
    answer = server.exchange(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), method="GET")
    assert answer.status == 404
    assert "def " not in answer.error


def test_files_are_only_read(server: Live):
    answer = server.client.post("/studio/studio.js")
    assert answer.status_code == 405
    assert error_of(answer)


def test_below_a_path_files_are_asked_for_there_whatever_the_scheme(compiled_plain: Executor):
    app = create_app({"plain": compiled_plain})
    outer = Starlette(routes=[Mount("/models", app)])
    with live_asgi(outer, lifespan=False) as server:
        page = server.client.get("/models/").text
        assert "src='/models/studio/studio.js'" in page
        assert "href='/models/studio/page.css'" in page
        assert server.client.get("/models/studio/studio.js").status_code == 200
        server.call(app.close())
