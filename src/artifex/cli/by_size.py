"""Pictures of several sizes, through models that take any: those of each size by themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from artifex.cli.options import Batches
from artifex.cli.outputs import FileFolder, suffix_of
from artifex.cli.run import sizes_of
from artifex.generative_models.core.directories import local_path
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.generative_models.inference.offline.sources import PictureFiles, SizeGroup
from artifex.generative_models.inference.pipeline import InferencePipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_sizes(pipeline: InferencePipeline, endpoint: str, groups: Sequence[SizeGroup]) -> None:
    """Refuses pictures of a size that the model does not take, before any work is done.

    Raises:
        InputError: There are some; the first is named.
    """
    for group in groups:
        try:
            sizes_of(pipeline, endpoint, "x", group.shape)
        except InputError as error:
            if not isinstance(group.pictures, PictureFiles):
                raise
            raise InputError(f"{group.pictures.paths[0]}: {error}; --resize scales pictures") from error


def run_by_size(
    pipeline: InferencePipeline,
    endpoint: str,
    groups: Sequence[SizeGroup],
    chunks: Callable[[Any], Iterator[NDArray[Any]]],
    output: str,
    batches: Batches,
) -> dict[str, Any]:
    """Writes what becomes of each picture to a file of its own, in a folder.

    Args:
        chunks: Gives the rows, in chunks [rows, ...], of a group's pictures.
        output: The folder.

    Returns:
        The facts of the run.

    Raises:
        InputError: The output is one file, or something that was stopped is to go on.
    """
    sizes = ", ".join(f"{group.shape[1]} x {group.shape[0]}" for group in groups[:3])
    sizes += ", ..." if len(groups) > 3 else ""
    if suffix_of(output) or batches.resume:
        raise InputError(
            f"{output}: pictures of {len(groups)} sizes ({sizes}) go to a folder, "
            "which may end in / and cannot be resumed; --resize makes them alike"
        )
    numbers = [number for group in groups for number in group.numbers]
    rows: Iterator[NDArray[Any]] = (chunk for group in groups for chunk in chunks(group.pictures.rows()))
    if sys.stderr.isatty():
        rows = track_rows(rows, len(numbers), endpoint, start=0)
    start = time.perf_counter()
    with FileFolder(local_path(output), numbers) as folder:
        for chunk in rows:
            folder.write(chunk)
    seconds = time.perf_counter() - start
    return {
        "output": str(folder.path.absolute()),
        "rows": len(numbers),
        "sizes": len(groups),
        "resumed_at": 0,
        "compile_seconds": 0.0,
        "seconds": round(seconds, 4),
        "rows_per_second": round(len(numbers) / seconds, 2),
    }
