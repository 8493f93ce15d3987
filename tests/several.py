"""Several processes of one job, and a coordinator's address that nobody else has."""

import os
import socket
from collections.abc import Sequence

from forked import Python
from served import START_SECONDS


def free_address() -> str:
    """A loopback address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def start(command: Sequence[object], num_devices: int = 1) -> Python:
    """Starts Python in a process with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    return Python(command, env=os.environ | {"XLA_FLAGS": flags})


def finish(processes: Sequence[Python]) -> list[tuple[int, str, str]]:
    """Waits for processes: of each its status, stdout and stderr."""
    try:
        said = [process.communicate(timeout=START_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, said, strict=True)]
