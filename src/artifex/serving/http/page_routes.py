"""The pages over HTTP: HTML that may load only what this server has, and the studio's files."""

from __future__ import annotations

import functools
from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from artifex.serving.pages.controls import studio_models
from artifex.serving.pages.files import studio_files
from artifex.serving.pages.index import docs_page, index_page, locked_page
from artifex.serving.pages.openapi import openapi
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.statuses import NotFoundError

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_PAGE = {
    **_SAFE,
    "content-security-policy": "; ".join(f"{name} {sources}" for name, sources in _POLICY.items()),
    "cache-control": "no-store",  # it may tell what only a key opens
}
_FILE = {**_SAFE, "cache-control": "no-cache"}  # asked for again, and sent where it has changed


def page_answers(plane: DataPlane) -> dict[str, Callable[[Request], Response]]:
    """What answers each path of the pages, all of them by GET."""
    return {
        "/": lambda request: _index(plane, request),
        "/docs": lambda request: _html(docs_page(plane, base_url(request), _root(request))),
        "/openapi.json": lambda r: _json(openapi(plane) | {"servers": [{"url": base_url(r)}]}),
        "/studio/models.json": lambda _: _json(studio_models(plane)),
        "/studio/{file}": _file,
    }


@functools.cache
def open_paths() -> frozenset[str]:
    """The paths that take no key: they are the same for everyone, or tell less to who has none."""
    return frozenset({"/", *(f"/studio/{name}" for name in studio_files())})


def base_url(request: Request) -> str:
    """Where clients see this server, without a slash at the end."""
    return str(request.base_url).rstrip("/")


def _index(plane: DataPlane, request: Request) -> Response:
    if not request.scope["has_key"]:
        return _html(locked_page(_root(request)))
    return _html(index_page(plane, base_url(request), _root(request)))


def _file(request: Request) -> Response:
    file = studio_files().get(request.path_params["file"])
    if file is None:
        raise NotFoundError("the studio has no such file")
    headers = {**_FILE, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _root(request: Request) -> str:
    """The path under which clients see this server, without a slash at the end."""
    root: str = request.scope["app_root_path"]
    return root.rstrip("/")


def _html(page: str) -> Response:
    return HTMLResponse(page, headers=_PAGE)


def _json(content: object) -> Response:
    return Response(
        orjson.dumps(content), media_type="application/json", headers={"cache-control": "no-store"}
    )
