"""`artifex generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifex.cli.options import (
    ActorCpus,
    ActorGpus,
    AsJson,
    BatchSize,
    Coordinator,
    Devices,
    Dtype,
    Engine,
    JoinTimeout,
    Model,
    NumActors,
    NumProcesses,
    PicturesOut,
    ProcessId,
    RayAddress,
    Resume,
    RunsOn,
    Seed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    join_timeout: JoinTimeout = 120.0,
    engine: RunsOn = Engine.local,
    ray_address: RayAddress = None,
    actors: NumActors = None,
    actor_cpus: ActorCpus = None,
    actor_gpus: ActorGpus = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples."""
    from artifex.cli.on_ray import jobs_on_ray, processes_on_ray, report_on_ray
    from artifex.cli.run import compute_dtype, job_of, open_pipeline, picture_shape, report, run

    processes = processes_on_ray(
        engine,
        num=actors,
        cpus=actor_cpus,
        gpus=actor_gpus,
        address=ray_address,
        devices=devices,
        coordinator=coordinator,
    )
    if processes is not None:
        facts = jobs_on_ray().generate_dataset(
            model,
            num_samples,
            output,
            seed=seed,
            temperature=temperature,
            batch_size=batch_size,
            dtype=compute_dtype(dtype),
            num_actors=processes.num or 1,
            num_cpus=processes.cpus,
            num_gpus=processes.gpus,
            address=processes.address,
            resume=resume,
            progress=sys.stderr.isatty(),
        )
        report_on_ray({**facts, "model": model, "seed": seed, "temperature": temperature}, "sample", as_json)
        return
    import numpy as np

    from artifex.cli.multiprocess import is_first, join, run_together
    from artifex.cli.outputs import open_output
    from artifex.generative_models.core.keys import sample_key

    is_one_of_many = join(coordinator, num_processes, process_id, join_timeout, model=model, output=output)
    pipeline = open_pipeline(model, batch_size, devices, dtype)
    job = job_of("generate", "generate", pipeline, dtype, seed=seed, temperature=temperature)
    shape = (num_samples, *picture_shape(pipeline, "generate"))
    key = sample_key(seed)

    def chunks(rows: range) -> Iterator[NDArray[Any]]:
        return pipeline.generate_chunks(rows.stop, key=key, temperature=temperature, first_row=rows.start)

    if is_one_of_many:
        facts = run_together(
            pipeline, "generate", chunks, output, shape, np.dtype(np.uint8), job=job, key=key, resume=resume
        )
        if not is_first():
            return
    else:
        with open_output(output, shape, job=job, resume=resume) as out:
            facts = run(pipeline, "generate", chunks(range(out.rows_done, num_samples)), out)
    report({**facts, "model": model, "seed": seed, "temperature": temperature}, "sample", as_json)
