"""Where there is no Ray, it is said in time."""

import os
import socket

import pytest
from distributed_ray import RAY_WARNS

from artifex.generative_models.core.errors import InputError
from artifex.ray import cluster
from artifex.ray.cluster import import_ray, joined, require

pytestmark = [*RAY_WARNS, pytest.mark.usefixtures("unconnected")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def join(address: str | None) -> None:
    with joined(address):
        raise AssertionError("there is no Ray")


def test_nothing_listens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"no Ray answers at 127\.0\.0\.1:\d+ within.*HOST:PORT"):
        join(f"127.0.0.1:{free_port()}")


def test_what_listens_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(InputError, match="no Ray answers"):
            join(None)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://a:1", "somewhere", "a:b"])
@pytest.mark.parametrize("connected", [False, True])
def test_an_address_that_is_none(address: str, connected: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_ray(), "is_initialized", lambda: connected)
    with pytest.raises(InputError, match="expected HOST:PORT"):
        join(address)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_ray_of_another_version_is_not_passed_over(address: str | None, monkeypatch: pytest.MonkeyPatch):
    def init(**settings: object) -> None:
        cluster, ours = ({"ray_version": v, "python_version": "3.11.0"} for v in ("2.40.0", "2.50.0"))
        raise RuntimeError(f"Version mismatch: The cluster was started with:\n  {cluster}\nThis: {ours}")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(import_ray(), "init", init)
    with pytest.raises(InputError, match=r"of another version: .*2\.40\.0.*2\.50\.0"):
        join(address)


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cluster.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"ray is not installed: pip install 'artifex\[ray\]'"):
        import_ray()


class Full:
    """A Ray of two cores."""

    @staticmethod
    def cluster_resources() -> dict[str, float]:
        return {"CPU": 2.0}


def test_actors_must_fit_a_ray_of_our_own():
    require(Full, True, 2, 1.0, 0.0)
    require(Full, False, 3, 1.0, 1.0)  # a cluster may grow
    with pytest.raises(InputError, match="3 of 1 CPUs each do not fit the 2 of this machine"):
        require(Full, True, 3, 1.0, 0.0)
    with pytest.raises(InputError, match=r"1 of 0\.5 GPUs each do not fit the 0"):
        require(Full, True, 1, 1.0, 0.5)
    with pytest.raises(InputError, match="num_cpus: expected a number from 0, got -1"):
        require(Full, False, 1, -1.0, 0.0)


def test_usage_is_not_told():
    import_ray()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
