"""The gRPC front end: messages in, the data plane, messages out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from artifex.generative_models.core.errors import InputError
from artifex.serving.grpc.messages import SERVICE, decode_request, encode_response, message_class
from artifex.serving.observe.events import log_event
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.descriptions import model_config, model_metadata, server_metadata, statistics
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import UnauthorizedError, UnsupportedError, explain
from artifex.serving.plane.streams import response_of, rows_and_previews

Authorize = Callable[[str | None], None]
Answer = Callable[[Any], Awaitable[Any]]
Behavior = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

HEALTH_SERVICE = "grpc.health.v1.Health"
MAX_IN_FLIGHT = 64  # requests of one stream
_MAX_WORDS = 500  # characters of an error: clients take 8 KiB of percent-encoded metadata
_SECONDS_BETWEEN_LOOKS = 0.5  # at whether the server drains
_HEALTH = ("ServerLive", "ServerReady")

_InferRequest = message_class("ModelInferRequest")
_StreamResponse = message_class("ModelStreamInferResponse")


def create_grpc_server(
    plane: DataPlane,
    address: str,
    *,
    authorize: Authorize | None = None,
    max_message_bytes: int,
    access_log: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Serves models over gRPC: the Open Inference Protocol, its extensions, and gRPC's own health.

    Called in the event loop that is to run it. Start it with `await server.start()`.

    Args:
        plane: Runs the requests.
        address: `host:port`; port 0 is any that is free.
        authorize: Told the `authorization` metadata of each call, or None; raises `UnauthorizedError`. Health
            is exempt.
        max_message_bytes: Size of a message that is taken, compressed or not.
        access_log: Whether to log each call, a stream when it ends; health is exempt.
        credentials: For TLS; None serves without.

    Returns:
        The server, and the port.

    Raises:
        OSError: The address cannot be listened on.
    """
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Clients may ping as often as they like: what looks after a connection is no attack.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),  # else a second server shares the port, and nobody is told
    ]
    server = grpc.aio.server(options=options)
    services = method_handlers(plane, authorize, access_log=access_log)
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, verbs) for name, verbs in services.items())
    )
    try:
        if credentials is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"{address} cannot be listened on: {error}") from error


def method_handlers(
    plane: DataPlane, authorize: Authorize | None, *, access_log: bool = False
) -> dict[str, dict[str, grpc.RpcMethodHandler]]:
    """The verbs of each service, by name; arguments are those of `create_grpc_server`."""
    return {
        SERVICE.full_name: _Verbs(plane, authorize, access_log).handlers(),
        HEALTH_SERVICE: _health_handlers(plane),
    }


class _Verbs:
    """The protocol's verbs. They take and give bytes, so that what cannot be parsed has an answer too."""

    def __init__(self, plane: DataPlane, authorize: Authorize | None, access_log: bool):
        self.plane = plane
        self._authorize = authorize
        self._access_log = access_log

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        plane = self.plane
        verbs: dict[str, Answer] = {
            "ServerLive": _at_once(lambda _: {"live": True}),
            "ServerReady": _at_once(lambda _: {"ready": plane.is_ready}),
            "ServerMetadata": _at_once(lambda _: server_metadata()),
            "ModelReady": _at_once(lambda model: {"ready": plane.is_model_ready(model.name, model.version)}),
            "ModelMetadata": _at_once(lambda model: model_metadata(plane, model.name, model.version)),
            "ModelConfig": _at_once(lambda m: {"config": model_config(plane, m.name, m.version)}),
            "ModelStatistics": _at_once(lambda model: statistics(plane, model.name, model.version)),
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        stream = grpc.stream_stream_rpc_method_handler(self._told("ModelStreamInfer", self._stream))
        return {"ModelStreamInfer": stream, **{name: self._unary(name, verb) for name, verb in verbs.items()}}

    def _told(self, name: str, behavior: Behavior) -> Behavior:
        """A verb that tells the access log of its calls, if there is one."""
        return _logged(name, behavior) if self._access_log else behavior

    def _unary(self, name: str, verb: Answer) -> grpc.RpcMethodHandler:
        authorize = None if name in _HEALTH else self._authorize
        request_class, response_class = message_class(f"{name}Request"), message_class(f"{name}Response")

        async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                if authorize is not None:
                    authorize(_metadata(context, "authorization"))
                response = await verb(_parsed(request_class, data))
                if isinstance(response, dict):
                    response = response_class(**response)
                return response.SerializeToString()
            except Exception as error:  # whatever it is, it is this call's answer
                return await context.abort(*_status(error))

        return grpc.unary_unary_rpc_method_handler(self._told(name, answer))

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        """Answers in the order of the requests; reads no further while too many are in flight.

        Requests that ask for previews are answered apart: theirs come as they are made.
        """
        if self._authorize is not None:
            try:
                self._authorize(_metadata(context, "authorization"))
            except UnauthorizedError as error:
                await context.abort(*_status(error))
        stream = cast("asyncio.Task[None]", asyncio.current_task())
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        one_at_a_time = asyncio.Lock()

        async def read() -> None:
            await slots.acquire()
            async for data in requests:
                message = _asks_for_previews(data)
                if message is None:
                    answers.put_nowait(tasks.create_task(self._stream_answer(data)))
                else:
                    tasks.create_task(show(message))
                await slots.acquire()

        async def show(message: Any) -> None:
            async with contextlib.aclosing(self._shown(message)) as responses:
                async for response in responses:
                    await send(response)
            slots.release()

        async def write() -> None:
            while (answer := await answers.get()) is not None:
                await send(await answer)
                slots.release()

        async def send(data: bytes) -> None:
            async with one_at_a_time:
                try:
                    await context.write(data)
                except Exception:  # the client has left, and nobody has told the call yet
                    stream.cancel()
                    raise asyncio.CancelledError from None

        async with asyncio.TaskGroup() as tasks:  # ends them all when the client leaves
            tasks.create_task(write())
            reading = tasks.create_task(read())
            while not reading.done() and not self.plane.draining:
                await asyncio.wait([reading], timeout=_SECONDS_BETWEEN_LOOKS)
            drained = reading.cancel()
            answers.put_nowait(None)
        if drained:  # else an idle stream would keep the server from ending
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server drains; send it elsewhere")

    async def _shown(self, message: Any) -> AsyncGenerator[bytes]:
        """The responses to a request of a stream that asks for previews; the last says that it is."""
        message.parameters.pop("triton_enable_empty_final_response", None)
        try:
            call = await self.plane.prepare(self._decoded(message), is_stream=True)
            async with contextlib.aclosing(rows_and_previews(call, [0, call.job.num_rows])) as found:
                async for part in found:
                    response = _StreamResponse()
                    response.infer_response.MergeFrom(encode_response(response_of(call, part)))
                    is_last = part.steps is None
                    response.infer_response.parameters["triton_final_response"].bool_param = is_last
                    yield response.SerializeToString()
        except Exception as error:  # whatever it is, it is this request's answer
            response = _StreamResponse(error_message=_status(error)[1])
            response.infer_response.id = message.id
            yield response.SerializeToString()

    async def _stream_answer(self, data: bytes) -> bytes:
        response = _StreamResponse()
        try:
            message = _parsed(_InferRequest, data)
            # So that the client knows which one it was, should it fail.
            response.infer_response.id = message.id
            marks_end = message.parameters.pop("triton_enable_empty_final_response", None)
            if marks_end is not None and marks_end.bool_param:
                response.infer_response.parameters["triton_final_response"].bool_param = True
            response.infer_response.MergeFrom(await self._infer(message))
        except Exception as error:  # whatever it is, it is this request's answer
            response.error_message = _status(error)[1]
        return response.SerializeToString()

    async def _infer(self, message: Any) -> Any:
        return encode_response(await self.plane.infer(self._decoded(message)))

    def _decoded(self, message: Any) -> InferRequest:
        try:
            return decode_request(message)
        except InputError:
            self.plane.count_refused(message.model_name)
            raise

    async def _index(self, message: Any) -> dict[str, Any]:
        _refuse_repository(message)
        return {"models": self.plane.repository.index(only_ready=message.ready)}

    async def _load(self, message: Any) -> dict[str, Any]:
        _refuse_repository(message)
        if message.parameters:
            raise UnsupportedError("a model's config and files cannot be sent along; it loads what it has")
        # A load that has begun goes on when the client leaves, so that its model is not left half loaded.
        await asyncio.shield(self.plane.repository.load(message.model_name))
        return {}

    async def _unload(self, message: Any) -> dict[str, Any]:
        _refuse_repository(message)  # `unload_dependents`, which clients always send, has none to mean
        await asyncio.shield(self.plane.repository.unload(message.model_name))
        return {}


def _at_once(describe: Callable[[Any], dict[str, Any]]) -> Answer:
    """A verb that waits for nothing."""

    async def verb(message: Any) -> dict[str, Any]:
        return describe(message)

    return verb


def _health_handlers(plane: DataPlane) -> dict[str, grpc.RpcMethodHandler]:
    """The verbs of gRPC's health, of the whole server or of its one service."""
    request_class, response_class = message_class("HealthCheckRequest"), message_class("HealthCheckResponse")

    def status(message: Any) -> str:
        if message.service not in ("", SERVICE.full_name):
            return "SERVICE_UNKNOWN"
        return "SERVING" if plane.is_ready else "NOT_SERVING"

    async def check(message: Any, context: grpc.aio.ServicerContext) -> Any:
        answer = status(message)
        if answer == "SERVICE_UNKNOWN":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service; there is {SERVICE.full_name}")
        return response_class(status=answer)

    async def watch(message: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        told = None
        while True:
            if (answer := status(message)) != told:
                told = answer
                yield response_class(status=answer)
            if plane.draining:
                return
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    forms = {
        "request_deserializer": request_class.FromString,
        "response_serializer": response_class.SerializeToString,
    }
    return {
        "Check": grpc.unary_unary_rpc_method_handler(check, **forms),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **forms),
    }


def _logged(name: str, behavior: Behavior) -> Behavior:
    async def logged(request: Any, context: grpc.aio.ServicerContext) -> Any:
        start, status, size = time.perf_counter(), "client gone", 0
        try:
            response = await behavior(request, context)
            status, size = "OK", len(response or b"")
            return response
        except grpc.aio.AbortError:
            status = context.code().name
            raise
        finally:
            log_event(
                "request",
                method="gRPC",
                path=f"/{SERVICE.full_name}/{name}",
                status=status,
                bytes=size,
                milliseconds=round(1e3 * (time.perf_counter() - start), 3),
                client=context.peer(),
                request_id=_metadata(context, "x-request-id") or "",
            )

    return logged


def _parsed(request_class: Any, data: bytes) -> Any:
    try:
        return request_class.FromString(data)
    except DecodeError as error:
        raise InputError(f"the message is no {request_class.DESCRIPTOR.name}") from error


def _asks_for_previews(data: bytes) -> Any | None:
    """The message of a request that asks for previews; None of any other."""
    if b"every" not in data:
        return None
    try:
        message = _parsed(_InferRequest, data)
    except InputError:  # which its answer tells
        return None
    return message if "every" in message.parameters else None


def _metadata(context: grpc.aio.ServicerContext, key: str) -> str | None:
    metadata = context.invocation_metadata() or ()
    return next((str(value) for name, value in metadata if name == key), None)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """An error as a call's end."""
    _, name, message = explain(error)
    return grpc.StatusCode[name], message if len(message) <= _MAX_WORDS else f"{message[:_MAX_WORDS]}…"


def _refuse_repository(message: Any) -> None:
    if message.repository_name:
        raise UnsupportedError("there is one repository, without a name; leave repository_name out")
