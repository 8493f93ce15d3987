"""Ray, joined where it runs, or started here for as long as it is needed."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from os import PathLike
from types import ModuleType

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.formats.loading import bundled_models, find_model

REACH_SECONDS = 10.0  # in which an address must answer
_OBJECT_STORE_BYTES = 128 << 20  # of a Ray of our own; what goes through it is numbers of rows

_REMEDY = "give HOST:PORT of the head node, as `ray start` prints it, or none to start Ray here"


def import_ray(part: str | None = None) -> ModuleType:
    """Ray, or a part of it, each of which takes seconds to import.

    Args:
        part: "data" or "serve".

    Raises:
        InputError: It is not installed.
    """
    # Else a Ray that is started here tells its makers over the network, and users of its own troubles.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        return importlib.import_module("ray" if part is None else f"ray.{part}")
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'artifex[ray]'") from error


@contextlib.contextmanager
def joined(address: str | None = None) -> Iterator[bool]:
    """Joins a Ray for the length of the block; starts one here where none is there, and ends it then.

    A process that is connected already stays so.

    Args:
        address: `HOST:PORT` of a cluster's head, "auto" for the one that runs on this machine, or "local"
            to start one. None is what `$RAY_ADDRESS` says, or the one on this machine, or else a new one.

    Yields:
        Whether the Ray was started here.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """
    ray = import_ray()
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted is not None and wanted not in ("auto", "local"):
        _check(wanted)
    if ray.is_initialized():
        yield False
        return
    started = not _join(ray, wanted or "auto", must=wanted is not None)
    try:
        yield started
    finally:
        ray.shutdown()


def require(ray: ModuleType, started: bool, num: int, num_cpus: float, num_gpus: float) -> None:
    """Checks that actors fit a Ray that was started here; a cluster may grow.

    Raises:
        InputError: They do not.
    """
    for name, each in (("CPU", num_cpus), ("GPU", num_gpus)):
        if not math.isfinite(each) or each < 0:
            raise InputError(f"num_{name.lower()}s: expected a number from 0, got {each}")
        there = ray.cluster_resources().get(name, 0)
        if started and num * each > there:
            raise InputError(
                f"{num} of {each:g} {name}s each do not fit the {there:g} of this machine; "
                f"ask for fewer or for less, or join a cluster with its address"
            )


def name_everywhere(model: str | PathLike[str]) -> str:
    """A model's name for all machines: a bundled one's is the same everywhere, a path is not relative.

    Raises:
        ConfigError: There is no such model.
    """
    return str(model) if str(model) in bundled_models() else str(find_model(model).absolute())


def _join(ray: ModuleType, address: str, *, must: bool) -> bool:
    """Joins a cluster; where there need not be one, starts a Ray instead and returns False."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        if address != "auto":
            _reach(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if "version mismatch" in str(error).lower():
                versions = " ".join(str(error).split())
                raise InputError(f"the Ray at {address} is of another version: {versions}") from error
            if must:
                raise InputError(f"no Ray answers at {address}; {_REMEDY}") from error
        else:
            return True
    num_cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **quiet,
    )
    return False


def _check(address: str) -> None:
    _, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        raise InputError(f"{address}: expected HOST:PORT, auto or local; {_REMEDY}")


def _reach(address: str) -> None:
    """Looks whether something that may be a Ray answers, which `ray.init` would do for minutes."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=REACH_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise InputError(
                f"no Ray answers at {address} within {REACH_SECONDS:.0f} seconds; {_REMEDY}"
            ) from error
