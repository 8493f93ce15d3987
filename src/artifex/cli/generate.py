"""`artifex generate`."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from artifex.cli.options import AsJson, Model, PicturesOut, Scale, Seed, takes_groups


@takes_groups
def generate(
    model: Model,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="How many.")] = 64,
    output: PicturesOut = "samples.png",
    seed: Seed = 0,
    temperature: Annotated[
        float, typer.Option(min=0, help="Spread of the prior; 1 is the model's own.")
    ] = 1.0,
    *,
    scale: Scale,
    as_json: AsJson = False,
) -> None:
    """Draw samples."""
    from artifex.cli.multiprocess import join, run_job
    from artifex.cli.on_ray import on_actors
    from artifex.cli.run import Job, open_pipeline, picture_shape, report
    from artifex.generative_models.core.keys import sample_key

    given = {"seed": seed, "temperature": temperature}
    if on_ray := on_actors("generate_dataset", scale):
        facts = on_ray(model, num_samples, output, seed=seed, temperature=temperature)
        report({**facts, "model": model, **given}, "sample", as_json)
        return
    join(scale, model, output)
    pipeline = open_pipeline(model, scale)
    key = sample_key(seed)
    draw = functools.partial(pipeline.generate_chunks, key=key, temperature=temperature)
    shape = (num_samples, *picture_shape(pipeline, "generate"))
    job = Job("generate", shape, lambda rows: draw(rows.stop, first_row=rows.start), given, key=key)
    facts = run_job(pipeline, job, output, scale)
    report({**facts, "model": model, **given}, "sample", as_json)
