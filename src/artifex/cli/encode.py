"""`artifex encode`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from artifex.cli.options import (
    ActorCpus,
    ActorGpus,
    ArrayOut,
    AsJson,
    BatchSize,
    Coordinator,
    Devices,
    Dtype,
    Engine,
    Images,
    JoinTimeout,
    Model,
    NumActors,
    NumProcesses,
    ProcessId,
    RayAddress,
    Resize,
    Resume,
    RunsOn,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(
    model: Model,
    images: Images,
    output: ArrayOut = "latents.npy",
    resize: Resize = False,
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
    """Encode pictures to the means of their posteriors."""
    from artifex.cli.on_ray import jobs_on_ray, processes_on_ray, report_on_ray
    from artifex.cli.run import compute_dtype, job_of, open_pipeline, report, run

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
        facts = jobs_on_ray().encode_dataset(
            model,
            images,
            output,
            resize=resize,
            batch_size=batch_size,
            dtype=compute_dtype(dtype),
            num_actors=processes.num or 1,
            num_cpus=processes.cpus,
            num_gpus=processes.gpus,
            address=processes.address,
            resume=resume,
            progress=sys.stderr.isatty(),
        )
        report_on_ray({**facts, "model": model}, "latent", as_json)
        return
    import numpy as np

    from artifex.cli.multiprocess import is_first, join, run_together
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.core.processes import together
    from artifex.generative_models.inference.offline.npy import NpyWriter
    from artifex.generative_models.inference.offline.sources import open_pictures

    if not output.lower().endswith(".npy"):
        raise InputError(f"{output}: latents go to a .npy array; give a name that ends so")
    is_one_of_many = join(coordinator, num_processes, process_id, join_timeout, model=model, output=output)
    pipeline = open_pipeline(model, batch_size, devices, dtype)
    inputs, outputs = pipeline.executor.spec("encode")
    pictures = together(lambda: open_pictures(images, inputs["x"].shape, resize=resize))
    latent = outputs["mean"]
    job = job_of("encode", "encode", pipeline, dtype, images=pictures.identity())
    shape, dtype_out = (len(pictures), *latent.shape), np.dtype(latent.dtype)

    def chunks(rows: range) -> Iterator[NDArray[Any]]:
        return pipeline.encode_chunks(pictures.rows(rows.start, rows.stop))

    if is_one_of_many:
        facts = run_together(pipeline, "encode", chunks, output, shape, dtype_out, job=job, resume=resume)
        if not is_first():
            return
    else:
        with NpyWriter(output, shape, dtype_out, job=job, resume=resume) as out:
            facts = run(pipeline, "encode", chunks(range(out.rows_done, len(pictures))), out)
    report({**facts, "model": model}, "latent", as_json)
