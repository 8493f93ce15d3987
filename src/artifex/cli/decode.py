"""`artifex decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifex.cli.options import AsJson, Batches, Model, PictureScale, PicturesOut, takes_groups


@takes_groups
def decode(
    model: Model,
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A .npy or .npz array.", show_default=False)
    ],
    output: PicturesOut = "decoded.png",
    *,
    picture_scale: PictureScale = None,
    batches: Batches,
    as_json: AsJson = False,
) -> None:
    """Decode latents to pictures."""
    from artifex.cli.run import (
        Job,
        input_shape,
        open_pipeline,
        picture_shape,
        report,
        run,
        sizes_of,
    )
    from artifex.generative_models.inference.offline.latents import decoded_name
    from artifex.generative_models.inference.offline.sources import open_array

    pipeline = open_pipeline(model, batches)
    taken = decoded_name(pipeline.executor)
    dtype = pipeline.executor.endpoints["decode"].inputs[taken].dtype
    rows = open_array(latents, input_shape(pipeline, "decode", taken), dtype)
    options = sizes_of(pipeline, "decode", taken, rows.array.shape[1:])
    shape = (len(rows), *picture_shape(pipeline, "decode", **options))
    job = Job(
        "decode",
        shape,
        lambda wanted: pipeline.decode_chunks(rows.rows(wanted.start, wanted.stop)),
        {"latents": rows.identity()},
        dtype=pipeline.picture_dtype("decode"),
        options=options,
    )
    facts = run(pipeline, job, output, batches, scale=picture_scale)
    report({**facts, "model": model}, "picture", as_json)
