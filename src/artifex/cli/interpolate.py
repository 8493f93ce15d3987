"""`artifex interpolate`."""

from __future__ import annotations

from typing import Annotated

import typer

from artifex.cli.options import AsJson, Batches, Devices, Dtype, Model, PictureScale, PicturesOut, Resize

_HELP = "A picture file, or a row of an array: digits.npz:3."


def interpolate(
    model: Model,
    start: Annotated[str, typer.Argument(metavar="START", help=_HELP, show_default=False)],
    end: Annotated[str, typer.Argument(metavar="END", help=_HELP, show_default=False)],
    steps: Annotated[int, typer.Option(min=2, help="Pictures in all, both ends included.")] = 8,
    output: PicturesOut = "interpolation.png",
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
        lambda _: iter([np.asarray(pipeline.interpolate(first, last, steps))]),
        {"command": "interpolate"},
    )
    facts = run(pipeline, job, output, batches, columns=steps, scale=picture_scale)
    report({**facts, "model": model}, "picture", as_json)
