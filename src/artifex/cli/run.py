"""What the commands that run a model have in common: loading it, naming the job, doing it, reporting it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import typer

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.errors import CacheError
from artifex.generative_models.inference.cache import cache_dir, enable_compilation_cache
from artifex.generative_models.inference.formats.loading import load_exported_model
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.generative_models.inference.pipeline import (
    InferencePipeline,
    load_pipeline,
)

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh
    from numpy.typing import NDArray

    from artifex.cli.options import ComputeDtype
    from artifex.cli.outputs import Output


def open_pipeline(
    model: str, batch_size: int | None, devices: str | None, dtype: ComputeDtype | None
) -> InferencePipeline:
    """The model of a command, on the devices and in the dtype of its options."""
    use_cache()
    mesh = mesh_of(devices)
    return load_pipeline(model, batch_size=batch_size, mesh=mesh, dtype=compute_dtype(dtype))


def load_model(model: str) -> Any:
    """The model of a command that measures it; nothing comes from the cache, so that compiling is seen."""
    return load_exported_model(model)[0]


def mesh_of(devices: str | None) -> Mesh | None:
    """The devices of an option; where several processes do one job all of them are the default."""
    if devices is None and jax.process_count() == 1:
        return None
    return DeviceManager().mesh(None if devices in (None, "all") else int(devices))


def compute_dtype(dtype: ComputeDtype | None) -> str | None:
    """The dtype of an option."""
    return None if dtype is None else dtype.value


def use_cache() -> None:
    """Has what is compiled kept, or says on stderr why not: a command goes on without."""
    try:
        cache_dir()
    except CacheError as error:
        typer.echo(f"artifex: warning: {error}", err=True)
    enable_compilation_cache()


def picture_shape(pipeline: InferencePipeline, endpoint: str) -> tuple[int, ...]:
    """Shape (H, W, C) of the pictures that an endpoint gives."""
    return pipeline.executor.spec(endpoint)[1]["x"].shape


def job_of(
    command: str, endpoint: str, pipeline: InferencePipeline, dtype: ComputeDtype | None, **facts: Any
) -> dict[str, Any]:
    """Everything that the rows of a command depend on, so that only the same job resumes it.

    Args:
        command: Name of the command.
        endpoint: The endpoint that gives the rows.
        pipeline: The model.
        dtype: Of the computation.
        **facts: What else the rows depend on: the seed, the pictures.
    """
    return {"command": command, **pipeline.job_identity(endpoint), **facts}


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
    compile_seconds = compile_batches(pipeline, endpoint, output.num_rows - first_row)
    start = time.perf_counter()
    written = _written(chunks, output)
    if sys.stderr.isatty():
        written = track_rows(written, output.num_rows, endpoint, start=first_row)
    if first_row < output.num_rows:
        for _ in written:
            pass
    seconds = time.perf_counter() - start
    return facts_of(output.path, output.num_rows, first_row, compile_seconds, seconds)


def facts_of(
    path: Path, num_rows: int, resumed_at: int, compile_seconds: float, seconds: float
) -> dict[str, Any]:
    """What there is to report of a run: its output, its rows, and the seconds that it took."""
    return {
        "output": str(path.absolute()),
        "rows": num_rows,
        "resumed_at": resumed_at,
        "compile_seconds": round(compile_seconds, 4),
        "seconds": round(seconds, 4),
        "rows_per_second": round((num_rows - resumed_at) / seconds, 1),
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


def compile_batches(pipeline: InferencePipeline, endpoint: str, num_rows: int) -> float:
    """Compiles for the batches of a job, and says how many seconds that took."""
    size = pipeline.rows_per_batch(endpoint)
    full, last = divmod(num_rows, size)
    lengths = ([size] if full else []) + ([last] if last else [])
    known = pipeline.executor.batch_sizes_of(endpoint)
    sizes = {next(size for size in known if size >= length) for length in lengths}
    return sum(pipeline.executor.warmup([endpoint], sizes)[endpoint].values())


def _written(chunks: Iterator[NDArray[Any]], output: Output) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        output.write(chunk)
        yield chunk
