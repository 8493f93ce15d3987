"""Picture files to rows, and rows to a PNG."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from artifex.generative_models.core import TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.pictures import decode_pictures, pictures_as_png

KINDS = ["PNG", "BMP", "WEBP", "JPEG"]
COLOURS = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
SPEC = TensorSpec((8, 6, 3), np.float32)


def file_of(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrap",
    [bytes, base64.b64encode, lambda file: b"data:image/any;base64," + base64.b64encode(file)],
    ids=["file", "base64", "data URL"],
)
def test_any_form_of_any_kind_is_the_same_picture(kind, wrap):
    files = [file_of(picture, kind) for picture in COLOURS]
    wanted = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    if kind != "JPEG":
        np.testing.assert_array_equal(wanted, COLOURS)
    found = decode_pictures("x", [wrap(file) for file in files], SPEC)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


def test_the_row_that_is_wrong_is_named():
    good = file_of(COLOURS[0])
    for bad in (
        b"",
        b"nonsense",
        good[:40],
        b"iVBO!!!",
        b"data:image/png;base64,###",
        file_of(COLOURS[0][:4]),
    ):
        with pytest.raises(InputError, match="x: row 1"):
            decode_pictures("x", [good, bad], SPEC)
    with pytest.raises(InputError, match="at least one"):
        decode_pictures("x", [], SPEC)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_picture_is_as_it_is_and_several_are_a_grid(channels, low, high):
    def postprocess(x):
        return np.rint((x - low) / (high - low) * 255).astype(np.uint8)

    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 7, channels), np.uint8)
    rows = (pixels / np.float32(255)) * (high - low) + low
    pipeline = SimpleNamespace(postprocess_fn=postprocess)
    one = np.asarray(Image.open(io.BytesIO(pictures_as_png(pipeline, rows[:1]))))
    np.testing.assert_array_equal(one.reshape(5, 7, channels), pixels[0])
    grid = np.asarray(Image.open(io.BytesIO(pictures_as_png(pipeline, rows))))
    grid = grid.reshape(*grid.shape[:2], channels)
    height, width = 37 * 5, 37 * 7
    assert grid.shape[:2] == (2 * (height + 2) - 2, 2 * (width + 2) - 2)
    for i, picture in enumerate(pixels):  # row by row
        top, left = i // 2 * (height + 2), i % 2 * (width + 2)
        np.testing.assert_array_equal(grid[top : top + height : 37, left : left + width : 37], picture)
