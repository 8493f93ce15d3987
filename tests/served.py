"""Servers to test: an application on a real socket in this process, or `artifex serve` in its own."""

import asyncio
import http.client
import io
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
import uvicorn
from forked import Python
from shared import TIMEOUT

from artifex.serving.grpc.service import create_grpc_server
from artifex.serving.http.connection import KEEP_ALIVE_SECONDS, Connection

ROOT = str(Path(__file__).parent.parent)
URL = "/v2/models/plain.double/infer"
X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
GOOD = {"inputs": [X]}  # its answer is 2, 4, 6
MAX_BYTES = 1 << 16
START_SECONDS = 300  # in which a process has started, on a busy machine


class Answer(NamedTuple):
    """What came back on a raw connection."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def error(self) -> str:
        """The message of an error, which has the protocol's form."""
        content = json.loads(self.body)
        assert list(content) == ["error"]
        assert_tells_nothing(content["error"])
        return content["error"]


def assert_tells_nothing(message: str) -> None:
    """Whether an error is for clients: no path, no traceback, not empty, and not endless."""
    assert 0 < len(message) < 1000
    for inner in ("Traceback", ".py", "/srv", "/tmp", "/home", "site-packages", "0x7f", ROOT):
        assert inner not in message


def error_of(response: httpx.Response) -> str:
    """The message of an error."""
    return Answer(response.status_code, dict(response.headers), response.content).error


class _Unread(io.BufferedReader):
    """What a connection receives; a response that has been read leaves what follows it to the next."""

    def close(self) -> None:
        pass


def read_answers(connection: socket.socket, count: int = 1, method: str = "POST") -> list[Answer]:
    """Reads responses that follow each other."""
    answers = []
    with connection.makefile("rb", buffering=0) as received:
        unread = _Unread(received)
        for _ in range(count):
            response = http.client.HTTPResponse(connection, method=method)
            response.fp.close()
            response.fp = unread
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answers.append(Answer(response.status, headers, response.read()))
    return answers


def read_answer(connection: socket.socket, method: str = "POST") -> Answer:
    """Reads one response."""
    return read_answers(connection, 1, method)[0]


def watched(patch: pytest.MonkeyPatch, owner: type, *names: str) -> Callable[[str, int], None]:
    """Counts what methods have done; what it returns waits until one was called so often."""
    counts = dict.fromkeys(names, 0)
    changed = threading.Condition()

    def counting(name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            with changed:
                counts[name] += 1
                changed.notify_all()
            return result

        return wrapper

    for name in names:
        patch.setattr(owner, name, counting(name))

    def wait(name: str, count: int) -> None:
        with changed:
            assert changed.wait_for(lambda: counts[name] >= count, TIMEOUT), counts

    return wait


class Live:
    """An application behind a real socket, on an event loop in a thread of its own; its models are loaded.

    Args:
        app: The application.
        start: What begins to load its models, in the loop; None leaves that to the first request.
        lifespan: Whether the application's lifespan is run, as a server of its own would do.
        keep_alive: Seconds after which an idle connection is closed.
    """

    def __init__(
        self,
        app: Any,
        start: Callable[[], Any] | None,
        lifespan: bool,
        keep_alive: float = KEEP_ALIVE_SECONDS,
    ):
        self.app = app
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on" if lifespan else "off",
            log_config=None,
            server_header=False,
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=TIMEOUT,
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if start is not None:
            self.call(_awaited(start))
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)

    def connect(self, *parts: bytes) -> socket.socket:
        """A raw connection, on which some bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        for part in parts:
            connection.sendall(part)
        return connection

    def exchange(self, *parts: bytes, method: str = "POST") -> Answer:
        """The response to bytes that are sent as they are."""
        with self.connect(*parts) as connection:
            return read_answer(connection, method)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._listener]))


async def _awaited(start: Callable[[], Any]) -> None:
    await start()


@contextmanager
def live(app: Any) -> Iterator[Live]:
    """Serves an `App`, ready, until the end of the block."""
    server = Live(app, app.start, lifespan=False)
    try:
        yield server
    finally:
        try:
            server.call(app.close())
        finally:
            server.close()


@contextmanager
def live_asgi(app: Any, *, lifespan: bool, keep_alive: float = KEEP_ALIVE_SECONDS) -> Iterator[Live]:
    """Serves any ASGI application, as it is."""
    server = Live(app, None, lifespan, keep_alive)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def grpc_of(server: Live) -> Iterator[str]:
    """Serves the models of a server over gRPC, too; its address."""

    async def start() -> tuple[grpc.aio.Server, int]:
        made, port = create_grpc_server(server.app.plane, "127.0.0.1:0", max_message_bytes=1 << 20)
        await made.start()
        return made, port

    made, port = server.call(start())
    yield f"127.0.0.1:{port}"
    server.call(made.stop(None))


class Process:
    """`artifex serve` in a process of its own, on free ports.

    Args:
        args: Its arguments.
        before: Code that runs first.
        stdin: As for `subprocess.Popen`.
    """

    def __init__(self, *args: object, before: str = "", stdin: int = subprocess.DEVNULL):
        command = ["-c", f"{before}\nfrom artifex.cli import main; main()", "serve", *args]
        for option in ("--port", "--grpc-port"):
            command += [] if option in args else [option, "0"]
        self.popen = Python(command, stdin=stdin)
        self.events: list[dict[str, Any]] = []  # lines that are no JSON are {"line": ...}
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, count: int = 1, **facts: Any) -> dict[str, Any]:
        """Waits until an event was told so many times; the last of them."""

        def found() -> list[dict[str, Any]]:
            return [e for e in self.events if e.get("event") == event and facts.items() <= e.items()]

        with self._changed:
            done = self._changed.wait_for(lambda: len(found()) >= count or self._ended, START_SECONDS)
            assert done, self.events
            assert len(found()) >= count, self.events
            return found()[count - 1]

    @property
    def url(self) -> str:
        return self.wait_for("listening")["url"]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def grpc_port(self) -> int:
        return self.wait_for("listening")["grpc_port"]

    def ready(self, model: str = "tiny") -> "Process":
        """Waits until a model is ready."""
        self.wait_for("ready", model=model)
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit status, when it has ended and everything it said was read."""
        status = self.popen.wait(START_SECONDS)
        self._reader.join(TIMEOUT)
        return status

    def stop(self) -> int:
        """Ends it as an operator would."""
        self.signal()
        return self.wait()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *args: object) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join(TIMEOUT)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        for line in self.popen.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"line": line.rstrip("\n")}
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
