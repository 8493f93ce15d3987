"""`artifex interpolate`."""

from __future__ import annotations

from typing import Annotated

import typer

from artifex.cli.options import AsJson, Devices, Dtype, Model, PicturesOut, Resize

_HELP = "A picture file, or a row of an array: digits.npz:3."


def interpolate(
    model: Model,
    start: Annotated[str, typer.Argument(metavar="START", help=_HELP, show_default=False)],
    end: Annotated[str, typer.Argument(metavar="END", help=_HELP, show_default=False)],
    steps: Annotated[int, typer.Option(min=2, help="Pictures in all, both ends included.")] = 8,
    output: PicturesOut = "interpolation.png",
    resize: Resize = False,
    devices: Devices = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Walk the straight line between two pictures' latents."""
    import numpy as np

    from artifex.cli.outputs import open_output
    from artifex.cli.run import job_of, open_pipeline, report, run
    from artifex.generative_models.inference.offline.sources import open_picture

    pipeline = open_pipeline(model, steps, devices, dtype)
    inputs, _ = pipeline.executor.spec("encode")
    shape = inputs["x"].shape
    ends = [open_picture(address, shape, resize=resize) for address in (start, end)]
    first, last = (pipeline.preprocess_fn(picture) for picture in ends)
    job = job_of("interpolate", "decode", pipeline, dtype)
    with open_output(output, (steps, *shape), job=job, columns=steps) as out:
        line = (np.asarray(pipeline.interpolate(first, last, steps)) for _ in range(1))
        facts = run(pipeline, "decode", line, out)
    report({**facts, "model": model}, "picture", as_json)
