"""Several processes, on one machine or on many, as one job: JAX's own runtime, joined without surprises.

JAX ends a process that finds no coordinator, or that another contradicts, without an exception. So before
JAX connects them the processes call a roll at the coordinator's address, and what is wrong becomes an error
that says so.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import jax
import numpy as np

from artifex.generative_models.core.errors import ArtifexError, InputError, LostProcessError

_RETRY_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0  # with one that has connected
_LINE_BYTES = 4096

Result = TypeVar("Result")


def join_processes(
    coordinator: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 120.0,
) -> None:
    """Makes this process one of several that run one job; the first thing to do with JAX.

    All of them call it. Afterwards `jax.devices()` are those of all, and a mesh of them has every process
    feed and receive its own rows.

    Args:
        coordinator: `host:port` of process 0, which listens there; or "auto", where SLURM, Kubernetes, MPI or
            a TPU pod tells JAX all it needs.
        num_processes: How many there are, from 1.
        process_id: Which one this is, from 0.
        timeout: Seconds for all to come.

    Raises:
        InputError: An address that is none, numbers that do not fit, or a number of processes that others
            contradict.
        ArtifexError: The coordinator cannot be reached, or some did not come, within the timeout.
        OSError: Process 0 cannot listen at the address.
    """
    if coordinator == "auto":
        try:
            _initialize(None, None, None, timeout)
        except ValueError as error:
            raise InputError(f"coordinator: found no cluster ({error}); give HOST:PORT") from error
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"coordinator: expected HOST:PORT or auto, got {coordinator!r}")
    if num_processes is None or process_id is None:
        raise InputError("coordinator: give the number of processes and this one's, from 0, as well")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"process_id: expected 0 to {num_processes - 1}, of {num_processes} processes; got {process_id}"
        )
    address = (host.strip("[]"), int(port))
    deadline = time.monotonic() + timeout
    if process_id == 0:
        _call_roll(address, num_processes, deadline)
    else:
        _answer_roll(address, num_processes, process_id, deadline)
    _initialize(coordinator, num_processes, process_id, timeout)


def all_of(told: Any) -> list[Any]:
    """What every process of the job told, in order, as JSON takes it; each calls this at the same point."""
    if jax.process_count() == 1:
        return [told]
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(exchange(np.asarray([len(text)], np.int32)).max())
    heard = exchange(np.pad(text, (0, size - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(row)) for row in heard]


def exchange(numbers: np.ndarray) -> np.ndarray:
    """The numbers of every process [processes, ...], which are equally many in each.

    Raises:
        LostProcessError: A process has gone.
    """
    from jax.experimental import multihost_utils  # which imports much else

    try:
        return np.asarray(multihost_utils.process_allgather(numbers))
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # whichever of JAX's paths it goes
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"another process of the job has gone, and may say why: {reason}") from error


def whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, wherever its parts are; each process that has some calls this."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def together(do: Callable[[], Result]) -> Result:
    """Does something in every process; where it fails in one, it fails in all, and none waits for another.

    Raises:
        ArtifexError: It failed in another process.
    """
    if jax.process_count() == 1:
        return do()
    try:
        result = do()
    except LostProcessError:
        raise  # there is nobody to tell
    except BaseException as error:
        all_of(f"{type(error).__name__}: {error}")
        raise
    failures = [f"process {i}: {told}" for i, told in enumerate(all_of(None)) if told is not None]
    if failures:
        raise ArtifexError(f"another process failed; {'; '.join(failures)}")
    return result


def _initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> None:
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=max(1, int(timeout))
        )
    except RuntimeError as error:  # joined already, or JAX has looked for devices
        raise InputError(f"coordinator: join before anything else that JAX does ({error})") from error


def _call_roll(address: tuple[str, int], num_processes: int, deadline: float) -> None:
    """Waits for all processes and tells each whether all fits."""
    missing = set(range(1, num_processes))
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(address))
        callers = []
        problem: ArtifexError | None = None
        while missing and problem is None:
            listener.settimeout(_left(deadline))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                absent = ", ".join(map(str, sorted(missing)))
                problem = ArtifexError(f"processes {absent} of {num_processes} did not come in time")
                break
            stack.enter_context(connection)
            said = _read(connection, time.monotonic() + _PATIENCE_SECONDS)
            if said is None or set(map(type, said.values())) != {int}:
                continue  # a stranger
            callers.append(connection)
            problem = _contradiction(said, num_processes, missing)
            missing.discard(said["process_id"])
        for connection in callers:
            _say(connection, {"problem": problem and str(problem)})
    if problem is not None:
        raise problem


def _answer_roll(address: tuple[str, int], num_processes: int, process_id: int, deadline: float) -> None:
    """Tells process 0 of this one and hears whether all fits."""
    while True:
        try:
            connection = socket.create_connection(address, timeout=_left(deadline))
            break
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS >= deadline:
                raise ArtifexError(
                    f"coordinator: nobody at {address[0]}:{address[1]} ({error}); is process 0 running there?"
                ) from error
            time.sleep(_RETRY_SECONDS)
    with connection:
        _say(connection, {"num_processes": num_processes, "process_id": process_id})
        heard = _read(connection, deadline + _PATIENCE_SECONDS)
    if heard is None:
        raise ArtifexError(f"coordinator: process 0 at {address[0]}:{address[1]} gave no answer and says why")
    if heard["problem"] is not None:
        raise InputError(heard["problem"])


def _contradiction(said: dict[str, int], num_processes: int, missing: set[int]) -> InputError | None:
    if said["num_processes"] != num_processes:
        return InputError(
            f"num_processes: process {said['process_id']} says {said['num_processes']}, "
            f"process 0 says {num_processes}"
        )
    if said["process_id"] not in missing:
        return InputError(f"process_id: two processes say that they are {said['process_id']}")
    return None


def _listen(address: tuple[str, int]) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", address[1]), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", address[1]))
    except OSError as error:
        error.filename = f"{address[0]}:{address[1]}"
        raise


def _say(connection: socket.socket, what: dict[str, Any]) -> None:
    connection.sendall(json.dumps(what).encode() + b"\n")


def _read(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One line of JSON; None from whoever does not speak so, or leaves."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LINE_BYTES:
            connection.settimeout(_left(deadline))
            part = connection.recv(_LINE_BYTES)
            if not part:
                return None
            line += part
        said = json.loads(line)
    except (OSError, ValueError):
        return None
    keys: Sequence[set[str]] = ({"num_processes", "process_id"}, {"problem"})
    return said if isinstance(said, dict) and set(said) in keys else None


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())
