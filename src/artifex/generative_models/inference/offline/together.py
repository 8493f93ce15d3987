"""One job of many processes under `jax.distributed`, written to one output.

Rows go to the processes in rounds of many batches. In a round each runs its own rows, in step with the
others, and writes them where they belong; then process 0 takes note of them. So a job that was stopped
resumes at a round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.processes import all_of, together
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.formats.loading import find_model
from artifex.generative_models.inference.offline.npy import NpyPlace, NpyWriter, dtype_in_files

if TYPE_CHECKING:
    from jaxtyping import Array, Key
    from numpy.typing import NDArray

_ROUND_BATCHES = 256  # of each process
_SMALL_BYTES = 1 << 20


def write_together(
    executor: Executor,
    endpoint: str,
    chunks: Callable[[range], Iterator[NDArray[Any]]],
    output: str | PathLike[str],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    job: Mapping[str, Any],
    key: Key[Array, ""] | None = None,
    resume: bool = False,
) -> Iterator[range]:
    """Writes the rows of a job to one `.npy` file, on a file system that all processes share.

    Every process of the executor's mesh calls this with the same arguments. The file comes out bit for bit as
    one process writes it.

    Args:
        executor: On a mesh of all processes.
        endpoint: The endpoint that gives the rows.
        chunks: Gives the output's rows with these numbers, in chunks [rows, ...], by way of the executor.
        output: The file.
        shape: Shape [rows, ...] of the whole array.
        dtype: Its dtype.
        job: Everything the rows depend on, as JSON takes it.
        key: The job's key, where the endpoint draws random numbers.
        resume: Goes on where the same job stopped.

    Yields:
        The rows that are written after each round; first those that were there already, if any.

    Raises:
        InputError: The processes differ in what they are to do: in the model, the inputs, the seed.
        ArtifexError: Another process failed, and says why.
        OutputError: The output belongs to another job.
        OSError: It cannot be written, or is not the same file for all.
    """
    _check_same({**job, "rows": shape[0]})
    num_rows = shape[0]
    with ExitStack() as stack:
        out = together(
            lambda: (
                stack.enter_context(NpyWriter(output, shape, dtype, job=job, resume=resume))
                if jax.process_index() == 0
                else None
            )
        )
        own_place = None if out is None else out.place
        told = own_place and [str(own_place.path), own_place.offset, own_place.row_bytes]
        path, offset, row_bytes = all_of(told)[0]
        place = NpyPlace(Path(path), offset, row_bytes, dtype_in_files(dtype))
        missing = all_of(None if out is None else out.missing())[0]
        yield range(num_rows - sum(stop - start for start, stop in missing))
        for rows in _rounds(missing, _ROUND_BATCHES * executor.rows_of_all(endpoint)):
            own = executor.local_rows(endpoint, len(rows))
            own = range(rows.start + own.start, rows.start + own.stop)
            rows_given = chunks(own) if own else executor.map(endpoint, (), key=key, first_row=0)

            def write(own: range = own, given: Any = rows_given) -> None:
                with closing(given):
                    place.write(own.start, own.stop, given)

            together(write)
            if out is not None:
                out.wrote(rows.start, rows.stop)
            yield rows
        together(stack.close)


def check_same_model(name_or_dir: str | PathLike[str]) -> None:
    """Makes sure that all processes have the same model; each calls this before it loads it.

    It compares the names and sizes of an export's files, and what is in the small ones: the config, and the
    checksums of all weights where `save_checkpoint` wrote them.

    Raises:
        ConfigError: There is no such model, or it differs.
        ArtifexError: Another process has none.
    """
    digests = all_of(together(lambda: _digest(find_model(name_or_dir))))
    differing = [process for process, digest in enumerate(digests) if digest != digests[0]]
    if differing:
        raise ConfigError(f"{name_or_dir}: processes {differing} have another model there than process 0")


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(repr((str(path.relative_to(directory)), size)).encode())
        if size <= _SMALL_BYTES:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_same(job: Mapping[str, Any]) -> None:
    jobs = all_of(dict(job))
    for process, told in enumerate(jobs):
        differing = sorted(
            name for name in jobs[0].keys() | told.keys() if jobs[0].get(name) != told.get(name)
        )
        if differing:
            facts = (f"{name}: {jobs[0].get(name)} and {told.get(name)}" for name in differing)
            raise InputError(f"processes 0 and {process} were given different jobs: {'; '.join(facts)}")


def _rounds(missing: list[list[int]], size: int) -> Iterator[range]:
    for start, stop in missing:
        for first in range(start, stop, size):
            yield range(first, min(first + size, stop))
