"""Where rows go: one PNG grid, a folder with a file for each, or a `.npy` array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.directories import local_path
from artifex.generative_models.core.errors import InputError, OutputError
from artifex.generative_models.inference.images import PICTURE_CHANNELS, PictureGrid, to_pillow
from artifex.generative_models.inference.offline.npy import NpyWriter

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from numpy.typing import NDArray


class PngGrid(AbstractContextManager["PngGrid"]):
    """One PNG with all pictures, row by row.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        shape: Shape (N, H, W, C) of the pictures.
        columns: Pictures in a row; None makes it about square.
        scale: As for `PictureGrid`, and so are the labels.

    Raises:
        InputError: The picture would be too large for others to open.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        columns: int | None,
        scale: int | None = None,
        labels: Sequence[str] = (),
    ):
        self.path = path
        self.num_rows = shape[0]
        self.rows_done = 0
        try:
            self._grid = PictureGrid(shape, columns, scale=scale, labels=labels)
        except InputError as error:
            smaller = "" if scale in (None, 1) else "choose a smaller --scale, or "
            raise InputError(f"{path}: {error}; {smaller}write a .npy array or a folder") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f"{path.name}.partial")
        self._partial.touch()

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Puts pictures [chunk, H, W, C] in the next places."""
        self._grid.add(rows)
        self.rows_done += len(rows)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                save_png(self.path, self._grid.canvas)
        finally:
            self._partial.unlink(missing_ok=True)


class FileFolder(AbstractContextManager["FileFolder"]):
    """A folder with a file for each row: `000000.png`, `000001.png`, …; `.npy` where rows are no uint8.

    Args:
        path: The folder, empty or not there yet.
        numbers: The number of each row, in the order in which they are written.

    Raises:
        OutputError: There is something in the folder.
        OSError: The folder cannot be made.
    """

    def __init__(self, path: Path, numbers: Sequence[int]):
        self.path = path
        self.num_rows = len(numbers)
        self.rows_done = 0
        self._numbers = numbers
        self._digits = max(6, len(str(self.num_rows - 1)))
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise OutputError(f"{path} is not empty; remove what is there or choose another folder")

    def write(self, rows: NDArray[Any]) -> None:
        """Writes rows [chunk, ...] to the next files."""
        for row in rows:
            name = f"{self._numbers[self.rows_done]:0{self._digits}}"
            if row.dtype == np.uint8:
                save_png(self.path / f"{name}.png", row)
            else:
                np.save(self.path / f"{name}.npy", row)
            self.rows_done += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"{self.rows_done:,} of {self.num_rows:,} rows are in {self.path}")


Output = NpyWriter | PngGrid | FileFolder  # takes rows in order; leaving its block makes the result appear


def open_output(
    name: str,
    shape: tuple[int, ...],
    *,
    job: Mapping[str, Any],
    dtype: DTypeLike = np.uint8,
    resume: bool = False,
    columns: int | None = None,
    scale: int | None = None,
    labels: Sequence[str] = (),
) -> Output:
    """The output that a name stands for: `.png` is a grid, `.npy` an array, no suffix a folder of PNGs.

    Args:
        name: Where to write.
        shape: Shape (N, H, W, C) of the pictures, or [rows, ...] of other rows, which go to an array.
        job: Everything the rows depend on, for resuming.
        dtype: Of the rows; that of pictures is uint8.
        resume: Goes on with a `.npy` array that was stopped.
        columns: Pictures in a row of a grid; None makes it about square.
        scale: Of a grid, as for `PictureGrid`, and so are the labels.

    Raises:
        InputError: An unknown suffix, or something that cannot be resumed or shown.
        OutputError: There is something else at that place.
        OSError: It cannot be written.
    """
    path, suffix = local_path(name), suffix_of(name)
    if scale is not None and suffix != ".png":
        raise InputError(f"{name}: --scale is for a .png grid")
    if suffix == ".npy" or dtype != np.uint8:
        return NpyWriter(path, shape, dtype, job=job, resume=resume)
    if suffix not in (".png", ""):
        raise InputError(f"{name}: expected a .png, a .npy or a folder (which may end in /), got {suffix!r}")
    if resume:
        raise InputError(f"{name}: --resume needs a .npy output")
    if shape[-1] not in PICTURE_CHANNELS:
        raise InputError(f"{name}: pictures of {shape[-1]} channels cannot be PNGs; write a .npy array")
    if suffix == ".png":
        return PngGrid(path, shape, columns, scale, labels)
    return FileFolder(path, range(shape[0]))


def suffix_of(name: str) -> str:
    """What an output's name ends in: `.png`, `.npy`, or nothing for a folder."""
    path = Path(name)
    return "" if name.endswith("/") or path.is_dir() else path.suffix.lower()


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes a picture [H, W, C] under a temporary name, and gives it its name when it is whole."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        to_pillow(picture).save(temporary, format="PNG")
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
