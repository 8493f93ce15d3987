"""What the commands that can run on Ray have in common; nothing of Ray is imported for those that do not."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from artifex.cli.failures import needs
from artifex.cli.options import Engine, Scale
from artifex.generative_models.core.errors import InputError


def runs_on_ray(
    engine: Engine, *, num: int | None, cpus: float | None, gpus: float | None, **others: Any
) -> bool:
    """Whether a command is to run on Ray, by its options.

    Args:
        num: Number of processes there; `cpus` and `gpus` are for each.
        **others: Options that do not go with Ray, by name, and their values.

    Raises:
        InputError: Options that do not go together.
    """
    if engine is Engine.local:
        given = {"number of processes": num, "--actor-cpus": cpus, "--actor-gpus": gpus}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"the {name} goes with --engine ray")
        return False
    for name, value in others.items():
        if value not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} does not go with --engine ray; leave it out")
    return True


def refuse_factory(model: str) -> None:
    """Refuses a model that the processes on Ray cannot find.

    Raises:
        InputError: It is `module:factory`.
    """
    from artifex.cli.factories import is_factory  # importing it imports JAX

    if is_factory(model):
        raise InputError(f"{model}: a factory does not go with --engine ray; export its model")


def on_actors(name: str, model: str, scale: Scale) -> Callable[..., dict[str, Any]] | None:
    """A function of `artifex.ray` that runs a job as a command's options say; None where it runs here.

    Raises:
        InputError: Options that do not go together, a factory as the model, or what the function needs is
            not installed.
    """
    if not runs_on_ray(
        scale.engine,
        num=scale.actors,
        cpus=scale.actor_cpus,
        gpus=scale.actor_gpus,
        devices=scale.devices,
        coordinator=scale.coordinator,
    ):
        return None
    from artifex import ray

    refuse_factory(model)
    with needs("ray"):
        function = getattr(ray, name)
    return functools.partial(
        function,
        model,
        batch_size=scale.batch_size,
        dtype=None if scale.dtype is None else scale.dtype.value,
        num_actors=scale.actors or 1,
        num_cpus=1.0 if scale.actor_cpus is None else scale.actor_cpus,
        num_gpus=scale.actor_gpus or 0.0,
        address=scale.ray_address,
        resume=scale.resume,
        progress=sys.stderr.isatty(),
    )
