"""`artifex encode`."""

from __future__ import annotations

from artifex.cli.options import ArrayOut, AsJson, BatchSize, Devices, Dtype, Images, Model, Resize, Resume


def encode(
    model: Model,
    images: Images,
    output: ArrayOut = "latents.npy",
    resize: Resize = False,
    batch_size: BatchSize = None,
    devices: Devices = None,
    dtype: Dtype = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Encode pictures to the means of their posteriors."""
    from artifex.cli.jobs import job_of, open_pipeline, report, run
    from artifex.cli.sources import open_pictures
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.inference.npy import NpyWriter

    if not output.lower().endswith(".npy"):
        raise InputError(f"{output}: latents go to a .npy array; give a name that ends so")
    pipeline = open_pipeline(model, batch_size, devices, dtype)
    inputs, outputs = pipeline.executor.spec("encode")
    pictures = open_pictures(images, inputs["x"].shape, resize=resize)
    latent = outputs["mean"]
    job = job_of("encode", "encode", pipeline, dtype, images=pictures.identity())
    with NpyWriter(output, (len(pictures), *latent.shape), latent.dtype, job=job, resume=resume) as out:
        facts = run(pipeline, "encode", pipeline.encode_chunks(pictures.rows(out.rows_done)), out)
    report({**facts, "model": model}, "latent", as_json)
