"""`artifex generate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from artifex.cli.options import (
    AsJson,
    Model,
    PictureScale,
    PicturesOut,
    Scale,
    Seed,
    Settings,
    as_written,
    setting,
    takes_groups,
)

_SAMPLES = 64  # where nobody says how many


@takes_groups
def generate(
    model: Model,
    num_samples: Annotated[
        int | None,
        typer.Option("--num-samples", "-n", min=1, help="How many: 64, or one text, if not said."),
    ] = None,
    output: PicturesOut = "samples.png",
    seed: Seed = 0,
    temperature: Annotated[
        float, typer.Option(min=0, help="Spread of the prior; 1 is the model's own.")
    ] = 1.0,
    *,
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
    picture_scale: PictureScale = None,
    scale: Scale,
    as_json: AsJson = False,
) -> None:
    """Draw samples: pictures, or text that goes on with --set prompt="..."."""
    from artifex.cli.multiprocess import join, run_job
    from artifex.cli.on_ray import on_actors
    from artifex.cli.run import Job, open_pipeline, picture_shape, report
    from artifex.cli.texts import gives_texts, text_fields, write_texts
    from artifex.generative_models.core.endpoint import changed_options
    from artifex.generative_models.core.keys import sample_key
    from artifex.generative_models.inference.offline.sampling import sampling

    chosen = dict(setting(text, ("seed", "temperature", "num_samples")) for text in settings)
    given = {"seed": seed, "temperature": temperature, **({"set": chosen} if chosen else {})}
    if on_ray := on_actors("generate_dataset", model, scale):
        facts = on_ray(num_samples or _SAMPLES, output, seed=seed, temperature=temperature, given=chosen)
        report({**facts, "model": model, **given}, "sample", as_json)
        return
    join(scale, model, output)
    pipeline = open_pipeline(model, scale)
    if gives_texts(pipeline):
        given["set"] = as_written(chosen, settings, text_fields(pipeline))
        write_texts(pipeline, num_samples or 1, output, given, as_json)
        return
    num_samples = num_samples or _SAMPLES
    key = sample_key(seed)

    def run(rows: range) -> Iterator[Any]:
        how: dict[str, Any] = {"key": key, "temperature": temperature, "given": chosen}
        return pipeline.generate_chunks(num_samples, first_row=rows.start, stop=rows.stop, **how)

    executor = pipeline.executor
    settled = sampling(executor, num_samples, temperature, chosen).options
    options = dict(changed_options(executor.endpoints["generate"].options, settled))
    shape = (num_samples, *picture_shape(pipeline, "generate"))
    dtype = pipeline.picture_dtype("generate")
    job = Job("generate", shape, run, given, dtype=dtype, key=key, options=options)
    facts = run_job(pipeline, job, output, scale, scale=picture_scale)
    report({**facts, "model": model, **given}, "sample", as_json)
