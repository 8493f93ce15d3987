"""One process that serves: HTTP and gRPC on one event loop, signals, and a heap that is left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvicorn

from artifex.generative_models.core.errors import InputError
from artifex.serving.grpc.service import create_grpc_server
from artifex.serving.http.asgi import App
from artifex.serving.http.connection import KEEP_ALIVE_SECONDS, Connection
from artifex.serving.observe.events import flush_events, log_event
from artifex.serving.plane.statuses import UnloadableError

_BACKLOG = 2048
_ACCEPTORS = 16  # of each socket that listens
_COLLECT_SECONDS = 1.0
_LINGER_SECONDS = 0.3  # in which what is on its way when draining ends still gets its 503


@dataclass(frozen=True)
class Tls:
    """What a server proves itself with.

    Args:
        certfile: Its certificate chain, PEM.
        keyfile: Its private key, PEM.
        keyfile_password: Of the private key.
        ca_certs: Authorities, PEM; where given, clients must have a certificate of theirs.
    """

    certfile: Path
    keyfile: Path
    keyfile_password: str | None = None
    ca_certs: Path | None = None


def run_server(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = 8001,
    grace: float = 30.0,
    keep_alive: int = KEEP_ALIVE_SECONDS,
    root_path: str = "",
    trusted_proxies: str | None = None,
    tls: Tls | None = None,
) -> int:
    """Serves until a signal ends it.

    SIGTERM and SIGINT drain: what is new is refused with 503, and what was taken is answered. A second one
    ends the process at once.

    Args:
        app: From `create_app`.
        host: Address to listen on.
        port: Of HTTP; 0 takes a free one.
        grpc_port: Of gRPC; 0 takes a free one, None has no gRPC.
        grace: Seconds for draining.
        keep_alive: Seconds that an idle connection stays open; a load balancer's own must be shorter.
        root_path: Path under which a proxy shows the server, such as /models.
        trusted_proxies: Addresses and networks, with commas between them, whose X-Forwarded headers are
            believed; "*" is all. None believes nobody.
        tls: Serves HTTPS and encrypted gRPC.

    Returns:
        The exit status: 0, or 1 if a model could not be loaded or draining took too long.

    Raises:
        OSError: An address cannot be listened on, or a file of `tls` cannot be read.
        InputError: The files of `tls` do not fit together.
    """
    if tls is not None:
        _check(tls)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in _listen(host, port)]
        proxy = _Proxy(root_path.rstrip("/"), trusted_proxies)
        server = _Server(app, listeners, host, grpc_port, grace, keep_alive, proxy, tls)
        with _heap_as_before(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            status = runner.run(server.run())
            flush_events()
            if server.overdue or app.plane.repository.is_loading:
                os._exit(status)  # the threads that still run would keep the interpreter from ending
            return status


@dataclass(frozen=True)
class _Proxy:
    """What stands before the server: where it shows it, and whose headers are believed."""

    root_path: str
    trusted: str | None


class _Uvicorn(uvicorn.Server):
    """uvicorn, but that signals are not its business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(eq=False)
class _Server:
    app: App
    listeners: list[socket.socket]
    host: str
    grpc_port: int | None
    grace: float
    keep_alive: int
    proxy: _Proxy
    tls: Tls | None
    overdue: bool = False

    def __post_init__(self) -> None:
        self._stop = asyncio.Event()
        tls = self.tls
        config = uvicorn.Config(
            self.app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=self.proxy.root_path,
            proxy_headers=self.proxy.trusted is not None,
            forwarded_allow_ips=self.proxy.trusted,
            backlog=_BACKLOG,
            timeout_keep_alive=self.keep_alive,
            ssl_keyfile=None if tls is None else str(tls.keyfile),
            ssl_certfile=None if tls is None else str(tls.certfile),
            ssl_keyfile_password=None if tls is None else tls.keyfile_password,
            ssl_ca_certs=None if tls is None or tls.ca_certs is None else str(tls.ca_certs),
            ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.ca_certs is None else ssl.CERT_REQUIRED,
        )
        config.load()
        self._http = _Uvicorn(config)

    async def run(self) -> int:
        """Serves until a signal came and everything was answered."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        grpc_server = await self._start_grpc()
        # A loop takes one connection from each in a turn, and its turns are long while it is busy.
        acceptors = [listener.dup() for listener in self.listeners for _ in range(_ACCEPTORS)]
        http = asyncio.ensure_future(self._http.serve(sockets=acceptors))
        self.app.plane.repository.settle = _settle_heap
        loading = self.app.start()
        loading.add_done_callback(self._on_loaded)
        scheme = "http" if self.tls is None else "https"
        port = self.listeners[0].getsockname()[1]
        log_event(
            "listening",
            url=f"{scheme}://{_bracketed(self.host)}:{port}",
            grpc_port=self.grpc_port,
            addresses=[listener.getsockname()[0] for listener in self.listeners],
        )
        collecting = asyncio.ensure_future(_collect_garbage())
        await self._stop.wait()
        failed = loading.done() and not loading.cancelled() and loading.exception() is not None
        deadline = loop.time() + self.grace
        log_event("draining", seconds=self.grace)
        try:
            async with asyncio.timeout_at(deadline):
                await self.app.close()
                await asyncio.sleep(_LINGER_SECONDS)
                if grpc_server is not None:
                    await grpc_server.stop(max(0.0, deadline - loop.time() - _LINGER_SECONDS))
                self._http.should_exit = True
                await http
        except TimeoutError:
            self.overdue = True
            log_event("stopped", reason="requests were left when the time to drain was over")
            return 1
        finally:
            collecting.cancel()
        log_event("stopped")
        return int(failed)

    async def _start_grpc(self) -> grpc.aio.Server | None:
        if self.grpc_port is None:
            return None
        server, self.grpc_port = create_grpc_server(
            self.app.plane,
            f"{_bracketed(self.host)}:{self.grpc_port}",
            authorize=self.app.authorize,
            max_message_bytes=self.app.max_body_bytes,
            access_log=self.app.access_log,
            credentials=None if self.tls is None else _grpc_credentials(self.tls),
        )
        await server.start()
        return server

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            log_event("stopped", reason=f"a second {signal.Signals(number).name}")
            flush_events()
            os._exit(128 + number)
        log_event("signal", name=signal.Signals(number).name)
        self.app.plane.draining = True
        self._stop.set()

    def _on_loaded(self, loading: asyncio.Task[None]) -> None:
        if not loading.cancelled() and isinstance(loading.exception(), UnloadableError):
            self._stop.set()


@contextlib.contextmanager
def _heap_as_before() -> Iterator[None]:
    """Gives a program that goes on after its server the garbage collection that it had."""
    collects, frozen = gc.isenabled(), gc.get_freeze_count()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if not frozen:
            gc.unfreeze()


def _settle_heap() -> None:
    """Exempts what lives long from garbage collection.

    With JAX loaded a full collection takes a tenth of a second; after this, what it takes to look through
    what was allocated since.
    """
    gc.collect()
    gc.freeze()


async def _collect_garbage() -> None:
    """Collects by the clock, not in a request."""
    gc.disable()
    while True:
        await asyncio.sleep(_COLLECT_SECONDS)
        gc.collect()


def _check(tls: Tls) -> None:
    """Raises what is wrong with the files, rather than ask a terminal for a password."""
    for path in (tls.certfile, tls.keyfile, tls.ca_certs):
        if path is not None:
            path.read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certfile, tls.keyfile, lambda: tls.keyfile_password or "")
        if tls.ca_certs is not None:
            context.load_verify_locations(tls.ca_certs)
    except ssl.SSLError as error:
        raise InputError(f"the TLS certificate, key and password do not fit: {error.reason}") from error


def _grpc_credentials(tls: Tls) -> grpc.ServerCredentials:
    if tls.keyfile_password is not None:
        raise InputError("gRPC takes no encrypted private key; decrypt it, or leave gRPC out")
    ca_certs = None if tls.ca_certs is None else tls.ca_certs.read_bytes()
    pair = (tls.keyfile.read_bytes(), tls.certfile.read_bytes())
    return grpc.ssl_server_credentials([pair], ca_certs, require_client_auth=ca_certs is not None)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses that a host has, as of both families for localhost, on one port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        error.filename = f"{host}:{port}"
        raise
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        for family, kind, _, _, address in dict.fromkeys(found):
            try:
                listener = _bound(family, kind, (address[0], port, *address[2:]))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                    continue  # hosts names an address that this machine does not have
                error.filename = f"{host}:{port}"
                raise
            port = listener.getsockname()[1]
            listeners.append(stack.enter_context(listener))
        stack.pop_all()
    if not listeners:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL), f"{host}:{port}")
    return listeners


def _bound(family: int, kind: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it is not made for Windows
        return None
    return uvloop.Loop
