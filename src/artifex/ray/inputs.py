"""Pictures that every machine of a job opens for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from artifex.generative_models.core.directories import local_path
from artifex.generative_models.inference.offline.sources import ArrayFile, Pictures, open_pictures

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


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
        return Inputs(tuple(local_path(path).absolute() for path in several), column, resize)

    def open(self, shape: tuple[int, ...]) -> Pictures:
        """Opens them.

        Args:
            shape: Shape (H, W, C) of the model's pictures.

        Raises:
            InputError: There are none, they do not fit the model, or there is no such column.
            InputTypeError: They are neither encoded pictures, nor uint8, nor floating-point.
            OSError: A path is not there or cannot be read.
        """
        return open_pictures(self.paths, shape, resize=self.resize, column=self.column)

    def pinned(self, opened: Pictures) -> Inputs:
        """The same, folders replaced by the files that were found in them."""
        if isinstance(opened, ArrayFile):
            return self
        return Inputs(tuple(opened.paths), self.column, self.resize)
