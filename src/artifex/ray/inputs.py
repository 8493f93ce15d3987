"""Pictures that every machine of a job opens for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.offline.parquet_pictures import (
    ParquetPictures,
    open_parquet,
    parquet_files,
)
from artifex.generative_models.inference.offline.sources import ArrayFile, PictureFiles, open_pictures

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


Pictures = ArrayFile | PictureFiles | ParquetPictures


@dataclass(frozen=True)
class Inputs:
    """Where a job's pictures are, as `encode_dataset` takes them."""

    paths: tuple[Path, ...]
    column: str
    resize: bool

    @staticmethod
    def of(paths: Paths, column: str, resize: bool) -> Inputs:
        """Paths as a user gives them."""
        several = [paths] if isinstance(paths, str | PathLike) else paths
        return Inputs(tuple(Path(path).expanduser().absolute() for path in several), column, resize)

    def open(self, shape: tuple[int, ...]) -> Pictures:
        """Opens them.

        Args:
            shape: Shape (H, W, C) of the model's pictures.

        Raises:
            InputError: There are none, they do not fit the model, or there is no such column.
            InputTypeError: They are neither encoded pictures, nor uint8, nor floating-point.
            OSError: A path is not there or cannot be read.
        """
        files = [file for path in self.paths for file in parquet_files(path)]
        if not files:
            return open_pictures(self.paths, shape, resize=self.resize)
        others = [path for path in self.paths if not parquet_files(path)]
        if others:
            raise InputError(f"expected either Parquet files or other pictures, got {others[0]} as well")
        return open_parquet(files, self.column, shape, resize=self.resize)

    def pinned(self, opened: Pictures) -> Inputs:
        """The same, folders replaced by the files that were found in them."""
        if isinstance(opened, PictureFiles | ParquetPictures):
            return Inputs(tuple(opened.paths), self.column, self.resize)
        return self
