"""Where pictures go: one PNG grid, a folder of PNGs, or a `.npy` array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from PIL import Image

from artifex.generative_models.core.errors import InputError, OutputError
from artifex.generative_models.inference.npy import NpyWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)
_GAP = 2  # pixels between the pictures of a grid
_MAX_GRID_PIXELS = 100_000_000  # Pillow and others refuse to open much larger ones


class Output(Protocol):
    """Takes rows in order; leaving its block makes the result appear."""

    path: Path
    num_rows: int
    rows_done: int

    def write(self, rows: NDArray[Any]) -> None:
        """Takes the next rows [chunk, ...]."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None: ...


class PngGrid:
    """One PNG with all pictures, row by row.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        shape: Shape (N, H, W, C) of the pictures.
        columns: Pictures in a row.

    Raises:
        InputError: The picture would be too large for others to open.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], columns: int):
        self.path = path
        self.num_rows, self._height, self._width, channels = shape
        self.rows_done = 0
        self._columns = columns
        height = math.ceil(self.num_rows / columns) * (self._height + _GAP) - _GAP
        width = columns * (self._width + _GAP) - _GAP
        if height * width > _MAX_GRID_PIXELS:
            raise InputError(
                f"{path}: a grid of {self.num_rows:,} pictures is {width:,} x {height:,} pixels, too large "
                "to open; write a .npy array or a folder"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f"{path.name}.partial")
        self._partial.touch()
        self._canvas = np.full((height, width, channels), 255, np.uint8)

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Puts pictures [chunk, H, W, C] in the next places."""
        for picture in rows:
            row, column = divmod(self.rows_done, self._columns)
            top, left = row * (self._height + _GAP), column * (self._width + _GAP)
            self._canvas[top : top + self._height, left : left + self._width] = picture
            self.rows_done += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                save_png(self.path, self._canvas)
        finally:
            self._partial.unlink(missing_ok=True)


class PngFolder:
    """A folder with a PNG for each picture: `000000.png`, `000001.png`, ….

    Args:
        path: The folder, empty or not there yet.
        shape: Shape (N, H, W, C) of the pictures.

    Raises:
        OutputError: There is something in the folder.
        OSError: The folder cannot be made.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path = path
        self.num_rows = shape[0]
        self.rows_done = 0
        self._digits = max(6, len(str(self.num_rows - 1)))
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise OutputError(f"{path} is not empty; remove what is there or choose another folder")

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Writes pictures [chunk, H, W, C] to the next files."""
        for picture in rows:
            save_png(self.path / f"{self.rows_done:0{self._digits}}.png", picture)
            self.rows_done += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"{self.rows_done:,} of {self.num_rows:,} pictures are in {self.path}")


def open_output(
    name: str,
    shape: tuple[int, ...],
    *,
    job: Mapping[str, Any],
    resume: bool = False,
    columns: int | None = None,
) -> Output:
    """The output that a name stands for: `.png` is a grid, `.npy` an array, no suffix a folder.

    Args:
        name: Where to write.
        shape: Shape (N, H, W, C) of the uint8 pictures.
        job: Everything the pictures depend on, for resuming.
        resume: Goes on with a `.npy` array that was stopped.
        columns: Pictures in a row of a grid; None makes it about square.

    Raises:
        InputError: An unknown suffix, or something that cannot be resumed or shown.
        OutputError: There is something else at that place.
        OSError: It cannot be written.
    """
    path, suffix = Path(name), suffix_of(name)
    if suffix == ".npy":
        return NpyWriter(path, shape, np.uint8, job=job, resume=resume)
    if suffix not in (".png", ""):
        raise InputError(f"{name}: expected a .png, a .npy or a folder (which may end in /), got {suffix!r}")
    if resume:
        raise InputError(f"{name}: --resume needs a .npy output")
    if shape[-1] not in _CHANNELS:
        raise InputError(f"{name}: pictures of {shape[-1]} channels cannot be PNGs; write a .npy array")
    if suffix == ".png":
        num_rows, height, width, _ = shape
        return PngGrid(path, shape, columns or math.ceil(math.sqrt(num_rows * height / width)))
    return PngFolder(path, shape)


def suffix_of(name: str) -> str:
    """What an output's name ends in: `.png`, `.npy`, or nothing for a folder."""
    path = Path(name)
    return "" if name.endswith("/") or path.is_dir() else path.suffix.lower()


def save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Writes a picture [H, W, C] under a temporary name, and gives it its name when it is whole."""
    temporary = path.with_name(f"{path.name}.partial")
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
