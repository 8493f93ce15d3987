"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ComputeDtype(StrEnum):
    """Dtypes of the computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Engine(StrEnum):
    """What runs a job: this process, or Ray."""

    local = "local"
    ray = "ray"


def _device_count(value: str | None) -> str | None:
    if value is None or value == "all" or (value.isdecimal() and int(value) > 0):
        return value
    raise typer.BadParameter(f"expected a number from 1, or all; got {value!r}")


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A bundled model or an export directory.", show_default=False)
]
Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGES", help="Folders, picture files, or one .npy or .npz array.", show_default=False
    ),
]
PicturesOut = Annotated[
    str, typer.Option("--output", "-o", help="A .png grid, a .npy array, or a folder of PNGs.")
]
ArrayOut = Annotated[str, typer.Option("--output", "-o", help="A .npy array.")]
Resize = Annotated[bool, typer.Option("--resize", help="Resize pictures to the model's size.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a .npy output that was stopped.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Sample i depends on the seed and i alone.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows a batch; what artifex tune found, or 64, if left out.")
]
Devices = Annotated[
    str | None,
    typer.Option(callback=_device_count, metavar="N|all", help="Devices to spread a batch over."),
]
Dtype = Annotated[ComputeDtype | None, typer.Option(help="Dtype to compute in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="Be one of several processes: where process 0 listens; auto where SLURM or Kubernetes says.",
    ),
]
NumProcesses = Annotated[int | None, typer.Option(min=1, help="How many processes there are.")]
ProcessId = Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.")]
JoinTimeout = Annotated[float, typer.Option(min=1, help="Seconds for all processes to come.")]
RunsOn = Annotated[Engine, typer.Option("--engine", help="This process, or Ray: many, on many machines.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS", metavar="HOST:PORT", help="Ray cluster to join; else Ray is started here."
    ),
]
NumActors = Annotated[int | None, typer.Option("--actors", min=1, help="Processes on Ray; 1 if left out.")]
ActorCpus = Annotated[float | None, typer.Option(min=0, help="Cores for each process on Ray; 1 if left out.")]
ActorGpus = Annotated[
    float | None, typer.Option(min=0, help="GPUs for each process on Ray, such as 0.5; none if left out.")
]
