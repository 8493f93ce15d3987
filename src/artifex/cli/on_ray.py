"""What the commands that can run on Ray have in common; nothing of Ray is imported for those that do not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import typer

from artifex.cli.options import Engine
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


def jobs_on_ray() -> ModuleType:
    """The functions that run jobs on Ray.

    Raises:
        InputError: What they need is not installed.
    """
    try:
        from artifex.ray import datasets as ray
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    return ray


def server_on_ray() -> ModuleType:
    """The functions that serve on Ray.

    Raises:
        InputError: What they need is not installed.
    """
    try:
        from artifex.ray import replicas as ray_serve
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    return ray_serve


def not_installed(error: ModuleNotFoundError) -> Exception:
    """What to say of a module that was not found: a bug of ours is left as it is."""
    if (error.name or "").startswith("artifex"):
        return error
    return InputError(f"{error.name} is not installed: pip install 'artifex[ray]'")


def report_on_ray(facts: dict[str, Any], noun: str, as_json: bool) -> None:
    """Says on stdout what a job did: one line of JSON, or one for people, with a noun for a row."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    resumed = f"from {facts['resumed_at']:,} on; " if facts["resumed_at"] else ""
    speed = f"{facts['seconds']:.2f} s, {facts['rows_per_second']:,.0f}/s"
    rows = f"{facts['rows']:,} {noun}{'' if facts['rows'] == 1 else 's'}"
    actors = f"{facts['num_actors']} process{'' if facts['num_actors'] == 1 else 'es'}"
    started = f"after {facts['start_seconds']:.1f} s to start {actors}"
    typer.echo(f"{rows} in {facts['output']} ({resumed}{speed}, {started})")
