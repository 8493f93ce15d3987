"""What the commands that run as several processes under `jax.distributed` have in common."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from artifex.cli.run import compile_batches, facts_of
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.processes import join_processes
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.generative_models.inference.offline.together import check_same_model, write_together

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Key
    from numpy.typing import NDArray

    from artifex.generative_models.inference.pipeline import InferencePipeline

_LINGER_SECONDS = 1.0  # in which the others say what they have to, before the coordinator has gone
_succeeded = False


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: float,
    *,
    model: str,
    output: str,
) -> bool:
    """Makes this command one of several processes, where its options say so.

    Args:
        coordinator: Option.
        num_processes: Option.
        process_id: Option.
        timeout: Option.
        model: What all are to run.
        output: What all are to write.

    Returns:
        Whether it is one.

    Raises:
        InputError: Options that do not go together, or an output that several cannot write.
        ConfigError: The processes have different models.
        ArtifexError, OSError: As for `join_processes`.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise InputError("--num-processes and --process-id go with --coordinator")
        return False
    if not output.lower().endswith(".npy"):
        raise InputError(f"{output}: several processes write a .npy array; give a name that ends so")
    _keep_libraries_off_stdout()
    join_processes(coordinator, num_processes, process_id, timeout=timeout)
    atexit.register(_leave_if_failed)
    check_same_model(model)
    return True


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return jax.process_index() == 0


def run_together(
    pipeline: InferencePipeline,
    endpoint: str,
    chunks: Callable[[range], Iterator[NDArray[Any]]],
    output: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    job: Mapping[str, Any],
    key: Key[Array, ""] | None = None,
    resume: bool,
) -> dict[str, Any]:
    """Writes this process's rows of an output, while the others write theirs; `write_together` says how.

    Returns:
        The facts of the run, of all processes together.
    """
    compile_seconds = compile_batches(pipeline, endpoint, shape[0])
    rounds = write_together(
        pipeline.executor, endpoint, chunks, output, shape, dtype, job=job, key=key, resume=resume
    )
    resumed_at = len(next(rounds))
    start = time.perf_counter()
    if sys.stderr.isatty() and is_first():
        rounds = track_rows(rounds, shape[0], endpoint, start=resumed_at)
    for _ in rounds:
        pass
    global _succeeded
    _succeeded = True
    seconds = time.perf_counter() - start
    facts = facts_of(Path(output), shape[0], resumed_at, compile_seconds, seconds)
    return {**facts, "processes": jax.process_count()}


def _leave_if_failed() -> None:
    """Ends a process that failed, where JAX would wait for all others until one of them has gone."""
    if _succeeded:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(_LINGER_SECONDS)
    os._exit(1)


def _keep_libraries_off_stdout() -> None:
    """Leaves stdout to this command: what connects the processes writes there past Python."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
