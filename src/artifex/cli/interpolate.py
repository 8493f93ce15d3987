"""`artifex interpolate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from artifex.cli.options import (
    AsJson,
    Batches,
    Devices,
    Dtype,
    Model,
    PictureScale,
    PicturesOut,
    Resize,
    Settings,
    setting,
)

_HELP = "A picture file, or a row of an array: digits.npz:3."


class Mode(StrEnum):
    """Which way from one latent to the other."""

    linear = "linear"
    spherical = "spherical"


def interpolate(
    model: Model,
    start: Annotated[str, typer.Argument(metavar="START", help=_HELP, show_default=False)],
    end: Annotated[str, typer.Argument(metavar="END", help=_HELP, show_default=False)],
    steps: Annotated[int, typer.Option(min=2, help="Pictures in all, both ends included.")] = 8,
    mode: Annotated[
        Mode | None,
        typer.Option(help="On the line between latents, or on the arc; the model's own if left out."),
    ] = None,
    output: PicturesOut = "interpolation.png",
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
    resize: Resize = False,
    picture_scale: PictureScale = None,
    devices: Devices = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Walk from one picture to another, between their latents."""
    import numpy as np

    from artifex.cli.run import Job, input_shape, open_pipeline, report, run
    from artifex.generative_models.inference.offline.sources import open_picture

    batches = Batches(steps, devices, dtype)
    way, given = None if mode is None else mode.value, dict(map(setting, settings))
    pipeline = open_pipeline(model, batches)
    takes_pictures, gives_pictures = "encode", "decode"
    if "interpolate" in pipeline.executor.endpoints:
        takes_pictures = gives_pictures = "interpolate"
    taken = input_shape(pipeline, takes_pictures, "x")
    if resize:
        taken = pipeline.executor.spec(takes_pictures)[0]["x"].shape
    first = open_picture(start, taken, resize=resize)
    ends = [first, open_picture(end, first.shape, resize=resize)]
    first, last = (pipeline.preprocess_fn(picture) for picture in ends)
    job = Job(
        gives_pictures,
        (steps, *ends[0].shape),
        lambda _: iter([np.asarray(pipeline.interpolate(first, last, steps, way, **given))]),
        {"command": "interpolate"},
    )
    facts = run(pipeline, job, output, batches, columns=steps, scale=picture_scale)
    report({**facts, "model": model}, "picture", as_json)
