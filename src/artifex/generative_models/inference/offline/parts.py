"""Outputs that many processes write at once: one `.npy` file, or a folder of Parquet parts.

The process that runs a job opens the output and notes what is done. Others get its *place*, which says where
each row goes: to write a range of rows again gives the same bytes in the same place, so a range that was
lost half written is just written again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from artifex.generative_models.core.directories import local_path
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.offline.npy import NpyPlace, NpyWriter

if TYPE_CHECKING:
    from artifex.generative_models.inference.offline.parquet_parts import ParquetParts, ParquetPlace

Parts: TypeAlias = "NpyWriter | ParquetParts"  # under way; leaving its block makes the result appear
Place: TypeAlias = "NpyPlace | ParquetPlace"  # where its rows go; it travels to whoever writes them


def open_parts(
    output: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    column: str,
    rows_per_part: int,
    job: Mapping[str, Any],
    resume: bool,
) -> Parts:
    """The output that a name stands for: `.npy` is an array, `.parquet` or no suffix a folder of parts.

    Args:
        output: Where to write.
        shape: Shape [rows, ...] of all rows.
        dtype: Of the rows.
        column: Name of the rows in Parquet files.
        rows_per_part: Rows of a Parquet file.
        job: Everything the rows depend on, as JSON takes it.
        resume: Goes on where the same job stopped.

    Raises:
        InputError: An unknown suffix.
        OutputError: Something else is there, or another process writes it.
        OSError: It cannot be written, or does not fit the disk.
    """
    path = local_path(output).absolute()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NpyWriter(path, shape, dtype, job=job, resume=resume)
    if suffix not in (".parquet", ""):
        raise InputError(f"{output}: expected a .npy array or a folder of Parquet parts, got {suffix!r}")
    from artifex.generative_models.inference.offline.parquet_parts import ParquetParts  # it needs pyarrow

    return ParquetParts(
        path, shape, dtype, column=column, rows_per_part=rows_per_part, job=job, resume=resume
    )
