"""What the commands that run a model have in common: loading it, naming the job, doing it, reporting it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import typer

from artifex.cli.factories import is_factory, make, make_pipeline, refuse_settings
from artifex.cli.options import setting
from artifex.cli.outputs import Output, open_output
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import changed_options
from artifex.generative_models.core.errors import CacheError, InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.inference.cache import cache_dir, enable_compilation_cache
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.formats.loading import load_exported_model
from artifex.generative_models.inference.images import pictures_in
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh
    from jax.typing import DTypeLike
    from jaxtyping import Array, Key
    from numpy.typing import NDArray

    from artifex.cli.options import Batches, ComputeDtype


def open_pipeline(model: str, batches: Batches) -> InferencePipeline:
    """The model of a command, on the devices and in the dtype of its options."""
    use_cache()
    settings = {"batch_size": batches.batch_size, "dtype": compute_dtype(batches.dtype)}
    return load_model(model, mesh=mesh_of(batches.devices), **settings)


def load_model(model: str, **settings: Any) -> InferencePipeline:
    """A command's model: a bundled one, an export directory, or what a factory makes."""
    return make_pipeline(model, **settings) if is_factory(model) else load_pipeline(model, **settings)


def load_executor(model: str, batch_sizes: Sequence[int] | None, **settings: Any) -> Executor:
    """A command's model without what comes before and after it: for those that measure it.

    Args:
        batch_sizes: Rows a batch, and the settings, as for `Executor`.

    Raises:
        InputError: Settings go with an executor or a pipeline that a factory makes, which has its own.
    """
    made: Any = make(model) if is_factory(model) else load_exported_model(model)[0]
    if not isinstance(made, Executor | InferencePipeline):
        return Executor(made, batch_sizes=batch_sizes, **settings)
    refuse_settings(model, made, settings)
    executor = made if isinstance(made, Executor) else made.executor
    return executor.remade(batch_sizes=batch_sizes)


def mesh_of(devices: str | None) -> Mesh | None:
    """The devices of an option; where several processes do one job all of them are the default."""
    mesh = DeviceManager().mesh(None if devices in (None, "all") else int(devices))
    return None if devices is None and jax.process_count() == 1 else mesh


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


def said_of_all(pipeline: InferencePipeline, endpoint: str, settings: Sequence[str]) -> dict[str, Any]:
    """What `--set` says to an endpoint, of all rows alike.

    Raises:
        InputError: A name that it does not take, or a value that does not fit.
    """
    made = pipeline.executor.endpoints.get(endpoint)
    given = dict(map(setting, settings))
    if given:
        checked_fields(endpoint, {} if made is None or made.says is None else made.says.fields, given, None)
    return given


def say_left_out(left_out: str) -> None:
    """Says on stderr what folders of pictures hold besides pictures, if anything."""
    if left_out and jax.process_index() == 0:
        typer.echo(f"artifex: warning: {left_out}", err=True)


def input_shape(pipeline: InferencePipeline, endpoint: str, name: str) -> tuple[int | None, ...]:
    """Shape of a row of an input; None stands for sizes that it may have any of.

    Raises:
        InputError: The endpoint takes no such input.
    """
    made = pipeline.executor.endpoints[endpoint]
    if name not in made.inputs:
        raise InputError(f"{endpoint}: {name} is not taken; it takes {', '.join(made.fields)}")
    return tuple(size if isinstance(size, int) else None for size in made.inputs[name].shape)


def sizes_of(pipeline: InferencePipeline, endpoint: str, name: str, shape: Sequence[int]) -> dict[str, Any]:
    """The options that are sizes and differ from the default ones, for rows of an input of a shape.

    Raises:
        InputError: A size that the endpoint does not take.
    """
    rows = np.broadcast_to(np.float32(0), (1, *shape))
    made = pipeline.executor.endpoints[endpoint]
    sizes = dict(changed_options(made.options, made.sized({name: rows})))
    pipeline.executor.spec(endpoint, **sizes)
    return sizes


def picture_shape(pipeline: InferencePipeline, endpoint: str, **options: Any) -> tuple[int, ...]:
    """Shape (H, W, C) of the pictures that an endpoint gives."""
    return pictures_in(pipeline.executor.spec(endpoint, **options)[1]).shape


@dataclass(frozen=True)
class Job:
    """Rows that an endpoint is to give.

    Args:
        endpoint: Its name.
        shape: Shape [rows, ...] of all rows.
        chunks: Gives the rows with these numbers, in chunks [rows, ...].
        facts: What the rows depend on besides the model, as JSON takes it: the seed, the pictures.
        dtype: Of the rows.
        key: The job's key, where the endpoint draws random numbers.
        image_dtype: Of the pictures that it takes, if it takes some.
        options: Static options of the endpoint, but for those that are left out.
    """

    endpoint: str
    shape: tuple[int, ...]
    chunks: Callable[[range], Iterator[NDArray[Any]]]
    facts: Mapping[str, Any]
    dtype: DTypeLike = np.uint8
    key: Key[Array, ""] | None = None
    image_dtype: DTypeLike | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, pipeline: InferencePipeline) -> dict[str, Any]:
        """Everything that the rows depend on, so that only the same job resumes it."""
        return {"command": self.endpoint, **pipeline.job_identity(self.endpoint), **self.facts}


def run(pipeline: InferencePipeline, job: Job, output: str, batches: Batches, **grid: Any) -> dict[str, Any]:
    """Writes the rows of a job to an output, with a progress bar on a terminal.

    Args:
        output: Its name, as for `open_output`.
        **grid: How a grid of pictures looks, as for `open_output`.

    Returns:
        The facts of the run; its seconds are those after compiling.
    """
    identity = job.identity(pipeline)
    with open_output(output, job.shape, dtype=job.dtype, job=identity, resume=batches.resume, **grid) as out:
        missing = range(out.rows_done, out.num_rows)
        compile_seconds = compile_batches(pipeline, job, len(missing))
        chunks = _written(job.chunks(missing), out) if missing else iter(())
        return exhaust(chunks, job, out.path, missing.start, compile_seconds)


def exhaust(
    rows: Iterator[Sized],
    job: Job,
    path: Path,
    resumed_at: int,
    compile_seconds: float,
    *,
    is_shown: bool = True,
) -> dict[str, Any]:
    """Goes through the rows of a job, which are written on the way, and says what there is to report."""
    start = time.perf_counter()
    if is_shown and sys.stderr.isatty():
        rows = track_rows(rows, job.shape[0], job.endpoint, start=resumed_at)
    for _ in rows:
        pass
    seconds = time.perf_counter() - start
    return {
        "output": str(path.absolute()),
        "rows": job.shape[0],
        "resumed_at": resumed_at,
        "compile_seconds": round(compile_seconds, 4),
        "seconds": round(seconds, 4),
        "rows_per_second": round((job.shape[0] - resumed_at) / seconds, 2),
    }


def report(facts: dict[str, Any], noun: str, as_json: bool) -> None:
    """Says on stdout what a command did, here or on Ray: one line of JSON, or one for people.

    Args:
        noun: For a row.
    """
    if as_json:
        typer.echo(json.dumps(facts))
        return
    if "num_actors" in facts:
        actors = f"{facts['num_actors']} process{'' if facts['num_actors'] == 1 else 'es'}"
        begun = f"after {facts['start_seconds']:.1f} s to start {actors}"
    else:
        begun = f"after {facts['compile_seconds']:.1f} s of compiling"
    resumed = f"from {facts['resumed_at']:,} on; " if facts["resumed_at"] else ""
    rate = facts["rows_per_second"]
    speed = f"{facts['seconds']:.2f} s, {rate:{',.0f' if rate >= 10 else '.2g'}}/s"
    rows = f"{facts['rows']:,} {noun}{'' if facts['rows'] == 1 else 's'}"
    typer.echo(f"{rows} in {facts['output']} ({resumed}{speed}, {begun})")


def compile_batches(pipeline: InferencePipeline, job: Job, num_rows: int) -> float:
    """Compiles for the batches of a job, and says how many seconds that took.

    With other options than the default ones, its first batch has that done.
    """
    if job.options:
        return 0.0
    endpoint, executor = job.endpoint, pipeline.executor
    size = pipeline.rows_per_batch(endpoint)
    full, last = divmod(num_rows, size)
    sizes = set[int]().union(
        *(executor.batch_sizes_for(endpoint, chunk) for chunk in (size if full else 0, last))
    )
    return sum(executor.warmup([endpoint], sizes, image_dtype=job.image_dtype)[endpoint].values())


def _written(chunks: Iterator[NDArray[Any]], output: Output) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        output.write(chunk)
        yield chunk
