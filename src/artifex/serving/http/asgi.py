"""The REST front end, an ASGI application: HTTP in, the data plane, HTTP out."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import orjson
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from artifex.generative_models.core.errors import InputError
from artifex.serving.http.bodies import BodyReader, ClientGoneError, Headers, Receive, compressed
from artifex.serving.http.codec import OutputForm, decode_request, encode_response
from artifex.serving.http.departures import Departures
from artifex.serving.http.json_process import LARGE_BYTES, JsonProcess
from artifex.serving.http.page_routes import open_paths
from artifex.serving.http.routes import Routes
from artifex.serving.observe.events import log_event
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import NotFoundError, UnauthorizedError, explain
from artifex.serving.plane.tensors import datatype_of, tensor_from_bytes

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_HEADER_LENGTH = b"inference-header-content-length"
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_RETRY = (b"retry-after", b"1")  # seconds
_CLOSE = (b"connection", b"close")
_HEALTH = ("/v2/health/live", "/v2/health/ready")


class App:
    """Serves models over HTTP: the Open Inference Protocol, its extensions, and pages for people.

    An ASGI application. It loads its models when the server that runs it starts up, or, where it is mounted
    in another application, with the first request.

    Args:
        plane: Runs the requests.
        api_key: As for `create_app`, and so are the others.
    """

    def __init__(
        self,
        plane: DataPlane,
        *,
        api_key: str | None,
        max_body_bytes: int,
        body_timeout: float,
        cors_origins: Sequence[str],
        access_log: bool,
        watch_seconds: float | None,
    ):
        self.plane = plane
        self._api_key = None if api_key is None else api_key.encode()
        self._bodies = BodyReader(max_body_bytes, body_timeout)
        self._watch_seconds = watch_seconds
        self._departures = Departures()
        self._tasks: list[asyncio.Task[None]] = []
        self._json = JsonProcess()
        self._routes = Routes(plane, self._departures, self._bodies, self._json)
        self.max_body_bytes = max_body_bytes
        self.access_log = access_log
        self._handle: Any = self._logged if access_log else self._answer
        if cors_origins:
            self._handle = CORSMiddleware(
                self._handle,
                cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Inference-Header-Content-Length", "Artifex-Seed", "X-Request-Id"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http":
            if not self._tasks:
                self.start()
            await self._handle(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise RuntimeError(f"no {scope['type']} here")

    def start(self) -> asyncio.Task[None]:
        """Begins to load the models; the task ends when they are ready, or raises what stopped it."""
        repository = self.plane.repository

        async def load() -> None:
            for name in repository.entries:
                await repository.load(name)

        self._tasks = [asyncio.ensure_future(load())]
        if self._watch_seconds is not None:
            self._tasks.append(asyncio.ensure_future(self._watch(self._tasks[0], self._watch_seconds)))
        return self._tasks[0]

    async def _watch(self, loading: asyncio.Task[None], seconds: float) -> None:
        """Looks for what is new once the first loading has ended: before, all is new."""
        await asyncio.wait([loading])
        await self.plane.repository.watch(seconds)

    async def close(self) -> None:
        """Refuses what is new and finishes what was taken."""
        self.plane.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.plane.repository.close()
        await self._json.close()

    def authorize(self, authorization: str | None) -> None:
        """Checks a request's credentials, as its `Authorization` header or metadata says them.

        Raises:
            UnauthorizedError: There is no API key, or a wrong one.
        """
        if self._api_key is None:
            return
        given = (authorization or "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._api_key):
            raise UnauthorizedError("expected the header Authorization: Bearer KEY with the server's key")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if not self._tasks:
            self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        path = _path(scope)
        has_key = True
        try:
            if self._api_key is not None and path not in _HEALTH:
                try:
                    self.authorize(headers.get(b"authorization", b"").decode("utf-8", "surrogateescape"))
                except UnauthorizedError:
                    if path not in open_paths():
                        raise
                    has_key = False
            if path.endswith("/infer"):
                status = 200
                raw, body = await self._infer(scope["method"], path, headers, receive)
            else:
                await self._route({**scope, "has_key": has_key}, path, headers, receive, send)
                return
        except (ClientGoneError, ClientDisconnect):
            return
        except Exception as error:  # whatever it is, it is this request's answer
            status, raw, body = _error(error)
        await _send(send, status, raw, body, headers)

    async def _route(self, scope: Scope, path: str, headers: Headers, receive: Receive, send: Send) -> None:
        """Everything but the hot path; an error after the response began is logged and ends it."""
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if not started:
                message["headers"] = [*message["headers"], *_echoed(headers)]
            started = True
            await send(message)

        root = scope.get("root_path", "")
        below = {**scope, "path": path, "root_path": "", "app_root_path": root, "app": self}
        try:
            await self._routes.router(below, receive, sending)
        except Exception as error:  # a response that has begun can only be cut off
            if not started or isinstance(error, ClientDisconnect):
                raise
            log_event("internal error", error, path=scope["path"])
            raise ClientGoneError from error

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status, size = time.perf_counter(), 0, 0

        async def counting(message: MutableMapping[str, Any]) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive, counting)
        finally:
            headers = dict(scope["headers"])
            log_event(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status or "client gone",
                bytes=size,
                milliseconds=round(1e3 * (time.perf_counter() - start), 3),
                client=(scope.get("client") or [None])[0],
                request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
            )

    async def _infer(
        self, method: str, path: str, headers: Headers, receive: Receive
    ) -> tuple[RawHeaders, bytes]:
        model, version = _model_of(path)
        if method != "POST":
            raise HTTPException(405, headers={"allow": "POST"})
        body = await self._bodies.read(headers, receive)
        try:
            length = _header_length(headers)
            if (len(body) if length is None else length) < LARGE_BYTES:
                request, form = self._decode(model, version, body, length)
            else:
                loads = self._json.loads
                request, form = await self._json.run(decode_request, model, version, body, length, loads)
        except InputError:
            self.plane.count_refused(model)
            raise
        call = await self.plane.prepare(request)
        outputs = await self._departures.result(call.submit(), receive)
        response = call.response(outputs)
        if sum(array.nbytes for name, array in outputs.items() if not form.is_binary(name)) < LARGE_BYTES:
            parts, header_length = encode_response(response, form)
        else:
            parts, header_length = await self._json.run(encode_response, response, form, self._json.dumps)
        if header_length is None:
            return [_JSON], parts[0]
        return [_BINARY, (_HEADER_LENGTH, b"%d" % header_length)], b"".join(parts)

    def _decode(
        self, model: str, version: str, body: bytes, length: int | None
    ) -> tuple[InferRequest, OutputForm]:
        if length != 0:
            return decode_request(model, version, body, length)
        _, endpoint = self.plane.find(model, version)
        if len(endpoint.inputs) != 1:
            raise InputError(f"{model}: a raw request is for models of one input; it takes {endpoint.takes}")
        ((name, spec),) = endpoint.inputs.items()
        array = tensor_from_bytes(name, datatype_of(np.dtype(spec.dtype)), (1, *spec.shape), memoryview(body))
        return InferRequest(model, version, inputs={name: array}), OutputForm(default=True)


def _header_length(headers: Headers) -> int | None:
    """Bytes of a body's JSON, where tensors follow."""
    length = headers.get(_HEADER_LENGTH)
    if length is None:
        return None
    if not length.isdigit() or len(length) > 18:
        raise InputError("Inference-Header-Content-Length: expected a number of bytes")
    return int(length)


def _error(error: Exception) -> tuple[int, RawHeaders, bytes]:
    """An error as a response."""
    raw = [_JSON]
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        raw += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    else:
        status, _, message = explain(error)
    if status in (429, 503):
        raw.append(_RETRY)
    if status in (408, 413):
        raw.append(_CLOSE)  # since its body was not read to the end
    if status == 401:
        raw.append((b"www-authenticate", b"Bearer"))
    return status, raw, orjson.dumps({"error": message})


async def _send(send: Send, status: int, raw: RawHeaders, body: bytes, headers: Headers) -> None:
    encoding = None
    if _JSON in raw:  # what is not text is hardly smaller for it
        body, encoding = await compressed(body, headers)
    raw.append((b"content-length", b"%d" % len(body)))
    if encoding is not None:
        raw.append((b"content-encoding", encoding.encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw + _echoed(headers)})
    await send({"type": "http.response.body", "body": body})


def _echoed(headers: Headers) -> RawHeaders:
    """What a response repeats of its request."""
    request_id = headers.get(b"x-request-id")
    return [] if request_id is None else [(b"x-request-id", request_id)]


def _path(scope: Scope) -> str:
    """The path below where this application is mounted."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if not root:
        return path
    below = path.removeprefix(root)
    # uvicorn puts it before the path that came, which has it already where a proxy passes paths on whole.
    if f"{below}/".startswith(f"{root}/"):
        below = below.removeprefix(root)
    return below or "/"


def _model_of(path: str) -> tuple[str, str]:
    """The model and version that a path to infer names."""
    named = path.removesuffix("/infer")
    if not named.startswith("/v2/models/"):
        raise NotFoundError("no such page")
    model, versions, version = named.removeprefix("/v2/models/").partition("/versions/")
    if versions and not version:
        raise NotFoundError("no such page: the version is missing")
    return model, version
