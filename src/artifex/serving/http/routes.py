"""Everything that the server answers over HTTP but inference itself: metadata, pages, pictures, streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.batching.queue import Outputs
from artifex.serving.http.bodies import BodyReader, Headers, compressed
from artifex.serving.http.codec import parse_object
from artifex.serving.http.departures import Departures
from artifex.serving.http.generate_extension import (
    generate_events,
    generate_response,
    read_generate,
)
from artifex.serving.observe.metrics import CONTENT_TYPE, prometheus_text
from artifex.serving.pages.index import docs_page, index_page
from artifex.serving.pages.openapi import openapi
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.descriptions import (
    model_config,
    model_metadata,
    server_metadata,
    statistics,
)
from artifex.serving.plane.pictures import pictures_as_png
from artifex.serving.plane.statuses import NotFoundError, UnsupportedError


class Routes:
    """The requests that are not on the hot path. Their errors are for the caller.

    Args:
        plane: Runs them.
        departures: Waits for results while clients may leave.
        bodies: Reads what they bring.
    """

    def __init__(self, plane: DataPlane, departures: Departures, bodies: BodyReader):
        self._plane = plane
        self._departures = departures
        self._bodies = bodies
        self.router = Router(self._routes(), redirect_slashes=False, default=_no_page)

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
        return HTMLResponse(index_page(self._plane, str(request.base_url).rstrip("/")))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(docs_page(self._plane, str(request.base_url).rstrip("/")))

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(self._plane) | {"servers": [{"url": str(request.base_url).rstrip("/")}]})

    async def _render_metrics(self, request: Request) -> Response:
        counters = [entry.counters() for entry in self._plane.repository.entries.values()]
        return Response(prometheus_text(counters), media_type=CONTENT_TYPE)

    async def _metadata(self, request: Request) -> Response:
        return _json(server_metadata())

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        ready = self._plane.is_ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        ready = self._plane.is_model_ready(*_named(request))
        return _json({"name": request.path_params["model"], "ready": ready}, 200 if ready else 503)

    async def _model_metadata(self, request: Request) -> Response:
        return _json(model_metadata(self._plane, *_named(request)))

    async def _model_config(self, request: Request) -> Response:
        return _json(model_config(self._plane, *_named(request)))

    async def _statistics(self, request: Request) -> Response:
        return _json(statistics(self._plane, *_named(request)))

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
        call = await read_generate(request, await self._body(request), self._plane)
        names = call.endpoint.picture_outputs
        wanted = call.request.outputs
        names = [name for name in names if wanted is None or name in wanted]
        as_png = _wants_png(request)
        if as_png and not names:
            raise InputError(f"{call.endpoint.name}: no pictures to give; leave out Accept: image/png")
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
        call = await read_generate(request, await self._body(request), self._plane)

        def first_rows(outputs: asyncio.Future[Outputs]) -> Awaitable[Outputs]:
            return self._departures.result(outputs, request.receive)

        events = generate_events(call, first_rows)
        first = await anext(events)  # an error before it is a plain response

        async def rest() -> Any:
            yield first
            async for event in events:
                yield event

        return StreamingResponse(
            rest(), media_type="text/event-stream", headers={"cache-control": "no-cache"}
        )

    async def _body(self, request: Request) -> bytes:
        return await self._bodies.read(_headers(request), request.receive)

    async def _object(self, request: Request) -> dict[str, Any]:
        body = await self._body(request)
        return parse_object(body) if body.strip() else {}


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


async def _no_page(scope: Any, receive: Any, send: Any) -> None:
    raise NotFoundError("no such page; / lists the models")


async def _unsupported(request: Request) -> Response:
    raise UnsupportedError("this server has no such extension; GET /v2 lists those it has")
