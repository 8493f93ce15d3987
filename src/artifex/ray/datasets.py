"""Offline jobs on Ray Data: any number of rows on any number of machines, each row exactly once.

A job is cut into *shards* of rows. The dataset is the list of shards; an actor holds one executor, reads a
shard's rows itself, runs them and writes them to their place in the output. Only the shard's numbers come
back, so no row travels through Ray. Shards begin at multiples of the batch size: each row runs in the same
batch as it would in one process, and the output is that of one process, bit for bit.

A shard whose actor is lost is given to another, which writes the same bytes to the same place. A job whose
driver is lost is resumed: what is written is on record.

All machines must have the model, the inputs and the output at the same paths; what differs is found.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import InputError, OutputError
from artifex.generative_models.inference.offline.parts import Parts, open_parts
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.ray.cluster import import_ray, joined, name_everywhere, require
from artifex.ray.inputs import Inputs, Paths
from artifex.ray.worker import Facts, Setup, Task, Worker, describe

_SHARD_ROWS = 8192
_SHARD_BYTES = 64 << 20
_SHARDS = 32  # at least, where there are enough rows: so that many actors end together
# Shards that an actor has at a time, and tries of a shard whose actor ends. A shard that waits behind one
# that ends its actor is lost with it, so what is lost after two tries is tried once more by itself.
_PASSES = ((2, 2), (1, 1))


def encode_dataset(
    model: str | PathLike[str],
    images: Paths,
    output: str | PathLike[str],
    *,
    column: str = "image",
    resize: bool = False,
    batch_size: int | None = None,
    dtype: str | None = None,
    num_actors: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    rows_per_shard: int | None = None,
    address: str | None = None,
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Encodes pictures to the means of their posteriors, on many processes or machines.

    Args:
        model: A bundled name, or an export directory.
        images: Picture files and folders, one `.npy` or `.npz` array, or Parquet files and folders.
        output: A `.npy` array, or a folder of Parquet parts with the columns `row` and `mean`, or
            whichever the model's latents go by.
        column: Pictures in Parquet files: encoded ones, or tensors or lists of their numbers.
        resize: Resizes pictures of another size; otherwise they are an error.
        batch_size: Rows a batch; None is what `tune` found, or 64.
        dtype: Dtype of the computation.
        num_actors: Processes that hold a model.
        num_cpus: Cores for each; where they are whole and there is no GPU, each has its own.
        num_gpus: GPUs for each; a fraction shares one, and its memory.
        rows_per_shard: Rows that are lost when an actor is, and rows of a Parquet part; rounded up to whole
            batches. None takes at most 8192 rows or 64 MiB.
        address: `HOST:PORT` of a Ray cluster, "auto" for the one on this machine, or "local" to start one.
            None is what `$RAY_ADDRESS` says, or the one on this machine, or else a new one.
        resume: Goes on where the same job stopped.
        progress: Shows a bar on stderr.

    Returns:
        `output`; `rows`, and how many of them were there already (`resumed_at`); `num_actors`;
        `start_seconds` until the first shard began, `seconds` from then on, and `rows_per_second`; where
        folders of pictures hold something else, `left_out` says what.

    Raises:
        InputError: No Ray at the address, or it is not installed; no rows, or ones that do not fit the model.
        ConfigError, CheckpointError: The model cannot be loaded.
        OutputError: The output belongs to another job, or machines differ in what they would write.
        OSError: A file cannot be read or written.
    """
    begun = time.perf_counter()
    setup = Setup(name_everywhere(model), "encode", batch_size, dtype, num_cpus, num_gpus)
    given = Inputs.of(images, column, resize)
    with _job(setup, num_actors, rows_per_shard, address) as job:
        pictures = given.open(job.model.input_shape)
        inputs, identity = given.pinned(pictures), pictures.identity()
        with job.output(output, len(pictures), {"images": identity}, resume=resume) as out:
            task = Task(job.model.identity, out.place, inputs, identity)
            facts = job.run(task, out, begun, progress=progress)
    left_out = getattr(pictures, "left_out", "")
    return {**facts, "left_out": left_out} if left_out else facts


def generate_dataset(
    model: str | PathLike[str],
    num_samples: int,
    output: str | PathLike[str],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    batch_size: int | None = None,
    dtype: str | None = None,
    num_actors: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    rows_per_shard: int | None = None,
    address: str | None = None,
    resume: bool = False,
    progress: bool = False,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draws samples, on many processes or machines; sample i depends on the seed and on i alone.

    Args:
        model: A bundled name, or an export directory.
        num_samples: How many, from 1.
        output: A `.npy` array of uint8 pictures, or a folder of Parquet parts with the columns `row` and `x`.
        seed: From 0.
        temperature: Standard deviation of the prior's noise, from 0.
        batch_size: As for `encode_dataset`, and so are the others.
        given: More inputs of the endpoint, such as a label, for all samples or one a sample; and options.
            JSON takes them.

    Returns:
        As for `encode_dataset`.

    Raises:
        InputError: No samples, a negative temperature, something given that the endpoint does not take, or
            as for `encode_dataset`.
        ConfigError, CheckpointError, OutputError, OSError: As for `encode_dataset`.
    """
    begun = time.perf_counter()
    if num_samples < 1:
        raise InputError(f"num_samples: expected at least 1, got {num_samples}")
    setup = Setup(name_everywhere(model), "generate", batch_size, dtype, num_cpus, num_gpus)
    facts = {"seed": seed, "temperature": temperature, "given": dict(given or {})}
    with (
        _job(setup, num_actors, rows_per_shard, address) as job,
        job.output(output, num_samples, facts, resume=resume) as out,
    ):
        task = Task(job.model.identity, out.place, given={"num_samples": num_samples, **facts})
        return job.run(task, out, begun, progress=progress)


@dataclass(frozen=True)
class _Job:
    """A job on a Ray that has been joined, where its actors open a model as the setup says."""

    setup: Setup
    model: Facts
    num_actors: int
    rows_per_shard: int | None

    def output(
        self,
        output: str | PathLike[str],
        num_rows: int,
        facts: Mapping[str, Any],
        *,
        resume: bool,
    ) -> Parts:
        """Opens the output; `facts` are what the rows depend on besides the model."""
        return open_parts(
            output,
            (num_rows, *self.model.output_shape),
            np.dtype(self.model.output_dtype),
            column=self.model.output,
            rows_per_part=self._shard_size(num_rows),
            job={"engine": "ray", "column": self.model.output, **self.model.identity, **facts},
            resume=resume,
        )

    def run(self, task: Task, out: Parts, begun: float, *, progress: bool) -> dict[str, Any]:
        """Has the rows written that are missing, and says what was done."""
        resumed_at = out.rows_done
        first_began = 0.0

        def written() -> Iterator[range]:
            nonlocal first_began
            for start, stop, seconds in self._results(task, out):
                first_began = first_began or time.perf_counter() - seconds
                out.wrote(start, stop)
                yield range(start, stop)

        rows = track_rows(written(), out.num_rows, self.setup.endpoint, start=resumed_at)
        for _ in rows if progress else written():
            pass
        ended = time.perf_counter()
        seconds = ended - (first_began or ended)
        return {
            "output": str(out.path),
            "rows": out.num_rows,
            "resumed_at": resumed_at,
            "num_actors": self.num_actors,
            "start_seconds": round((first_began or ended) - begun, 3),
            "seconds": round(seconds, 4),
            "rows_per_second": round((out.num_rows - resumed_at) / seconds, 1) if seconds else 0.0,
        }

    def _results(self, task: Task, out: Parts) -> Iterator[tuple[int, int, float]]:
        """The shards as they are written, and the seconds that each took."""
        for in_flight, tries in _PASSES:
            yield from self._pass(task, out, in_flight, tries)
        lost = [f"{start} to {stop - 1}" for start, stop in out.missing()]
        if lost:
            raise OutputError(
                f"{out.path}: rows {', '.join(lost)} are missing: a process that had them ended "
                f"{sum(tries for _, tries in _PASSES)} times, killed perhaps for want of memory; all others "
                "are written, and resuming tries them"
            )

    def _pass(self, task: Task, out: Parts, in_flight: int, tries: int) -> Iterator[tuple[int, int, float]]:
        """Has every shard written that is missing, but for those whose actors end at each try."""
        size = self._shard_size(out.num_rows)
        shards = [
            {"start": start, "stop": min(start + size, stop)}
            for first, stop in out.missing()
            for start in range(first, stop, size)
        ]
        if not shards:
            return
        data = import_ray("data")
        num_actors = min(self.num_actors, len(shards))
        results = data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            Worker,
            fn_constructor_args=(self.setup, task),
            batch_size=None,
            compute=data.ActorPoolStrategy(
                min_size=1,
                max_size=num_actors,
                initial_size=num_actors,
                max_tasks_in_flight_per_actor=in_flight,
            ),
            num_cpus=self.setup.num_cpus,
            num_gpus=self.setup.num_gpus,
            max_task_retries=tries - 1,
        )
        for result in results.iter_rows():
            if result["failure"]:
                raise pickle.loads(result["failure"])
            yield result["start"], result["stop"], result["seconds"]

    def _shard_size(self, num_rows: int) -> int:
        """Rows of a shard: whole batches."""
        batch, wanted = self.model.identity["batch_size"], self.rows_per_shard
        if wanted is None:
            row_bytes = max(math.prod(self.model.input_shape), math.prod(self.model.output_shape))
            wanted = min(_SHARD_ROWS, _SHARD_BYTES // row_bytes, math.ceil(num_rows / _SHARDS))
        elif wanted < 1:
            raise InputError(f"rows_per_shard: expected at least 1, got {wanted}")
        return max(1, math.ceil(wanted / batch)) * batch


@contextlib.contextmanager
def _job(setup: Setup, num_actors: int, rows_per_shard: int | None, address: str | None) -> Iterator[_Job]:
    """Joins Ray, and asks a process there about the model: this one may have no such device."""
    if num_actors < 1:
        raise InputError(f"num_actors: expected at least 1, got {num_actors}")
    with joined(address) as started:
        ray = import_ray()
        require(ray, started, num_actors, setup.num_cpus, setup.num_gpus)
        # It is gone afterwards, and with it what it took of a GPU's memory.
        remote = ray.remote(num_cpus=setup.num_cpus, num_gpus=setup.num_gpus, max_calls=1)(describe)
        facts = ray.get(remote.remote(setup))
        if isinstance(facts, Exception):
            raise facts
        with _quiet():
            yield _Job(setup, facts, num_actors, rows_per_shard)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray Data from telling how it gets on, and from ending a job for one shard."""
    context, log = import_ray("data").DataContext.get_current(), logging.getLogger("ray.data")
    bars, level, errored = context.enable_progress_bars, log.level, context.max_errored_blocks
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the rest is written before the job says what it lost
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars, context.max_errored_blocks = bars, errored
        log.setLevel(level)
