"""What tests on Ray share: one for all of them, the processes of its actors, and what it warns of."""

import contextlib
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from served import START_SECONDS

from artifex.ray.cluster import joined

# Ray's own code uses what others deprecate, and leaves sockets and files to the garbage collector.
RAY_WARNS = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in (
        *("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning", "ResourceWarning"),
        "pytest.PytestUnraisableExceptionWarning",
    )
]

FILES = ("tests/ray/", "tests/cli/test_on_ray")  # that need one


@pytest.fixture(scope="module")
def ray() -> ModuleType:
    """A Ray on this machine; what it starts knows the cache of the tests, and steps back for nobody."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - it is Ray's
    module = importlib.import_module("ray")
    if not module.is_initialized():
        assert _joined.enter_context(joined("local"))
    return module


_joined = contextlib.ExitStack()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Ends the Ray once no test follows that may need it, rather than leave it to idle beside the others."""
    if nextitem is None or not nextitem.nodeid.startswith(FILES):
        _joined.close()


def workers() -> list[int]:
    """Processes of the actors of jobs on the Ray that this process started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                raylet = _parent(process.name)
                if _parent(raylet) == str(os.getpid()):
                    found.append(int(process.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def _parent(pid: str) -> str:
    """The process that started another."""
    return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that other processes do."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_the_reader(path: Path) -> None:
    """Kills the process of the actor that has a file open, as a machine that fails does."""
    pids: list[int] = []

    def is_found() -> bool:
        pids.extend(pid for pid in workers() if _has_open(pid, path))
        return bool(pids)

    wait_until(is_found)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: pids[0] not in workers())


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):  # it ended meanwhile
        for descriptor in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                if descriptor.readlink() == path:
                    return True
    return False
