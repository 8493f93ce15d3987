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
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.specs import TensorSpec

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
_SMALL_PIXELS, _WIDE_PIXELS = 64, 512  # pictures under so many pixels make a grid of at least so many
_LABEL_PIXELS = 12
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

    It is turned as its EXIF orientation says, and 16 bits become 8. Its size is looked at before it is
    decompressed.

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
            may_fit = sorted(image.size) == sorted((width, height))
            size = _upright_size(image) if may_fit or resize else image.size
            if size == (width, height) or resize:
                picture = _eight_bits(ImageOps.exif_transpose(image)).convert(PICTURE_CHANNELS[channels])
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
        f"{name}: {size[0]} x {size[1]} pixels where the model takes {width} x {height}; "
        "the option to resize scales it"
    )


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture file, turned as its EXIF orientation says.

    Raises:
        InputError: It is no picture.
        FileNotFoundError, PermissionError, IsADirectoryError: As it says.
    """
    try:
        with Image.open(path) as image:
            width, height = _upright_size(image)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, *DAMAGED) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{path}: not a picture that can be read: {reason}") from error
    return height, width


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture once it is turned the way that its camera says."""
    is_on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if is_on_its_side else image.size


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of at most 8 bits a channel; Pillow itself cuts off what is above 255.

    Raises:
        ValueError: Its numbers have no range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range; pass a .npy array in the model's range")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("more than 16 bits a pixel; pass a .npy array in the model's range")
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


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


Pictures = TypeVar("Pictures")


def pictures_in(outputs: Mapping[str, Pictures]) -> Pictures:
    """The pictures among what `generate` gives.

    Raises:
        InputError: It gives something else.
    """
    if "x" not in outputs:
        given = ", ".join(outputs)
        raise InputError(f"generate: expected pictures x, and it gives {given}; use pipeline.call")
    return outputs["x"]


def taking_uint8(endpoints: Mapping[str, Endpoint], image_range: tuple[float, float]) -> dict[str, Endpoint]:
    """The endpoints, taking uint8 pictures too, which the executable scales to the model's range.

    Inputs that have a range of their own, such as masks, keep it.
    """

    def taking(spec: TensorSpec) -> TensorSpec:
        is_scaled = is_picture(spec) and np.dtype(spec.dtype).kind not in "biuc" and spec.image_range is None
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
        scale: Pixels of the grid to a pixel of theirs; None shows pictures under 64 pixels so large that the
            grid is 512 pixels wide, and larger ones, or one alone, as they are.
        labels: Words beside each row, evenly from its top to its bottom.

    Raises:
        InputError: It would be too large for others to open.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        columns: int | None = None,
        *,
        scale: int | None = None,
        labels: Sequence[str] = (),
    ):
        num_pictures, height, width, channels = shape
        about_square = min(math.ceil(math.sqrt(num_pictures * height / width)), num_pictures)
        self._columns = columns or about_square
        num_rows = math.ceil(num_pictures / self._columns)
        if scale is None:
            in_row = min(self._columns, num_pictures)
            is_alone = num_pictures == 1 and not labels
            is_small = not is_alone and max(height // max(len(labels), 1), width) < _SMALL_PIXELS
            scale = max(1, math.ceil(_WIDE_PIXELS / (in_row * width))) if is_small else 1
        self._scale = scale
        self._height, self._width = scale * height, scale * width
        margin = _label_column(labels, self._height)
        self._left = 0 if margin is None else margin.shape[1]
        full_height = num_rows * (self._height + _GAP) - _GAP
        full_width = self._left + self._columns * (self._width + _GAP) - _GAP
        if full_height * full_width > _MAX_GRID_PIXELS:
            raise InputError(
                f"a grid of {num_pictures:,} pictures is {full_width:,} x {full_height:,} pixels, "
                "too large to open"
            )
        self.canvas = np.full((full_height, full_width, channels), 255, np.uint8)
        if margin is not None:
            for top in range(0, full_height, self._height + _GAP):
                self.canvas[top : top + self._height, : self._left, :3] = margin[..., None]
        self._num_placed = 0

    def add(self, pictures: UInt8[ndarray, "n h w c"]) -> None:
        """Puts pictures in the next places."""
        for picture in pictures:
            row, column = divmod(self._num_placed, self._columns)
            top, left = row * (self._height + _GAP), self._left + column * (self._width + _GAP)
            large = picture.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
            self.canvas[top : top + self._height, left : left + self._width] = large
            self._num_placed += 1


def _label_column(labels: Sequence[str], height: int) -> UInt8[ndarray, "h w"] | None:
    """Words from top to bottom, in black on white; None where there are none, or no room for them."""
    if not labels or height < len(labels) * _LABEL_PIXELS:
        return None
    font = ImageFont.load_default(_LABEL_PIXELS)
    width = math.ceil(max(font.getlength(label) for label in labels)) + 2 * _LABEL_PIXELS
    column = Image.new("L", (width, height), 255)
    for i, label in enumerate(labels):
        middle = (2 * i + 1) * height // (2 * len(labels))
        ImageDraw.Draw(column).text((_LABEL_PIXELS, middle), label, fill=0, font=font, anchor="lm")
    return np.asarray(column)


def _taken(group: Future[_Decoded]) -> Iterator[UInt8[ndarray, "h w c"]]:
    pictures, error = group.result()
    yield from pictures
    if error is not None:
        raise error


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_DECODERS, thread_name_prefix="artifex-pictures")
