"""Pictures that clients send as files, and that they get as a PNG."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.images import (
    PictureGrid,
    decode_ahead,
    decode_picture,
    denormalize_images,
    encode_png,
)
from artifex.generative_models.inference.pipeline import InferencePipeline

_BASE64_STARTS = (b"data:", b"iVBO", b"/9j/", b"UklG", b"Qk")  # of a data URL, PNG, JPEG, WebP, BMP
_BASE64_PART = 1 << 18  # characters, a multiple of 4


def decode_pictures(
    name: str, files: Iterable[bytes], spec: TensorSpec, *, resize: bool = False
) -> np.ndarray:
    """Pictures uint8 [rows, H, W, C] from files, themselves or in base64.

    Args:
        name: The input's name.
        files: Contents of PNG, JPEG, WebP or BMP files, or their base64, as a data URL or not.
        spec: One row of the input.
        resize: Resizes pictures of another size; otherwise they are an error.

    Raises:
        InputError: One is no picture, or of another size.
    """

    def decode(numbered: tuple[int, bytes]) -> np.ndarray:
        row, file = numbered
        if file.startswith(_BASE64_STARTS):
            try:
                file = _from_base64(file.rpartition(b",")[2])
            except binascii.Error as error:
                raise InputError(f"{name}: row {row} is not base64: {error}") from error
        return decode_picture(file, spec.shape, name=f"{name}: row {row}", resize=resize)

    pictures = list(decode_ahead(enumerate(files), decode, math.prod(spec.shape)))
    if not pictures:
        raise InputError(f"{name}: expected at least one picture")
    return np.stack(pictures)


def _from_base64(text: bytes) -> bytes:
    """What is in base64, decoded in parts: the interpreter's lock is held meanwhile."""
    parts = (text[start : start + _BASE64_PART] for start in range(0, len(text), _BASE64_PART))
    return b"".join([base64.b64decode(part, validate=True) for part in parts])


def picture_urls(pipeline: InferencePipeline, pictures: np.ndarray) -> list[str]:
    """A model's pictures [rows, H, W, C] as PNGs, each a data URL."""
    files = map(encode_png, _pixels(pipeline, pictures))
    return [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]


def _pixels(pipeline: InferencePipeline, pictures: np.ndarray) -> np.ndarray:
    """Pictures as uint8; those of a model that came without a range of its own have 0 to 1."""
    pixels = np.asarray(pipeline.postprocess_fn(pictures))
    return pixels if pixels.dtype == np.uint8 else denormalize_images(pixels, (0.0, 1.0))


def pictures_as_png(pipeline: InferencePipeline, pictures: np.ndarray) -> bytes:
    """One PNG of a model's pictures [rows, H, W, C]: a single one as it is, several as a grid."""
    pixels = _pixels(pipeline, pictures)
    if len(pixels) == 1:
        return encode_png(pixels[0])
    grid = PictureGrid(pixels.shape)
    grid.add(pixels)
    return encode_png(grid.canvas)
