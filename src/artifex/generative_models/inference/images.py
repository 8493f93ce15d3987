"""Pictures: between uint8 and a model's range of pixel values, and from and to picture files."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import os
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from artifex.generative_models.core.endpoint import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from jax.typing import ArrayLike
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    _Decoded = tuple[list[UInt8[ndarray, "h w c"]], Exception | None]  # and what the next one raised

PICTURE_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # and Pillow's names for them
_SAFE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of what strangers send; some others run programs
_NUM_DECODERS = min(os.cpu_count() or 1, 4)
_GROUP_BYTES = 1 << 20  # of decoded pictures, for one thread at a time
_GROUP_FILES = 8
_AHEAD_BYTES = 64 << 20  # of decoded pictures that wait for who takes them, but one group at least
_opening = threading.Lock()  # warnings are turned into errors for all threads at once
_GAP = 2  # pixels between the pictures of a grid
_MAX_GRID_PIXELS = 100_000_000  # Pillow and others refuse to open much larger ones
DAMAGED = (  # what NumPy, zipfile and Pillow raise on broken files, besides OSError
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)


def normalize_images(
    images: ArrayLike, image_range: Sequence[float] = (-1.0, 1.0)
) -> Float[ndarray, "batch h w c"]:
    """Scales uint8 pictures to a model's range: 0 becomes its low end, 255 its high end.

    Pictures that are floating-point already are taken to be in that range and pass through.

    Args:
        images: Pictures [batch, H, W, C].
        image_range: (low, high).
    """
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8:
        return pixels
    low, high = image_range
    return pixels * np.float32((high - low) / 255) + np.float32(low)


def denormalize_images(
    images: ArrayLike, image_range: Sequence[float] = (-1.0, 1.0)
) -> UInt8[ndarray, "batch h w c"]:
    """Turns a model's pictures into uint8, rounded and clipped: the inverse of `normalize_images`.

    Args:
        images: Pictures [batch, H, W, C] in `image_range`.
        image_range: (low, high).
    """
    low, high = image_range
    levels = (np.asarray(images, np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def decode_picture(
    file: Path | bytes, shape: tuple[int, ...], *, name: str = "picture", resize: bool = False
) -> UInt8[ndarray, "h w c"]:
    """Reads a picture file of any mode of colours; contents must be PNG, JPEG, WebP or BMP.

    Its size is looked at before it is decompressed.

    Args:
        file: The file, or its contents.
        shape: Shape (H, W, C) of the picture wanted; 1, 3 or 4 channels.
        name: What to call it in an error.
        resize: Resizes a picture of another size; otherwise it is an error.

    Raises:
        InputError: It is no picture, a damaged one, of another size, or of more pixels than Pillow's
            `Image.MAX_IMAGE_PIXELS`.
        FileNotFoundError, PermissionError, IsADirectoryError: As it says.
    """
    height, width, channels = shape
    source: Path | BinaryIO = io.BytesIO(file) if isinstance(file, bytes) else file
    formats = _SAFE_FORMATS if isinstance(file, bytes) else None
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(source, formats=formats)
        with image:
            if image.size == (width, height) or resize:
                picture = image.convert(PICTURE_CHANNELS[channels])
                if picture.size != (width, height):
                    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
                return np.asarray(picture).reshape(shape)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name}: more than {limit:,} pixels; scale it down first") from error
    except (OSError, *DAMAGED) as error:  # Pillow's text for an unknown format has an address in it
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{name}: not a picture that can be read: {reason}") from error
    raise InputError(
        f"{name}: {image.width} x {image.height} pixels where the model takes {width} x {height}; "
        "the option to resize scales it"
    )


File = TypeVar("File")


def decode_ahead(
    files: Iterable[File], decode: Callable[[File], UInt8[ndarray, "h w c"]], picture_bytes: int
) -> Iterator[UInt8[ndarray, "h w c"]]:
    """Decodes pictures on a few threads ahead of who takes them, and yields them in order.

    Args:
        files: What to decode; read as it is needed.
        decode: Gives one picture; what it raises comes at that picture's turn.
        picture_bytes: Bytes of a decoded picture, which bound how many are decoded ahead.
    """

    def decode_group(group: list[File]) -> _Decoded:
        pictures = []
        for file in group:
            try:
                pictures.append(decode(file))
            except Exception as error:  # whatever it is, it waits for its turn
                return pictures, error
        return pictures, None

    files = iter(files)
    size = max(min(_GROUP_BYTES // max(picture_bytes, 1), _GROUP_FILES), 1)
    most = max(min(_AHEAD_BYTES // max(size * picture_bytes, 1), 2 * _NUM_DECODERS), 1)
    groups = iter(lambda: list(itertools.islice(files, size)), [])
    ahead: deque[Future[_Decoded]] = deque()
    try:
        for group in groups:
            ahead.append(_decoders().submit(decode_group, group))
            if len(ahead) > most:
                yield from _taken(ahead.popleft())
        while ahead:
            yield from _taken(ahead.popleft())
    finally:
        for waiting in ahead:
            waiting.cancel()


def is_picture(spec: TensorSpec) -> bool:
    """Whether rows are pictures [H, W, C] that a PNG can hold."""
    return len(spec.shape) == 3 and spec.shape[2] in PICTURE_CHANNELS


def taking_uint8(endpoints: Mapping[str, Endpoint], image_range: tuple[float, float]) -> dict[str, Endpoint]:
    """The endpoints, taking uint8 pictures too, which the executable scales to the model's range."""

    def taking(spec: TensorSpec) -> TensorSpec:
        is_scaled = is_picture(spec) and np.dtype(spec.dtype).kind not in "biuc"
        return dataclasses.replace(spec, image_range=image_range) if is_scaled else spec

    return {
        name: dataclasses.replace(
            endpoint, inputs={input_name: taking(spec) for input_name, spec in endpoint.inputs.items()}
        )
        for name, endpoint in endpoints.items()
    }


def encode_png(picture: UInt8[ndarray, "h w c"]) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    to_pillow(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def to_pillow(picture: UInt8[ndarray, "h w c"]) -> Image.Image:
    """A picture as Pillow has it."""
    pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
    return Image.fromarray(np.ascontiguousarray(pixels))


class PictureGrid:
    """One picture with others on it, row by row.

    Args:
        shape: Shape (N, H, W, C) of the others.
        columns: How many stand in a row; None makes it about square.

    Raises:
        InputError: It would be too large for others to open.
    """

    def __init__(self, shape: tuple[int, ...], columns: int | None = None):
        num_pictures, self._height, self._width, channels = shape
        self._columns = columns or math.ceil(math.sqrt(num_pictures * self._height / self._width))
        height = math.ceil(num_pictures / self._columns) * (self._height + _GAP) - _GAP
        width = self._columns * (self._width + _GAP) - _GAP
        if height * width > _MAX_GRID_PIXELS:
            raise InputError(
                f"a grid of {num_pictures:,} pictures is {width:,} x {height:,} pixels, too large to open"
            )
        self.canvas = np.full((height, width, channels), 255, np.uint8)
        self._num_placed = 0

    def add(self, pictures: UInt8[ndarray, "n h w c"]) -> None:
        """Puts pictures in the next places."""
        for picture in pictures:
            row, column = divmod(self._num_placed, self._columns)
            top, left = row * (self._height + _GAP), column * (self._width + _GAP)
            self.canvas[top : top + self._height, left : left + self._width] = picture
            self._num_placed += 1


def _taken(group: Future[_Decoded]) -> Iterator[UInt8[ndarray, "h w c"]]:
    pictures, error = group.result()
    yield from pictures
    if error is not None:
        raise error


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="artifex-pictures")
