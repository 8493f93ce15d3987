"""Arguments and options that several commands take."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

_WORDS = re.compile(r"""[^\s,"\[\]{}]+(,[^\s,"\[\]{}]+)+""")  # a list, unlike "a cat, asleep"


class ComputeDtype(StrEnum):
    """Dtypes of the computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Engine(StrEnum):
    """What runs a job: this process, or Ray."""

    local = "local"
    ray = "ray"


class DirectoryFormat(StrEnum):
    """Whose directories: ours, or those of diffusers."""

    artifex = "artifex"
    diffusers = "diffusers"


def _device_count(value: str | None) -> str | None:
    if value is None or value == "all" or (value.isdecimal() and int(value) > 0):
        return value
    raise typer.BadParameter(f"expected a number from 1, or all; got {value!r}")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A bundled model, a model's directory, or module:factory.", show_default=False
    ),
]
Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGES",
        help="Folders, picture files, Parquet files, or one .npy or .npz array.",
        show_default=False,
    ),
]
PictureScale = Annotated[
    int | None,
    typer.Option("--scale", min=1, max=64, help="Size of a pixel in a .png grid; chosen if left out."),
]
Column = Annotated[str, typer.Option(help="Column of Parquet files that holds the pictures.")]
PicturesOut = Annotated[
    str, typer.Option("--output", "-o", help="A .png grid, a .npy array, or a folder of PNGs.")
]
ArrayOut = Annotated[str, typer.Option("--output", "-o", help="A .npy array.")]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="An input or option of the model, such as label=3."),
]
Resize = Annotated[bool, typer.Option("--resize", help="Resize pictures to the model's size.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Sample i depends on the seed and i alone.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows a batch; what artifex tune found, or 64, if left out.")
]
Devices = Annotated[
    str | None,
    typer.Option(callback=_device_count, metavar="N|all", help="Devices to spread a batch over."),
]
Dtype = Annotated[ComputeDtype | None, typer.Option(help="Dtype to compute in.")]
Variant = Annotated[str | None, typer.Option(help="Of the weights of a diffusers directory, such as fp16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
RunsOn = Annotated[Engine, typer.Option("--engine", help="This process, or Ray: many, on many machines.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS", metavar="HOST:PORT", help="Ray cluster to join; else Ray is started here."
    ),
]
ActorCpus = Annotated[float | None, typer.Option(min=0, help="Cores for each process on Ray; 1 if left out.")]
ActorGpus = Annotated[
    float | None, typer.Option(min=0, help="GPUs for each process on Ray, such as 0.5; none if left out.")
]


@dataclass(frozen=True)
class Batches:
    """Options of the commands that put rows through a model."""

    batch_size: BatchSize = None
    devices: Devices = None
    dtype: Dtype = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a .npy output that was stopped.")] = (
        False
    )


@dataclass(frozen=True)
class Scale(Batches):
    """Options of those that also run as one of several processes, or on Ray."""

    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="Be one of several processes: where process 0 listens; auto where SLURM or Kubernetes says.",
        ),
    ] = None
    num_processes: Annotated[int | None, typer.Option(min=1, help="How many processes there are.")] = None
    process_id: Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.")] = None
    join_timeout: Annotated[float, typer.Option(min=1, help="Seconds for all processes to come.")] = 120.0
    engine: RunsOn = Engine.local
    ray_address: RayAddress = None
    actors: Annotated[int | None, typer.Option(min=1, help="Processes on Ray; 1 if left out.")] = None
    actor_cpus: ActorCpus = None
    actor_gpus: ActorGpus = None


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Has a command take the fields of its dataclass parameters one by one, as typer wants options."""
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += inspect.signature(kind, eval_str=True).parameters.values()
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields(group)})
        command(**options)

    flat: Any = run
    flat.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])
    return run


def setting(text: str, options: Collection[str] = ("seed", "num_samples")) -> tuple[str, Any]:
    """A name and its value: JSON, words with commas between them as a list of those, or else a string.

    Args:
        text: Both, with "=" between them.
        options: Names of which the command has options of its own.
    """
    from artifex.generative_models.core.errors import InputError

    name, equals, value = text.partition("=")
    if name in options:
        raise InputError(f"--set {text}: --{name.replace('_', '-')} is an option of its own")
    if not equals or not name.isidentifier():
        raise InputError(f"--set {text}: expected NAME=VALUE, such as label=3")
    if _WORDS.fullmatch(value):
        return name, [_plain(word) for word in value.split(",")]
    return name, _plain(value)


def as_written(chosen: Mapping[str, Any], settings: Sequence[str], texts: Collection[str]) -> dict[str, Any]:
    """What `setting` made of settings; but texts stay as they were written, unless they are JSON."""
    written = dict(text.partition("=")[::2] for text in settings)
    plain = [name for name in texts if name in written and written[name][:1] not in ("[", '"')]
    return {**chosen, **{name: written[name] for name in plain}}


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
