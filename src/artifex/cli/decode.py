"""`artifex decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifex.cli.options import AsJson, BatchSize, Devices, Dtype, Model, PicturesOut, Resume


def decode(
    model: Model,
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A .npy or .npz array.", show_default=False)
    ],
    output: PicturesOut = "decoded.png",
    batch_size: BatchSize = None,
    devices: Devices = None,
    dtype: Dtype = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Decode latents to pictures."""
    from artifex.cli.outputs import open_output
    from artifex.cli.run import job_of, open_pipeline, picture_shape, report, run
    from artifex.generative_models.inference.offline.sources import open_array

    pipeline = open_pipeline(model, batch_size, devices, dtype)
    inputs, _ = pipeline.executor.spec("decode")
    rows = open_array(latents, inputs["z"].shape)
    job = job_of("decode", "decode", pipeline, dtype, latents=rows.identity())
    shape = (len(rows), *picture_shape(pipeline, "decode"))
    with open_output(output, shape, job=job, resume=resume) as out:
        facts = run(pipeline, "decode", pipeline.decode_chunks(rows.rows(out.rows_done)), out)
    report({**facts, "model": model}, "picture", as_json)
