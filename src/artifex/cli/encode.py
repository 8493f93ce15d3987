"""`artifex encode`."""

from __future__ import annotations

from artifex.cli.options import ArrayOut, AsJson, Column, Images, Model, Resize, Scale, takes_groups


@takes_groups
def encode(
    model: Model,
    images: Images,
    output: ArrayOut = "latents.npy",
    resize: Resize = False,
    column: Column = "image",
    *,
    scale: Scale,
    as_json: AsJson = False,
) -> None:
    """Encode pictures to the means of their posteriors."""
    from artifex.cli.multiprocess import join, run_job
    from artifex.cli.on_ray import on_actors
    from artifex.cli.run import Job, open_pipeline, report, say_left_out
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.core.processes import together
    from artifex.generative_models.inference.offline.sources import open_pictures

    if on_ray := on_actors("encode_dataset", model, scale):
        facts = on_ray(images, output, resize=resize, column=column)
        say_left_out(facts.pop("left_out", ""))
        report({**facts, "model": model}, "latent", as_json)
        return
    if not output.lower().endswith(".npy"):
        raise InputError(f"{output}: latents go to a .npy array; give a name that ends so")
    join(scale, model, output)
    pipeline = open_pipeline(model, scale)
    inputs, outputs = pipeline.executor.spec("encode")
    pictures = together(lambda: open_pictures(images, inputs["x"].shape, resize=resize, column=column))
    say_left_out(getattr(pictures, "left_out", ""))
    latent = outputs["mean"]
    job = Job(
        "encode",
        (len(pictures), *latent.shape),
        lambda rows: pipeline.encode_chunks(pictures.rows(rows.start, rows.stop)),
        {"images": pictures.identity()},
        dtype=latent.dtype,
        image_dtype=pictures.dtype,
    )
    facts = run_job(pipeline, job, output, scale)
    report({**facts, "model": model}, "latent", as_json)
