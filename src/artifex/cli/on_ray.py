"""What the commands that can run on Ray have in common; nothing of Ray is imported for those that do not."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from artifex.cli.failures import needs
from artifex.cli.options import Engine, Scale
from artifex.generative_models.core.errors import InputError


@dataclass(frozen=True)
class Processes:
    """Processes on Ray.

    Args:
        num: How many; None is for the command to say.
        cpus: Cores for each.
        gpus: GPUs for each.
        address: Of a cluster.
    """

    num: int | None
    cpus: float
    gpus: float
    address: str | None


def processes_on_ray(
    engine: Engine,
    *,
    num: int | None,
    cpus: float | None,
    gpus: float | None,
    address: str | None,
    **others: Any,
) -> Processes | None:
    """The processes of a command's options; None where it runs here.

    Args:
        engine: What it runs on.
        num: Option.
        cpus: Option.
        gpus: Option.
        address: Option, which `$RAY_ADDRESS` may have set.
        **others: Options that do not go with Ray, by name, and their values.

    Raises:
        InputError: Options that do not go together.
    """
    if engine is Engine.local:
        given = {"number of processes": num, "--actor-cpus": cpus, "--actor-gpus": gpus}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"the {name} goes with --engine ray")
        return None
    for name, value in others.items():
        if value not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} does not go with --engine ray; leave it out")
    return Processes(num, 1.0 if cpus is None else cpus, gpus or 0.0, address)


def on_actors(name: str, scale: Scale) -> Callable[..., dict[str, Any]] | None:
    """A function of `artifex.ray` that runs a job as a command's options say; None where it runs here.

    Args:
        name: Of the function.
        scale: Options of the command.

    Raises:
        InputError: Options that do not go together, or what the function needs is not installed.
    """
    processes = processes_on_ray(
        scale.engine,
        num=scale.actors,
        cpus=scale.actor_cpus,
        gpus=scale.actor_gpus,
        address=scale.ray_address,
        devices=scale.devices,
        coordinator=scale.coordinator,
    )
    if processes is None:
        return None
    from artifex import ray

    with needs("ray"):
        function = getattr(ray, name)
    return functools.partial(
        function,
        batch_size=scale.batch_size,
        dtype=None if scale.dtype is None else scale.dtype.value,
        num_actors=processes.num or 1,
        num_cpus=processes.cpus,
        num_gpus=processes.gpus,
        address=processes.address,
        resume=scale.resume,
        progress=sys.stderr.isatty(),
    )
