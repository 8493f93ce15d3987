"""The servers to compare: how each is installed, started, known to be ready, asked and stopped.

`python benchmarks/servers/contenders.py DIR` makes an environment for each under DIR, which
`--environments DIR` then names; without it that is `.benchmarks` at the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from protocols import ENDPOINTS, OUTPUTS, Requests, answer, bodies, rows

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".benchmarks"
READY_SECONDS = 120.0
STOP_SECONDS = 10.0
OURS = "artifex"


@dataclass(frozen=True)
class Contender:
    """A server and what it speaks.

    Args:
        name: Its name; its own environment, if it has one, bears it too.
        command: What follows the environment's Python; `{port}` and `{other_port}` are filled in.
        ready: Paths that all answer 200 once it serves.
        protocols: Those it speaks.
        path: Of a POST to an endpoint, `{endpoint}` filled in.
        shapes: Of an endpoint's input tensor, where the server wants another than the row's own.
        python: Version of the Python that its environment needs; the caller's own will do by default.
    """

    name: str
    command: tuple[str, ...]
    ready: tuple[str, ...]
    protocols: tuple[str, ...]
    path: str
    shapes: Mapping[str, tuple[int, ...]]
    python: str | None = None

    def requests(self, protocol: str, endpoint: str) -> Requests:
        """What clients send."""
        return bodies(protocol, endpoint, shape=self.shapes.get(endpoint))


V2_PATH = "/v2/models/mnist-vae.{endpoint}/infer"
V2_READY = ("/v2/health/ready", *(f"/v2/models/mnist-vae.{endpoint}/ready" for endpoint in ENDPOINTS))


def script(name: str) -> tuple[str, ...]:
    return (str(HERE / f"contender_{name}.py"), "--port", "{port}")


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            OURS,
            ("-m", "artifex", "serve", "mnist-vae", "--port", "{port}", "--grpc-port", "{other_port}"),
            V2_READY[:1],
            ("v2-json", "v2-binary", "v2-raw"),
            V2_PATH,
            {},
        ),
        Contender("fastapi", script("fastapi"), ("/ready",), ("json",), "/{endpoint}", {}),
        Contender("litserve", script("litserve"), ("/health",), ("json",), "/{endpoint}", {}),
        Contender(
            "mlserver",
            (*script("mlserver"), "--grpc-port", "{other_port}"),
            V2_READY,
            ("v2-json",),
            V2_PATH,
            {},
        ),
        Contender(
            "triton",
            script("triton"),
            V2_READY,
            ("v2-json", "v2-binary"),
            V2_PATH,
            {"generate": (1, 1)},
            python="3.11.2",  # Debian 12's own: PyTriton's stub embeds the system's libpython3.11
        ),
    )
}


@dataclass(frozen=True)
class Server:
    """A contender that runs."""

    contender: Contender
    port: int
    pid: int

    def url(self, path: str) -> str:
        """Of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def endpoint_url(self, endpoint: str) -> str:
        """Where requests to an endpoint go."""
        return self.url(self.contender.path.format(endpoint=endpoint))

    def ask(self, protocol: str, endpoint: str) -> list[dict[str, np.ndarray]]:
        """The tensors in the answer to each of a protocol's requests, all sent at once."""
        headers, contents = self.contender.requests(protocol, endpoint)

        def post(content: bytes) -> dict[str, np.ndarray]:
            request = urllib.request.Request(self.endpoint_url(endpoint), content, dict(headers))
            with urllib.request.urlopen(request, timeout=30) as response:
                return answer(response.headers, response.read())

        with ThreadPoolExecutor(len(contents)) as threads:
            return list(threads.map(post, contents))


def python_of(contender: Contender, environments: Path) -> Path:
    """The interpreter that runs a contender; ours runs in the environment of whoever calls."""
    if contender.name == OURS:
        return Path(sys.executable)
    return environments / contender.name / "bin" / "python"


@contextlib.contextmanager
def running(
    contender: Contender, environments: Path = ENVIRONMENTS, *, python: str | Path | None = None
) -> Iterator[Server]:
    """A contender's server, from when it is ready until all its processes have ended.

    Args:
        contender: Which.
        environments: Where its environment is.
        python: The interpreter to run it by instead of its own.

    Raises:
        RuntimeError: It ended or was not ready in time; the end of what it printed follows.
    """
    port, other_port = free_ports()
    arguments = [part.format(port=port, other_port=other_port) for part in contender.command]
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python or python_of(contender, environments), *arguments],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = Server(contender, port, process.pid)
        try:
            if not _becomes_ready(server, process):
                log.seek(0)
                raise RuntimeError(f"{contender.name} is not ready:\n{log.read().decode()[-4000:]}")
            yield server
        finally:
            _stop(process)


def agreement(server: Server, protocol: str) -> float:
    """The largest difference between a server's posteriors of digits and Artifex's own, called directly.

    `generate` draws at random, so that of it only shape and range are looked at.
    """
    from artifex.generative_models.inference import load_exported_model

    model, _, _ = load_exported_model("mnist-vae")
    wanted = model.encode(np.concatenate(rows("encode")[1]))
    found = server.ask(protocol, "encode")
    pictures = np.stack([tensors["x"] for tensors in server.ask(protocol, "generate")])
    if pictures.shape[1:] != (28 * 28,) or not 0 <= pictures.min() <= pictures.max() <= 1:
        raise RuntimeError(f"{server.contender.name} {protocol}: what it generates is no picture")
    if len(np.unique(pictures, axis=0)) < len(pictures):
        raise RuntimeError(f"{server.contender.name} {protocol}: some pictures are the same")
    return max(
        float(np.abs(np.asarray(wanted[name]) - np.stack([tensors[name] for tensors in found])).max())
        for name in OUTPUTS["encode"]
    )


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def prepare(contender: Contender, environments: Path) -> None:
    """Makes a contender's environment: its pinned requirements, then this Artifex without its own."""
    directory = environments / contender.name
    directory.mkdir(parents=True, exist_ok=True)
    (environments / ".gitignore").write_text("*\n")
    python = python_of(contender, environments)
    uv = [sys.executable, "-m", "uv"]
    base = contender.python or sys.executable
    subprocess.run([*uv, "venv", "--clear", "--python", base, directory], check=True)
    install = [*uv, "pip", "install", "--python", python, "--no-deps"]
    subprocess.run([*install, "-r", HERE / f"requirements-{contender.name}.txt"], check=True)
    subprocess.run([*install, "--reinstall-package", "artifex", ROOT], check=True)
    own = HERE / f"requirements-{contender.name}-own.txt"
    if own.exists():
        subprocess.run([*install, "--target", directory / "own", "-r", own], check=True)


def _becomes_ready(server: Server, process: subprocess.Popen) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    waiting = list(server.contender.ready)
    while waiting and process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(server.url(waiting[0]), timeout=5) as response:
                if response.status == 200:
                    waiting.pop(0)
                    continue
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    return not waiting


def _stop(process: subprocess.Popen) -> None:
    """Asks the process to end, then kills what is left of its session."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in _session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _session(leader: int) -> list[int]:
    """Processes of a session, in whatever group; a group alone would miss what a server starts apart."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the contenders' environments.")
    parser.add_argument("directory", type=Path, nargs="?", default=ENVIRONMENTS)
    parser.add_argument("--only", nargs="+", choices=[name for name in CONTENDERS if name != OURS])
    arguments = parser.parse_args()
    for name in arguments.only or CONTENDERS:
        if name != OURS:
            prepare(CONTENDERS[name], arguments.directory.resolve())


if __name__ == "__main__":
    main()
