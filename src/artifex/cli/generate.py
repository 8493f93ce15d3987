"""`artifex generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from artifex.cli.options import AsJson, BatchSize, Devices, Dtype, Model, PicturesOut, Resume, Seed


def generate(
    model: Model,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="How many.")] = 64,
    output: PicturesOut = "samples.png",
    seed: Seed = 0,
    temperature: Annotated[
        float, typer.Option(min=0, help="Spread of the prior; 1 is the model's own.")
    ] = 1.0,
    batch_size: BatchSize = None,
    devices: Devices = None,
    dtype: Dtype = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples."""
    from artifex.cli.jobs import job_of, open_pipeline, picture_shape, report, run
    from artifex.cli.outputs import open_output
    from artifex.generative_models.core.endpoint import sample_key

    pipeline = open_pipeline(model, batch_size, devices, dtype)
    job = job_of("generate", "generate", pipeline, dtype, seed=seed, temperature=temperature)
    shape = (num_samples, *picture_shape(pipeline, "generate"))
    with open_output(output, shape, job=job, resume=resume) as out:
        chunks = pipeline.generate_chunks(
            num_samples, key=sample_key(seed), temperature=temperature, first_row=out.rows_done
        )
        facts = run(pipeline, "generate", chunks, out)
    report({**facts, "model": model, "seed": seed, "temperature": temperature}, "sample", as_json)
