"""`artifex encode`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifex.cli.options import (
    ArrayOut,
    AsJson,
    Column,
    Engine,
    Images,
    Model,
    Resize,
    Scale,
    Settings,
    takes_groups,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@takes_groups
def encode(
    model: Model,
    images: Images,
    output: ArrayOut = "latents.npy",
    resize: Resize = False,
    column: Column = "image",
    *,
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
    scale: Scale,
    as_json: AsJson = False,
) -> None:
    """Encode pictures to latents: the means of their posteriors, where they have; or to codes."""
    from artifex.cli.by_size import check_sizes, run_by_size
    from artifex.cli.multiprocess import join, run_job
    from artifex.cli.on_ray import on_actors
    from artifex.cli.outputs import suffix_of
    from artifex.cli.run import Job, input_shape, open_pipeline, report, said_of_all, say_left_out, sizes_of
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.core.processes import together
    from artifex.generative_models.inference.offline.latents import encoded_name
    from artifex.generative_models.inference.offline.sources import open_by_size

    if settings and scale.engine is Engine.ray:
        raise InputError("--set does not go with --engine ray; leave it out")
    if on_ray := on_actors("encode_dataset", model, scale):
        facts = on_ray(images, output, resize=resize, column=column)
        say_left_out(facts.pop("left_out", ""))
        report({**facts, "model": model}, "latent", as_json)
        return
    if suffix_of(output) not in (".npy", ""):
        raise InputError(f"{output}: latents go to a .npy array; give a name that ends so")
    join(scale, model, output)
    pipeline = open_pipeline(model, scale)
    given = said_of_all(pipeline, "encode", settings)
    taken = input_shape(pipeline, "encode", "x")
    if resize or (None not in taken):
        taken = pipeline.executor.spec("encode")[0]["x"].shape
    groups = together(lambda: open_by_size(images, taken, resize=resize, column=column))
    check_sizes(pipeline, "encode", groups)
    pictures = groups[0].pictures
    say_left_out(getattr(pictures, "left_out", ""))

    def encoded(pictures: Any) -> Iterator[NDArray[Any]]:
        return pipeline.encode_chunks(pictures, given)

    if len(groups) > 1 and scale.coordinator is None:
        facts = run_by_size(pipeline, "encode", groups, encoded, output, scale)
        report({**facts, "model": model}, "latent", as_json)
        return
    if len(groups) > 1 or not output.lower().endswith(".npy"):
        raise InputError(f"{output}: latents go to a .npy array; give a name that ends so")
    options = sizes_of(pipeline, "encode", "x", groups[0].shape)
    latent = pipeline.executor.spec("encode", **options)[1][encoded_name(pipeline.executor)]
    job = Job(
        "encode",
        (len(pictures), *latent.shape),
        lambda rows: encoded(pictures.rows(rows.start, rows.stop)),
        {"images": pictures.identity(), **({"set": given} if given else {})},
        dtype=latent.dtype,
        image_dtype=pictures.dtype,
        options=options,
    )
    facts = run_job(pipeline, job, output, scale)
    report({**facts, "model": model}, "latent", as_json)
