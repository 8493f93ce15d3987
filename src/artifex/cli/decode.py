"""`artifex decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifex.cli.options import AsJson, Batches, Model, PictureScale, PicturesOut, Settings, takes_groups


@takes_groups
def decode(
    model: Model,
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A .npy or .npz array.", show_default=False)
    ],
    output: PicturesOut = "decoded.png",
    *,
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
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
        said_of_all,
        sizes_of,
    )
    from artifex.generative_models.inference.offline.latents import decoded_name
    from artifex.generative_models.inference.offline.sources import open_array

    pipeline = open_pipeline(model, batches)
    given = said_of_all(pipeline, "decode", settings)
    taken = decoded_name(pipeline.executor)
    dtype = pipeline.executor.endpoints["decode"].inputs[taken].dtype
    rows = open_array(latents, input_shape(pipeline, "decode", taken), dtype)
    options = sizes_of(pipeline, "decode", taken, rows.array.shape[1:])
    shape = (len(rows), *picture_shape(pipeline, "decode", **options))
    job = Job(
        "decode",
        shape,
        lambda wanted: pipeline.decode_chunks(rows.rows(wanted.start, wanted.stop), given),
        {"latents": rows.identity(), **({"set": given} if given else {})},
        dtype=pipeline.picture_dtype("decode"),
        options=options,
    )
    facts = run(pipeline, job, output, batches, scale=picture_scale)
    report({**facts, "model": model}, "picture", as_json)
