"""Python in a process of its own, forked from one that has imported JAX and the other libraries already.

Importing them takes seconds, a fork milliseconds. Nothing else is shared: the process that forks has one
thread, no JAX backend and nothing of Artifex. A child has the environment, folder, cores and streams that a
new interpreter would have, signals as Python starts with them, and the end of an interpreter, so that its
status, its output and what runs at exit are real. What it does not read for itself is what JAX reads when it
is imported, `JAX_...` in the environment: a child for which that differs is refused.

Tests of what is imported, and one of each way to start Artifex, start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from compiled import share_compilations

LIBRARIES = (
    *("PIL.PngImagePlugin", "flax.nnx", "google.protobuf.internal.builder", "grpc.aio", "httpx", "multipart"),
    *("jax.experimental.multihost_utils", "jax.experimental.serialize_executable", "jax.numpy", "optax"),
    *("orbax.checkpoint", "orjson", "prometheus_client", "pydantic.type_adapter", "rich.progress"),
    *("starlette.middleware.cors", "starlette.responses", "typer.rich_utils"),
    *("uvicorn.protocols.http.httptools_impl", "uvloop"),
)

_NUMBER = struct.Struct("!i")


class Python:
    """A Python process, with what tests need of `subprocess.Popen`; its output is piped, as text.

    Args:
        command: The arguments of Python: a script, `-c CODE` or `-m MODULE`, and its arguments.
        env: Its environment; None is this process's.
        cwd: Its folder; None is this process's.
        stdin: `subprocess.PIPE` or `subprocess.DEVNULL`.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ):
        self.args = list(map(str, command))
        self.returncode: int | None = None
        self._ended = threading.Event()
        request = {
            "command": self.args,
            "env": dict(os.environ if env is None else env),
            "cwd": str(Path.cwd() if cwd is None else cwd),
            "cores": list(os.sched_getaffinity(0)) if sys.platform == "linux" else [],
        }
        theirs, writes = os.pipe() if stdin == subprocess.PIPE else (os.open(os.devnull, os.O_RDONLY), None)
        self.stdin = None if writes is None else os.fdopen(writes, "w")
        (out, out_theirs), (err, err_theirs) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        told, told_theirs = socket.socketpair()
        descriptors = [told_theirs.detach(), theirs, out_theirs, err_theirs]
        socket.send_fds(_server(), [b"."], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        told.sendall(json.dumps(request).encode() + b"\n")
        self.pid = _receive(told)
        threading.Thread(target=self._note_end, args=[told], daemon=True).start()

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not in `timeout` seconds.
        """
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says on stdout and stderr until it ends.

        Raises:
            subprocess.TimeoutExpired: It had not ended after `timeout` seconds, and was killed.
        """
        if self.stdin:
            self.stdin.close()
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        said = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            said[number] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        threads = [threading.Thread(target=read, args=numbered) for numbered in streams]
        watch = threading.Timer(threading.TIMEOUT_MAX if timeout is None else timeout, end)
        for thread in (*threads, watch):
            thread.start()
        try:
            for thread in threads:
                thread.join()
            self.wait()
        finally:
            watch.cancel()
        self.__exit__()
        if late.is_set():
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *said)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Python:
        return self

    def __exit__(self, *args: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def _note_end(self, told: socket.socket) -> None:
        with told:
            self.returncode = _receive(told)
        self._ended.set()


def run(
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    check: bool = False,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs Python to its end, with nothing on stdin and its output captured, as `subprocess.run` would."""
    process = Python(command, env=env, cwd=cwd)
    stdout, stderr = process.communicate(timeout)
    assert not check or process.returncode == 0, f"{process.args} ended with {process.returncode}:\n{stderr}"
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


@functools.cache
def _server() -> socket.socket:
    """Who forks, until this socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # else importing NumPy starts more
        )

    @atexit.register
    def end() -> None:
        ours.close()
        server.wait()

    return ours


def _receive(told: socket.socket) -> int:
    """A number that was told by a process."""
    (number,) = _NUMBER.unpack(told.recv(_NUMBER.size, socket.MSG_WAITALL))
    return number


def _serve(channel: socket.socket) -> dict[str, object]:
    """Forks for whoever asks; returns in each child, and there alone, with what it is to be."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for pytest and for the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    while True:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 4)
        if not descriptors:
            os._exit(0)
        if not os.fork():
            channel.close()
            return _fork(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(connection: int, *streams: int) -> dict[str, object]:
    """Forks once more: this process tells how the child ends, in which alone the function returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=connection) as told:
        request = json.loads(told.makefile("r").readline())
        child = os.fork()
        if child:
            for stream in streams:
                os.close(stream)
            told.sendall(_NUMBER.pack(child))
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(BrokenPipeError):  # who asked has ended
                told.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return request


def _become(request: dict[str, object]) -> None:
    """Gives this process what is a process's own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    env = request["env"]
    of_jax = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    if of_jax != {name: value for name, value in env.items() if name.startswith("JAX_")}:
        sys.exit("JAX has read its settings already: start Python itself")
    os.environ.clear()
    os.environ.update(env)
    os.chdir(request["cwd"])
    share_compilations()
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])


def _run(command: list[str]) -> None:
    """What Python does with its arguments."""
    option, *rest = command
    if option == "-W":
        warnings.simplefilter(rest[0])
        _run(rest[1:])
    elif option == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    elif option == "-m":
        sys.argv, sys.path[0] = rest, ""
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(option).resolve().parent)
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    _child = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(_child)
    _run(_child["command"])
