"""Several processes of one job, and a coordinator's address that nobody else has."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from served import START_SECONDS


def free_address() -> str:
    """A loopback address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def start(command: Sequence[object], num_devices: int = 1) -> "subprocess.Popen[str]":
    """Starts Python in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: Sequence["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Waits for processes: of each its status, stdout and stderr."""
    try:
        said = [process.communicate(timeout=START_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, said, strict=True)]
