"""What the commands that run as several processes under `jax.distributed` have in common."""

from __future__ import annotations

import atexit
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import typer

from artifex.cli.factories import is_factory
from artifex.cli.run import Job, compile_batches, exhaust, run
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.processes import join_processes
from artifex.generative_models.inference.offline.together import check_same_model, write_together

if TYPE_CHECKING:
    from artifex.cli.options import Scale
    from artifex.generative_models.inference.pipeline import InferencePipeline

_LINGER_SECONDS = 1.0  # in which the others say what they have to, before the coordinator has gone
_succeeded = False


def join(scale: Scale, model: str, output: str) -> None:
    """Makes this command one of several processes, where its options say so.

    Raises:
        InputError: Options that do not go together, or an output that several cannot write.
        ConfigError: The processes have different models.
        ArtifexError, OSError: As for `join_processes`.
    """
    if scale.coordinator is None:
        if scale.num_processes is not None or scale.process_id is not None:
            raise InputError("--num-processes and --process-id go with --coordinator")
        return
    if not output.lower().endswith(".npy"):
        raise InputError(f"{output}: several processes write a .npy array; give a name that ends so")
    _keep_libraries_off_stdout()
    join_processes(scale.coordinator, scale.num_processes, scale.process_id, timeout=scale.join_timeout)
    atexit.register(_leave_if_failed)
    if not is_factory(model):
        check_same_model(model)


def run_job(
    pipeline: InferencePipeline, job: Job, output: str, settings: Scale, **grid: Any
) -> dict[str, Any]:
    """Runs a job in this process; or this process's rows of it, while the others run theirs.

    Args:
        **grid: How a grid of pictures looks, where this process alone draws one.

    Returns:
        The facts of the run, of all processes together.

    Raises:
        typer.Exit: All is done, and process 0 is the one that says so.
    """
    if settings.coordinator is None:
        return run(pipeline, job, output, settings, **grid)
    compile_seconds = compile_batches(pipeline, job, job.shape[0])
    rounds = write_together(
        pipeline.executor,
        job.endpoint,
        job.chunks,
        output,
        job.shape,
        np.dtype(job.dtype),
        job=job.identity(pipeline),
        key=job.key,
        resume=settings.resume,
    )
    resumed_at = len(next(rounds))
    facts = exhaust(rounds, job, Path(output), resumed_at, compile_seconds, is_shown=_is_first())
    global _succeeded
    _succeeded = True
    if not _is_first():
        raise typer.Exit
    return {**facts, "processes": jax.process_count()}


def _is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return jax.process_index() == 0


def _leave_if_failed() -> None:
    """Ends a process that failed, where JAX would wait for all others until one of them has gone."""
    if _succeeded:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_first():
        time.sleep(_LINGER_SECONDS)
    os._exit(1)


def _keep_libraries_off_stdout() -> None:
    """Leaves stdout to this command: what connects the processes writes there past Python."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
