"""What the commands that run a model have in common: loading it, naming the job, doing it, reporting it."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import typer
from flax import nnx

from artifex import __version__
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline
from artifex.generative_models.inference.progress import track_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from artifex.cli.options import ComputeDtype
    from artifex.cli.outputs import Output


def open_pipeline(
    model: str, batch_size: int, devices: str | None, dtype: ComputeDtype | None
) -> InferencePipeline:
    """The model of a command, on the devices and in the dtype of its options."""
    mesh = None
    if devices is not None:
        mesh = DeviceManager().mesh(None if devices == "all" else int(devices))
    return load_pipeline(
        model, batch_size=batch_size, mesh=mesh, dtype=None if dtype is None else dtype.value
    )


def picture_shape(pipeline: InferencePipeline, endpoint: str) -> tuple[int, ...]:
    """Shape (H, W, C) of the pictures that an endpoint gives."""
    return pipeline.executor.spec(endpoint)[1]["x"].shape


def job_of(
    command: str, pipeline: InferencePipeline, dtype: ComputeDtype | None, **facts: Any
) -> dict[str, Any]:
    """Everything that the rows of a command depend on, so that only the same job resumes it.

    Args:
        command: Name of the command.
        pipeline: The model.
        dtype: Of the computation.
        **facts: What else the rows depend on: the seed, the pictures.
    """
    mesh = pipeline.executor.mesh
    return {
        "command": command,
        "model": _fingerprint(pipeline),
        "batch_size": pipeline.batch_size,
        "devices": 1 if mesh is None else mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "compute_dtype": None if dtype is None else dtype.value,
        "artifex": __version__,
        "jax": jax.__version__,
        **facts,
    }


def run(
    pipeline: InferencePipeline,
    endpoint: str,
    chunks: Iterator[NDArray[Any]],
    output: Output,
) -> dict[str, Any]:
    """Writes chunks of rows to an output, with a progress bar on a terminal.

    Returns:
        The facts of the run; its seconds are those after compiling.
    """
    first_row = output.rows_done
    compile_seconds = _compile(pipeline, endpoint, output.num_rows - first_row)
    start = time.perf_counter()
    written = _written(chunks, output)
    if sys.stderr.isatty():
        written = track_rows(written, output.num_rows, endpoint, start=first_row)
    if first_row < output.num_rows:
        for _ in written:
            pass
    seconds = time.perf_counter() - start
    return {
        "output": str(output.path.absolute()),
        "rows": output.num_rows,
        "resumed_at": first_row,
        "compile_seconds": round(compile_seconds, 4),
        "seconds": round(seconds, 4),
        "rows_per_second": round((output.num_rows - first_row) / seconds, 1),
    }


def report(facts: dict[str, Any], noun: str, as_json: bool) -> None:
    """Says on stdout what a command did: one line of JSON, or one for people, with a noun for a row."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    resumed = f"from {facts['resumed_at']:,} on; " if facts["resumed_at"] else ""
    speed = f"{facts['seconds']:.2f} s, {facts['rows_per_second']:,.0f}/s"
    compiled = f"after {facts['compile_seconds']:.1f} s of compiling"
    rows = f"{facts['rows']:,} {noun}{'' if facts['rows'] == 1 else 's'}"
    typer.echo(f"{rows} in {facts['output']} ({resumed}{speed}, {compiled})")


def _compile(pipeline: InferencePipeline, endpoint: str, num_rows: int) -> float:
    """Compiles for the batches of a job, and says how many seconds that took."""
    full, last = divmod(num_rows, pipeline.batch_size)
    lengths = ([pipeline.batch_size] if full else []) + ([last] if last else [])
    sizes = {next(size for size in pipeline.executor.batch_sizes if size >= length) for length in lengths}
    return sum(pipeline.executor.warmup([endpoint], sizes)[endpoint].values())


def _written(chunks: Iterator[NDArray[Any]], output: Output) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        output.write(chunk)
        yield chunk


def _fingerprint(pipeline: InferencePipeline) -> str:
    """A digest of the model's config, metadata and weights."""
    digest = hashlib.sha256(json.dumps([pipeline.config, pipeline.metadata], sort_keys=True).encode())
    for leaf in jax.tree.leaves(nnx.state(pipeline.model)):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
