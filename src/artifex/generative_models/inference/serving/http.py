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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.serving.bodies import (
    ClientGoneError,
    Headers,
    Receive,
    compressed,
    read_body,
)
from artifex.generative_models.inference.serving.dataplane import DataPlane
from artifex.generative_models.inference.serving.departures import Departures
from artifex.generative_models.inference.serving.errors import (
    NotFoundError,
    UnauthorizedError,
    UnsupportedError,
    explain,
)
from artifex.generative_models.inference.serving.events import log_event
from artifex.generative_models.inference.serving.generation import (
    generate_events,
    generate_response,
    read_generate,
)
from artifex.generative_models.inference.serving.metrics import Metrics
from artifex.generative_models.inference.serving.oip import (
    InferRequest,
    OutputForm,
    decode_request,
    encode_response,
)
from artifex.generative_models.inference.serving.openapi import openapi
from artifex.generative_models.inference.serving.pages import docs_page, index_page
from artifex.generative_models.inference.serving.pictures import pictures_as_png
from artifex.generative_models.inference.serving.tensors import datatype_of, tensor_from_bytes

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
        api_key: Where there is one, requests must bring it: `Authorization: Bearer KEY`. Health is exempt.
        max_body_bytes: Size of a request's body.
        body_timeout: Seconds for a request's body to arrive.
        cors_origins: Web origins whose scripts may call.
        access_log: Whether to log each request.
        watch_seconds: Time between looks for new checkpoints and exports; None never looks.
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
        self.max_body_bytes = max_body_bytes
        self._api_key = None if api_key is None else api_key.encode()
        self._body_timeout = body_timeout
        self._watch_seconds = watch_seconds
        self._departures = Departures()
        self._metrics = Metrics(plane)
        self._tasks: list[asyncio.Task[None]] = []
        self._router = Router(self._routes(), redirect_slashes=False, default=_no_page)
        self._handle: Any = self._logged if access_log else self._answer
        if cors_origins:
            self._handle = CORSMiddleware(
                self._handle, cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
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
            self._tasks.append(asyncio.ensure_future(repository.watch(self._watch_seconds)))
        return self._tasks[0]

    async def close(self) -> None:
        """Refuses what is new and finishes what was taken."""
        self.plane.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.plane.repository.close()

    def authorize(self, authorization: str | None) -> None:
        """Checks a request's credentials.

        Args:
            authorization: What its `Authorization` header or metadata says.

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
        self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        path = _path(scope)
        try:
            if self._api_key is not None and path not in _HEALTH:
                self.authorize(headers.get(b"authorization", b"").decode("latin-1"))
            if path.endswith("/infer"):
                status = 200
                raw, body = await self._infer(scope["method"], path, headers, receive)
            else:
                await self._route({**scope, "path": path, "root_path": "", "app": self}, receive, send)
                return
        except (ClientGoneError, ClientDisconnect):
            return
        except Exception as error:  # whatever it is, it is this request's answer
            status, raw, body = _error(error)
        await _send(send, status, raw, body, headers)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but the hot path; an error after the response began is logged and ends it."""
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._router(scope, receive, sending)
        except Exception as error:
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
        body = await read_body(headers, receive, self.max_body_bytes, self._body_timeout)
        try:
            request, form = self._decode(model, version, body, headers)
        except InputError:
            self.plane.count_refused(model)
            raise
        call = await self.plane.prepare(request)
        outputs = await self._departures.result(call.submit(), receive)
        parts, header_length = encode_response(call.response(outputs), form)
        if header_length is None:
            return [_JSON], parts[0]
        return [_BINARY, (_HEADER_LENGTH, b"%d" % header_length)], b"".join(parts)

    def _decode(
        self, model: str, version: str, body: bytes, headers: Headers
    ) -> tuple[InferRequest, OutputForm]:
        length = headers.get(_HEADER_LENGTH)
        if length is None:
            return decode_request(model, version, body, None)
        if not length.isdigit() or len(length) > 18:
            raise InputError("Inference-Header-Content-Length: expected a number of bytes")
        if int(length):
            return decode_request(model, version, body, int(length))
        _, endpoint = self.plane.find(model, version)
        if len(endpoint.inputs) != 1:
            raise InputError(
                f"{model}: a raw request is for models of one input; it takes {', '.join(endpoint.inputs)}"
            )
        ((name, spec),) = endpoint.inputs.items()
        array = tensor_from_bytes(name, datatype_of(np.dtype(spec.dtype)), (1, *spec.shape), memoryview(body))
        return InferRequest(model, version, inputs={name: array}), OutputForm(default=True)

    def _routes(self) -> list[Route]:
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", self._index, methods=get),
            Route("/docs", self._docs, methods=get),
            Route("/openapi.json", self._openapi, methods=get),
            Route("/metrics", self._render_metrics, methods=get),
            Route("/v2", self._metadata, methods=get),
            Route("/v2/health/live", self._live, methods=get),
            Route("/v2/health/ready", self._ready, methods=get),
            Route("/v2/models/stats", self._statistics, methods=get),
            Route("/v2/repository/index", self._repository_index, methods=post),
            Route("/v2/repository/models/{model}/load", self._load, methods=post),
            Route("/v2/repository/models/{model}/unload", self._unload, methods=post),
        ]
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(base, self._model_metadata, methods=get),
                Route(f"{base}/ready", self._model_ready, methods=get),
                Route(f"{base}/config", self._model_config, methods=get),
                Route(f"{base}/stats", self._statistics, methods=get),
                Route(f"{base}/generate", self._generate, methods=post),
                Route(f"{base}/generate_stream", self._generate_stream, methods=post),
                Route(f"{base}/trace/setting", _unsupported, methods=["GET", "POST"]),
            ]
        for path in ("trace/setting", "logging", "{kind:str}sharedmemory/{rest:path}"):
            routes.append(Route(f"/v2/{path}", _unsupported, methods=["GET", "POST"]))
        return routes

    async def _index(self, request: Request) -> Response:
        return HTMLResponse(index_page(self.plane, str(request.base_url).rstrip("/")))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(docs_page(self.plane, str(request.base_url).rstrip("/")))

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(self.plane) | {"servers": [{"url": str(request.base_url).rstrip("/")}]})

    async def _render_metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type=self._metrics.content_type)

    async def _metadata(self, request: Request) -> Response:
        return _json(self.plane.metadata())

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self.plane.is_ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        ready = self.plane.is_model_ready(*_named(request))
        return _json({"name": request.path_params["model"], "ready": ready}, 200 if ready else 503)

    async def _model_metadata(self, request: Request) -> Response:
        return _json(self.plane.model_metadata(*_named(request)))

    async def _model_config(self, request: Request) -> Response:
        return _json(self.plane.model_config(*_named(request)))

    async def _statistics(self, request: Request) -> Response:
        return _json(self.plane.statistics(*_named(request)))

    async def _repository_index(self, request: Request) -> Response:
        only_ready = (await self._object(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InputError("ready: expected true or false")
        index = self.plane.repository.index()
        return _json([entry for entry in index if entry["state"] == "READY" or not only_ready])

    async def _load(self, request: Request) -> Response:
        if (await self._object(request)).get("parameters"):
            raise UnsupportedError("models are loaded as their directories have them; send no parameters")
        await self.plane.repository.load(request.path_params["model"])
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await self._object(request)
        await self.plane.repository.unload(request.path_params["model"])
        return _json({})

    async def _generate(self, request: Request) -> Response:
        call = await read_generate(request, await self._body(request), self.plane)
        names = call.endpoint.picture_outputs
        wanted = call.request.outputs
        names = [name for name in names if wanted is None or name in wanted]
        as_png = _wants_png(request)
        if as_png and not names:
            raise InputError(f"{call.endpoint.name}: no picture was asked for; leave out Accept: image/png")
        outputs = await self._departures.result(call.submit(), request.receive)
        call.finished()
        seed = {"artifex-seed": str(call.seed)} if isinstance(call.seed, int) else {}
        if as_png:
            png = await asyncio.to_thread(pictures_as_png, call.loaded.pipeline, outputs[names[0]])
            return Response(png, media_type="image/png", headers=seed)
        body, encoding = await compressed(generate_response(call, outputs), _headers(request))
        coded = {} if encoding is None else {"content-encoding": encoding}
        return Response(body, media_type="application/json", headers={**seed, **coded})

    async def _generate_stream(self, request: Request) -> Response:
        call = await read_generate(request, await self._body(request), self.plane)
        events = generate_events(call)
        first = await anext(events)  # an error before it is a plain response

        async def rest() -> Any:
            yield first
            async for event in events:
                yield event

        return StreamingResponse(
            rest(), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )

    async def _body(self, request: Request) -> bytes:
        return await read_body(_headers(request), request.receive, self.max_body_bytes, self._body_timeout)

    async def _object(self, request: Request) -> dict[str, Any]:
        body = await self._body(request)
        try:
            content = orjson.loads(body) if body.strip() else {}
        except orjson.JSONDecodeError as error:
            raise InputError(f"the body is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError("the body is not a JSON object")
        return content


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
    if status == 500:
        log_event("internal error", error)
    return status, raw, orjson.dumps({"error": message})


async def _send(send: Send, status: int, raw: RawHeaders, body: bytes, headers: Headers) -> None:
    body, encoding = await compressed(body, headers)
    raw.append((b"content-length", b"%d" % len(body)))
    if encoding is not None:
        raw.append((b"content-encoding", encoding.encode()))
    request_id = headers.get(b"x-request-id")
    if request_id is not None:
        raw.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    """The path below where this application is mounted."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _model_of(path: str) -> tuple[str, str]:
    """The model and version that a path to infer names."""
    named = path.removesuffix("/infer")
    if not named.startswith("/v2/models/"):
        raise NotFoundError("no such page")
    model, versions, version = named.removeprefix("/v2/models/").partition("/versions/")
    if versions and not version:
        raise NotFoundError("no such page: the version is missing")
    return model, version


def _wants_png(request: Request) -> bool:
    """Whether a client accepts a PNG, and says so by name."""
    accepted = request.headers.get("accept", "").replace(" ", "").lower().split(",")
    return any(part.startswith("image/png") and not part.endswith(";q=0") for part in accepted)


def _headers(request: Request) -> Headers:
    return dict(request.scope["headers"])


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _no_page(scope: Scope, receive: Any, send: Any) -> None:
    raise NotFoundError("no such page; / lists the models")


async def _unsupported(request: Request) -> Response:
    raise UnsupportedError("this server has no such extension; GET /v2 lists those it has")
