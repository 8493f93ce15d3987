"""Online on Ray Serve: replicas of the application, reached by the clients that `artifex serve` has.

A replica holds the whole application: its own models, queue and counters. Ray Serve's proxies hand it HTTP
requests as ASGI, and gRPC messages as bytes.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
import ray
from ray import serve

from artifex.generative_models.core.errors import InputError
from artifex.ray.cluster import joined, require
from artifex.serving.app import create_app
from artifex.serving.grpc.messages import SERVICE
from artifex.serving.grpc.service import HEALTH_SERVICE, method_handlers
from artifex.serving.http.asgi import App
from artifex.serving.observe.events import log_event

MakeApp = Callable[[], App]

NAME = "artifex"  # of the application and of its deployment
GRPC_SERVICES = f"{__name__}.add_services"
_ONGOING_REQUESTS = 512  # that a replica takes; they wait in its own queue, where they share batches
_TARGET_REQUESTS = 64  # a replica, for scaling: about a batch
_UNARY = [method.name for method in SERVICE.methods if not method.client_streaming]


class _Bytes(bytes):
    """A message as bytes, in the form in which Ray Serve takes messages."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        return bytes(self)


class _Context:
    """What the verbs of gRPC use of a call's context."""

    def __init__(self, context: serve.grpc_util.RayServegRPCContext):
        self._context = context
        self.messages: asyncio.Queue[bytes] = asyncio.Queue(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: bytes) -> None:
        await self.messages.put(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self._context.set_code(code)
        self._context.set_details(details)
        raise grpc.aio.AbortError(code, details)


@serve.ingress()
class Replica:
    """One process of the deployment, with an application of its own. It is ready when its models are."""

    def __init__(self, make_app: MakeApp):
        self._models = make_app()
        self._services = method_handlers(self._models.plane, self._models.authorize)

    async def __serve_build_asgi_app__(self) -> App:
        await self._models.start()
        return self._models

    async def Check(self, request: bytes, grpc_context: Any) -> _Bytes:  # noqa: N802
        """Answers `grpc.health.v1.Health`."""
        verb = self._services[HEALTH_SERVICE]["Check"]
        message = verb.request_deserializer(request)
        return _Bytes(verb.response_serializer(await verb.unary_unary(message, _Context(grpc_context))))

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[_Bytes]:
        """Answers a stream of requests."""
        verb, context = self._services[SERVICE.full_name]["ModelStreamInfer"], _Context(grpc_context)
        answering = asyncio.ensure_future(verb.stream_stream(requests, context))
        try:
            while not (answering.done() and context.messages.empty()):
                getting = asyncio.ensure_future(context.messages.get())
                await asyncio.wait((getting, answering), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield _Bytes(getting.result())
                else:
                    getting.cancel()
            await answering
        finally:
            answering.cancel()


def _unary(name: str) -> Callable[..., Any]:
    async def call(self: Any, request: bytes, grpc_context: Any) -> _Bytes:
        verb = self._services[SERVICE.full_name][name]
        return _Bytes(await verb.unary_unary(request, _Context(grpc_context)))

    return call


for _name in _UNARY:
    setattr(Replica, _name, _unary(_name))


def add_services(servicer: Any, server: Any) -> None:
    """Tells Ray Serve's gRPC proxy of the services, whose messages it passes on as they are."""
    unary = grpc.unary_unary_rpc_method_handler(None)
    verbs = {**dict.fromkeys(_UNARY, unary), "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(None)}
    for name, handlers in ((SERVICE.full_name, verbs), (HEALTH_SERVICE, {"Check": unary})):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def deployment(
    make_app: MakeApp,
    *,
    replicas: int = 1,
    max_replicas: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    grace: float = 30.0,
) -> serve.Application:
    """The application as a Ray Serve deployment, for `serve.run`.

    To run it again replaces the replicas one after another: each answers what it took, and no request fails.

    Args:
        make_app: Makes the application in each replica, such as `lambda: create_app(["mnist-vae"])`.
        replicas: How many; the fewest, where `max_replicas` is more.
        max_replicas: Adds and ends replicas with the requests that are under way.
        num_cpus: Cores for each, by which Ray places them.
        num_gpus: GPUs for each; a fraction shares one.
        grace: Seconds in which a replica that ends answers what it took.

    Raises:
        InputError: No replica, or a maximum below the minimum.
    """
    if replicas < 1 or (max_replicas is not None and max_replicas < replicas):
        raise InputError(
            f"replicas: expected 1 or more, up to max_replicas; got {replicas} and {max_replicas}"
        )
    scaling = {
        "min_replicas": replicas,
        "max_replicas": max_replicas,
        "target_ongoing_requests": _TARGET_REQUESTS,
    }
    configured = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=grace,
        max_constructor_retry_count=1,
    )(Replica)
    if max_replicas is None:
        return configured.options(num_replicas=replicas).bind(make_app)
    return configured.options(autoscaling_config=scaling).bind(make_app)


def application(args: Mapping[str, Any]) -> serve.Application:
    """Builds the application from the `args` of a Ray Serve config file, where it is an import path.

    Args:
        args: `models`, and other arguments of `create_app` by name; the file itself tells of replicas.

    Raises:
        InputError: An argument that `create_app` does not have, or no models.
    """
    make_app = functools.partial(create_app, **args)
    try:
        inspect.signature(create_app).bind(**args)
    except TypeError as error:
        raise InputError(f"args: {error}; they are those of create_app") from error
    return deployment(make_app)


def run_on_ray(
    make_app: MakeApp,
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = 8001,
    replicas: int = 1,
    max_replicas: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    grace: float = 30.0,
    address: str | None = None,
) -> int:
    """Serves on Ray until SIGTERM or SIGINT, then takes down what it has put up.

    Args:
        make_app: Makes the application.
        models: Their names in it, for the log.
        host: Address to listen on, on every machine of the cluster.
        port: Of HTTP.
        grpc_port: Of gRPC; None has none.
        replicas: As for `deployment`, and so are the next four.
        address: Of a Ray cluster, as for `joined`.

    Returns:
        The exit status: 0, or 1 if the models could not be loaded.

    Raises:
        InputError: No Ray at the address, no room for the replicas, or as for `deployment`.
    """
    built = deployment(
        make_app,
        replicas=replicas,
        max_replicas=max_replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        grace=grace,
    )
    with joined(address) as started:
        require(ray, started, replicas, num_cpus, num_gpus)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as SIGINT
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # events say the same
        was_there = _serve_runs()
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                grpc_options=None
                if grpc_port is None
                else {"port": grpc_port, "grpc_servicer_functions": [GRPC_SERVICES]},
            )
            log_event("loading", models=list(models), replicas=replicas, max_replicas=max_replicas)
            serve.run(built, name=NAME, route_prefix="/")
            log_event("listening", url=f"http://{host}:{port}", grpc_port=grpc_port)
            for name in models:
                log_event("ready", model=name)
            threading.Event().wait()
        except KeyboardInterrupt:
            log_event("draining", seconds=grace)
        except RuntimeError as error:  # what Ray Serve says of a deployment that failed
            log_event("loading failed", reason=str(error))
            return 1
        finally:
            serve.delete(NAME)
            if not was_there:
                serve.shutdown()
    log_event("stopped")
    return 0


def _serve_runs() -> bool:
    """Whether the cluster has Ray Serve already, which is then not ours to end."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
