"""Everything that the server answers over HTTP but inference itself: metadata, pictures, streams; pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from artifex.generative_models.core.errors import InputError
from artifex.serving.http.bodies import BodyReader, Headers, compressed
from artifex.serving.http.departures import Departures
from artifex.serving.http.generate_extension import (
    Generate,
    generate_events,
    generate_response,
    read_generate,
    read_object,
)
from artifex.serving.http.json_process import JsonProcess
from artifex.serving.http.page_routes import page_answers
from artifex.serving.observe.metrics import prometheus_text
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.descriptions import model_config, model_metadata, server_metadata, statistics
from artifex.serving.plane.pictures import pictures_as_png
from artifex.serving.plane.requests import present
from artifex.serving.plane.statuses import NotFoundError, UnsupportedError


class Routes:
    """The requests that are not on the hot path. Their errors are for the caller."""

    def __init__(self, plane: DataPlane, departures: Departures, bodies: BodyReader, json: JsonProcess):
        self._plane = plane
        self._departures = departures
        self._bodies = bodies
        self._json_process = json
        self.router = Router(self._routes(), redirect_slashes=False, default=_no_page)

    def _routes(self) -> list[Route]:
        plane = self._plane
        told: dict[str, Callable[[Request], Response]] = {
            **page_answers(plane),
            "/metrics": lambda _: _metrics(plane),
            "/v2": lambda _: _json(server_metadata()),
            "/v2/health/live": lambda _: _json({"live": True}),
            "/v2/health/ready": lambda _: _readiness({"ready": plane.is_ready}),
            "/v2/models/stats": lambda _: _json(statistics(plane)),
        }
        done = {
            "/v2/repository/index": self._repository_index,
            "/v2/repository/models/{model}/load": self._load,
            "/v2/repository/models/{model}/unload": self._unload,
        }
        unsupported = ["/v2/trace/setting", "/v2/logging", "/v2/{kind:str}sharedmemory/{rest:path}"]
        for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            told |= {
                base: lambda request: _json(model_metadata(plane, *_named(request))),
                f"{base}/ready": lambda request: _model_readiness(plane, *_named(request)),
                f"{base}/config": lambda request: _json(model_config(plane, *_named(request))),
                f"{base}/stats": lambda request: _json(statistics(plane, *_named(request))),
            }
            done |= {f"{base}/generate": self._generate, f"{base}/generate_stream": self._generate_stream}
            unsupported.append(f"{base}/trace/setting")
        return [
            *(Route(path, _at_once(answer), methods=["GET"]) for path, answer in told.items()),
            *(Route(path, answer, methods=["POST"]) for path, answer in done.items()),
            *(Route(path, _unsupported, methods=["GET", "POST"]) for path in unsupported),
        ]

    async def _repository_index(self, request: Request) -> Response:
        only_ready = (await self._object(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InputError("ready: expected true or false")
        return _json(self._plane.repository.index(only_ready=only_ready))

    async def _load(self, request: Request) -> Response:
        if (await self._object(request)).get("parameters"):
            raise UnsupportedError("models are loaded as their directories have them; send no parameters")
        await self._plane.repository.load(request.path_params["model"])
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await self._object(request)
        await self._plane.repository.unload(request.path_params["model"])
        return _json({})

    async def _generate(self, request: Request) -> Response:
        asked = await self._asked(request)
        call = asked.call
        wanted = call.request.outputs
        names = [name for name in call.endpoint.picture_outputs if wanted is None or name in wanted]
        as_png = _wants_png(request)
        if as_png and not names:
            raise InputError(f"{call.endpoint.name}: no pictures to give; leave out Accept: image/png")
        outputs = await self._departures.result(call.submit(), request.receive)
        call.finished()
        seed = {"artifex-seed": str(call.seed)} if isinstance(call.seed, int) else {}
        if as_png:
            png = await asyncio.to_thread(pictures_as_png, call.loaded.pipeline, outputs[names[0]])
            return Response(png, media_type="image/png", headers=seed)
        answer = await generate_response(asked, outputs, self._json_process)
        body, encoding = await compressed(answer, _headers(request))
        coded = {} if encoding is None else {"content-encoding": encoding}
        return Response(body, media_type="application/json", headers={**seed, **coded})

    async def _generate_stream(self, request: Request) -> Response:
        asked = await self._asked(request, is_stream=True)
        events = generate_events(asked, self._json_process)
        # An error before the first is a plain response.
        first = await self._departures.result(asyncio.ensure_future(anext(events)), request.receive)
        return _EventStream(first, events)

    async def _asked(self, request: Request, *, is_stream: bool = False) -> Generate:
        body = await self._body(request)
        return await read_generate(request, body, self._plane, self._json_process, is_stream=is_stream)

    async def _body(self, request: Request) -> bytes:
        return await self._bodies.read(_headers(request), request.receive)

    async def _object(self, request: Request) -> dict[str, Any]:
        body = await self._body(request)
        return present(await read_object(body, self._json_process)) if body.strip() else {}


class _EventStream(StreamingResponse):
    """Server-sent events; what makes them ends when the client leaves."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]):
        self._events = events

        async def all_of_them() -> AsyncIterator[bytes]:
            yield first
            async for event in events:
                yield event

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # else nginx keeps them back
        super().__init__(all_of_them(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


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


def _readiness(content: dict[str, Any]) -> Response:
    return _json(content, 200 if content["ready"] else 503)


def _model_readiness(plane: DataPlane, model: str, version: str) -> Response:
    return _readiness({"name": model, "ready": plane.is_model_ready(model, version)})


def _metrics(plane: DataPlane) -> Response:
    counters = [entry.counters() for entry in plane.repository.entries.values()]
    return Response(prometheus_text(counters), media_type=CONTENT_TYPE_LATEST)


def _at_once(answer: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that waits for nothing, and so needs no thread of its own."""

    async def endpoint(request: Request) -> Response:
        return answer(request)

    return endpoint


async def _no_page(scope: Any, receive: Any, send: Any) -> None:
    raise NotFoundError("no such page; / lists the models")


async def _unsupported(request: Request) -> Response:
    raise UnsupportedError("this server has no such extension; GET /v2 lists those it has")
