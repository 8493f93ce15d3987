"""How processes join; every way in which they cannot is an error in each of them, in the time given."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import pytest
from several import free_address
from shared import TIMEOUT

from artifex.generative_models.core import processes
from artifex.generative_models.core.errors import ArtifexError, InputError
from artifex.generative_models.core.processes import all_of, join_processes, together


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What reaches JAX, in place of joining this process, which cannot be undone."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    return calls


def outcomes(*jobs: tuple[str, int, int], timeout: float = TIMEOUT) -> list[ArtifexError | None]:
    """What becomes of processes that join at the same time."""

    def join(job: tuple[str, int, int]) -> ArtifexError | None:
        try:
            join_processes(*job, timeout=timeout)
        except ArtifexError as error:
            return error
        return None

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(join, jobs))


def test_all_that_come_are_joined(joined):
    at = free_address()
    assert outcomes(*((at, 3, i) for i in range(3))) == [None] * 3
    assert sorted(joined) == [(at, 3, i) for i in range(3)]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(3, 1)], "num_processes: process 1 says 3, process 0 says 2"),
        ([(3, 1), (3, 1)], "process_id: two processes say that they are 1"),
    ],
)
def test_processes_that_contradict_each_other(others, message, joined):
    at = free_address()
    errors = outcomes((at, 1 + len(others), 0), *((at, count, number) for count, number in others))
    assert {str(error) for error in errors} == {message}
    assert all(isinstance(error, InputError) for error in errors)
    assert joined == []


def test_one_that_does_not_come(joined):
    at = free_address()
    errors = outcomes((at, 4, 0), (at, 4, 2), timeout=3)
    assert {str(error) for error in errors} == {"processes 1, 3 of 4 did not come in time"}
    assert joined == []


def test_nobody_at_the_address(joined):
    at = free_address()
    (error,) = outcomes((at, 2, 1), timeout=0.3)
    assert str(error).startswith(f"coordinator: nobody at {at} (")
    assert joined == []


def test_an_address_that_is_taken(joined):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as caught:
            join_processes(address, 2, 0, timeout=TIMEOUT)
    assert caught.value.filename == address


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"num_processes": "2"}\n', b"\xff" * 9000]
)
def test_a_stranger_at_the_address_is_nobody(said, joined, monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 0.2)
    at = free_address()
    host, port = at.split(":")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(join_processes, at, 2, 0, timeout=TIMEOUT)
        stranger = None
        while stranger is None:
            try:
                stranger = socket.create_connection((host, int(port)))
            except ConnectionRefusedError:  # it does not listen yet
                continue
        with stranger:
            stranger.sendall(said)
            pool.submit(join_processes, at, 2, 1, timeout=TIMEOUT).result()
            first.result()
    assert len(joined) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", 2, 1), "coordinator: expected HOST:PORT or auto, got 'nowhere'"),
        (("host:port", 2, 1), "expected HOST:PORT or auto"),
        (("host:70000", 2, 1), "expected HOST:PORT or auto"),
        ((":80", 2, 1), "expected HOST:PORT or auto"),
        (("host:80",), "give the number of processes and this one's"),
        (("host:80", 2), "give the number of processes and this one's"),
        (("host:80", 2, 2), "process_id: expected 0 to 1, of 2 processes; got 2"),
        (("host:80", 2, -1), "process_id: expected 0 to 1"),
        (("host:80", 0, 0), "process_id: expected 0 to -1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, joined):
    with pytest.raises(InputError, match=message):
        join_processes(*arguments)
    assert joined == []


@pytest.mark.parametrize("arguments", [("auto",), ("", 1, 0)])
def test_a_process_that_has_begun_alone(arguments):
    assert jax.process_count() == 1
    address, *numbers = arguments
    with pytest.raises(InputError, match="coordinator: join before anything else that JAX does"):
        join_processes(free_address() if numbers else address, *numbers)


def test_a_process_alone_hears_itself():
    assert all_of({"a": 1}) == [{"a": 1}]
    assert together(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 // 0)
