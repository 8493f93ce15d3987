import io
import math
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import TIMEOUT

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import denormalize_images, normalize_images
from artifex.generative_models.inference.images import (
    PictureGrid,
    decode_ahead,
    decode_picture,
    encode_png,
    taking_uint8,
    to_pillow,
)

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
RANGES = [(-1.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("image_range", RANGES)
def test_every_level_round_trips(image_range: tuple[float, float]) -> None:
    low, high = image_range
    values = normalize_images(LEVELS, image_range)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == image_range
    # Two roundings of float32, each at most 2^-24 of a value of at most 2.
    np.testing.assert_allclose(values, low + (high - low) * (LEVELS / 255), rtol=0, atol=2**-22)
    np.testing.assert_array_equal(denormalize_images(values, image_range), LEVELS)


def test_the_range_is_minus_one_to_one_unless_told() -> None:
    np.testing.assert_array_equal(normalize_images(LEVELS), normalize_images(LEVELS, (-1.0, 1.0)))
    np.testing.assert_array_equal(denormalize_images(normalize_images(LEVELS)), LEVELS)


@pytest.mark.parametrize("image_range", RANGES)
@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        (-1e6, 0),
        (-0.6, 0),
        (-0.4, 0),
        (0.4, 0),
        (0.6, 1),
        (99.6, 100),
        (254.6, 255),
        (255.6, 255),
        (1e6, 255),
    ],
)
def test_pictures_are_rounded_and_clipped(
    image_range: tuple[float, float], level: float, wanted: int
) -> None:
    low, high = image_range
    images = np.full((1, 2, 2, 1), low + (high - low) * level / 255, np.float32)
    assert np.unique(denormalize_images(images, image_range)) == wanted
    assert denormalize_images(images, image_range).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_pass_through(dtype: type) -> None:
    images = np.linspace(-3, 3, 16, dtype=dtype).reshape(1, 4, 4, 1)
    assert normalize_images(images) is images


COLOURS = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4) + np.uint8(90)  # H, W, C


def file_of(picture: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = to_pillow(picture)
    (image if mode is None else image.convert(mode)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_round_trips(channels: int) -> None:
    picture = COLOURS[..., :channels]
    found = decode_picture(encode_png(picture), picture.shape)
    np.testing.assert_array_equal(found, picture, strict=True)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_the_usual_files_are_read_from_bytes_and_from_disk(kind: str, tmp_path: Path) -> None:
    flat = np.full((5, 7, 3), 128, np.uint8)  # which even JPEG keeps
    contents = file_of(flat, kind)
    (tmp_path / "picture").write_bytes(contents)
    for file in (contents, tmp_path / "picture"):
        np.testing.assert_array_equal(decode_picture(file, (5, 7, 3)), flat)


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("L", "BMP")])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_mode_of_colours_becomes_that_of_the_model(mode: str, kind: str, channels: int) -> None:
    grey = np.zeros((5, 7, 1), np.uint8)
    grey[2:] = 255
    found = decode_picture(file_of(grey, kind, mode), (5, 7, channels))
    wanted = np.repeat(grey, channels, axis=-1)
    if channels == 4:
        wanted[..., 3] = 255
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "EPS", "PDF", "TGA", "ICO"])
def test_strangers_send_the_usual_files_only(kind: str) -> None:
    with pytest.raises(InputError, match=r"^picture: not a picture that can be read: unknown format$"):
        decode_picture(file_of(COLOURS[..., :3], kind), (5, 7, 3))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size, and has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not a picture that can be read: unknown format"),
        (b"picture", "not a picture that can be read: unknown format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 5\n", "unknown format"),
        (encode_png(COLOURS)[:30], "not a picture that can be read"),
        (encode_png(COLOURS)[:50], "not a picture that can be read"),
        (bomb(7, 5), "not a picture that can be read"),
        (bomb(10_000, 10_000), "more than 89,478,485 pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "more than 89,478,485 pixels"),
        (bomb(7, 6), "7 x 6 pixels where the model takes 7 x 5"),
        (bomb(5, 7), "not a picture that can be read"),
    ],
    ids=[
        "empty",
        "text",
        "EPS",
        "a header",
        "cut",
        "no pixels",
        "bomb",
        "larger bomb",
        "high",
        "on its side",
    ],
)
@pytest.mark.parametrize("resize", [False, True])
def test_what_is_no_picture_is_refused_by_name(contents: bytes, message: str, resize: bool) -> None:
    if resize and "where the model takes" in message:
        message = "not a picture that can be read"
    with pytest.raises(InputError, match=f"^x: row 3: .*{message}") as caught:
        decode_picture(contents, (5, 7, 4), name="x: row 3", resize=resize)
    assert "0x" not in str(caught.value)  # the address of a buffer


def test_a_picture_is_resized_only_if_asked() -> None:
    half = np.zeros((10, 14, 1), np.uint8)
    half[:, 7:] = 200
    with pytest.raises(InputError, match="14 x 10 pixels where the model takes 7 x 5"):
        decode_picture(encode_png(half), (5, 7, 1))
    found = decode_picture(encode_png(half), (5, 7, 1), resize=True)
    assert found.shape == (5, 7, 1)
    assert np.abs(found[:, :1].astype(int)).max() <= 1
    assert np.abs(found[:, 6:].astype(int) - 200).max() <= 1


def test_missing_files_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_picture(tmp_path / "none.png", (5, 7, 1))
    with pytest.raises(IsADirectoryError):
        decode_picture(tmp_path, (5, 7, 1))


@pytest.mark.parametrize(
    ("columns", "size"), [(3, (2, 3)), (1, (5, 1)), (5, (1, 5)), (7, (1, 7)), (None, (2, 3))]
)
@pytest.mark.parametrize("chunks", [[5], [2, 3], [1] * 5])
def test_pictures_stand_on_a_grid_row_by_row(
    columns: int | None, size: tuple[int, int], chunks: list[int]
) -> None:
    pictures = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    grid = PictureGrid(pictures.shape, columns, scale=1)
    for part in np.split(pictures, np.cumsum(chunks)[:-1]):
        grid.add(part)
    assert grid.canvas.shape == (6 * size[0] - 2, 6 * size[1] - 2, 3)
    wanted = np.full_like(grid.canvas, 255)
    for i, picture in enumerate(pictures):
        top, left = 6 * (i // size[1]), 6 * (i % size[1])
        wanted[top : top + 4, left : left + 4] = picture
    np.testing.assert_array_equal(grid.canvas, wanted)


@pytest.mark.parametrize(
    ("shape", "aspect"), [((12, 8, 8, 1), 1.4), ((30, 4, 16, 3), 1.5), ((30, 16, 4, 3), 1.5)]
)
def test_a_grid_is_about_square(shape: tuple[int, ...], aspect: float) -> None:
    height, width, _ = PictureGrid(shape).canvas.shape
    assert 1 / aspect < height / width < aspect


@pytest.mark.parametrize(
    ("shape", "columns", "scale", "width"),
    [
        ((16, 28, 28, 1), None, None, 4 * (5 * 28 + 2) - 2),  # at least 512
        ((2, 8, 8, 3), None, None, 2 * (32 * 8 + 2) - 2),
        ((4, 64, 64, 3), 4, None, 4 * (64 + 2) - 2),
        ((16, 28, 28, 1), 4, 2, 4 * (2 * 28 + 2) - 2),
        ((1, 3, 3, 1), None, None, 3),
        ((1, 3, 3, 1), None, 4, 12),
        ((2, 3, 3, 1), None, None, 2 * (86 * 3 + 2) - 2),
    ],
)
def test_small_pictures_are_shown_large(shape, columns, scale, width) -> None:
    grid = PictureGrid(shape, columns, scale=scale)
    pictures = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    grid.add(pictures)
    assert grid.canvas.shape[1] == width
    times = (width + 2) // (columns or math.ceil(math.sqrt(shape[0]))) // shape[2]
    first = grid.canvas[: times * shape[1] : times, : times * shape[2] : times]
    np.testing.assert_array_equal(first, pictures[0])


def test_rows_of_a_grid_have_labels() -> None:
    plain = PictureGrid((4, 56, 28, 3), 2, scale=4)
    grid = PictureGrid((4, 56, 28, 3), 2, scale=4, labels=("original", "reconstruction"))
    margin = grid.canvas.shape[1] - plain.canvas.shape[1]
    assert margin > 40
    top, bottom = np.split(grid.canvas[: 4 * 56, :margin], 2)
    assert all((part < 128).any() for part in (top, bottom))  # words
    np.testing.assert_array_equal(grid.canvas[:, margin:], plain.canvas)


def test_a_grid_that_others_could_not_open_is_refused() -> None:
    with pytest.raises(InputError, match=r"a grid of 1,000,000 pictures is .* pixels, too large to open"):
        PictureGrid((1_000_000, 64, 64, 3))


def test_pictures_are_decoded_ahead_but_not_far_and_come_in_order() -> None:
    decoded = []

    def decode(number: int) -> np.ndarray:
        decoded.append(number)
        return np.full((2, 2, 1), number, np.uint8)

    pictures = decode_ahead(range(200), decode, picture_bytes=1 << 30)
    first = next(pictures)
    assert first[0, 0, 0] == 0
    assert len(decoded) <= 3  # of large pictures one is decoded while one waits
    assert [picture[0, 0, 0] for picture in pictures] == list(range(1, 200))


def test_a_picture_that_cannot_be_decoded_is_an_error_at_its_turn() -> None:
    def decode(number: int) -> np.ndarray:
        if number == 5:
            raise InputError("the sixth")
        return np.full((2, 2, 1), number, np.uint8)

    pictures = decode_ahead(range(20), decode, picture_bytes=4)
    assert [next(pictures)[0, 0, 0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="the sixth"):
        next(pictures)


def test_decoding_ends_with_its_consumer() -> None:
    begun = threading.Event()
    goes_on = threading.Event()
    decoded = []

    def decode(number: int) -> np.ndarray:
        begun.set()
        assert goes_on.wait(TIMEOUT)
        decoded.append(number)
        return np.zeros((2, 2, 1), np.uint8)

    pictures = decode_ahead(range(1000), decode, picture_bytes=1 << 30)
    reader = threading.Thread(target=lambda: next(pictures))
    reader.start()
    assert begun.wait(TIMEOUT)
    goes_on.set()
    reader.join()
    pictures.close()
    assert len(decoded) <= 3


def test_pictures_alone_take_uint8() -> None:
    specs = {
        "x": TensorSpec((4, 4, 3), np.float32),
        "mask": TensorSpec((4, 4, 1), np.uint8),
        "z": TensorSpec((4,), np.float32),
        "temperature": TensorSpec((), np.float32, default=1.0),
    }
    endpoint = Endpoint(lambda model, keys, inputs: inputs, specs)
    inputs = taking_uint8({"run": endpoint}, (-1.0, 1.0))["run"].inputs
    assert {name: spec.image_range for name, spec in inputs.items()} == {
        "x": (-1.0, 1.0),
        "mask": None,
        "z": None,
        "temperature": None,
    }


def saved(image, path, **settings):
    image.save(path, **settings)
    return path


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.array([[0, 257], [32896, 65535]], np.uint16)
    path = saved(Image.fromarray(levels), tmp_path / "x.png")
    np.testing.assert_array_equal(decode_picture(path, (2, 2, 1))[..., 0], [[0, 1], [128, 255]])
    np.testing.assert_array_equal(decode_picture(path, (2, 2, 3))[..., 2], [[0, 1], [128, 255]])


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"floating-point pixels have no range; pass a \.npy array"):
        decode_picture(path, (2, 2, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_turned_as_their_camera_says(tmp_path, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # counter-clockwise, from upright to how it is stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(
        Image.fromarray(np.ascontiguousarray(np.rot90(upright, turns))), tmp_path / "x.png", exif=exif
    )
    np.testing.assert_array_equal(decode_picture(path, (2, 3, 1))[..., 0], upright)
    with pytest.raises(InputError, match="3 x 2 pixels where the model takes 2 x 3"):
        decode_picture(path, (3, 2, 1))


@pytest.mark.parametrize(
    ("shape", "settings", "size"),
    [
        ((16, 28, 28, 1), {}, (5 * 4 * 28 + 6, 5 * 4 * 28 + 6)),
        ((16, 64, 64, 3), {}, (4 * 64 + 6, 4 * 64 + 6)),
        ((2, 8, 8, 1), {"scale": 3, "columns": 2}, (24, 50)),
    ],
)
def test_small_pictures_make_large_grids(shape, settings, size):
    grid = PictureGrid(shape, **settings)
    grid.add(np.zeros(shape, np.uint8))
    assert grid.canvas.shape[:2] == size


def test_rows_of_a_grid_are_labelled():
    grid = PictureGrid((2, 16, 8, 1), 2, labels=("original", "reconstruction"))
    grid.add(np.zeros((2, 16, 8, 1), np.uint8))
    margin = grid.canvas[:, : grid.canvas.shape[1] - 2 * 8 * 32 - 2, 0]
    dark = (margin < 128).any(axis=1)
    half = len(dark) // 2
    assert dark[:half].any()
    assert dark[half:].any()


def test_a_grid_is_no_wider_than_its_pictures() -> None:
    for count, width in ((1, 4), (2, 10)):
        assert PictureGrid((count, 40, 4, 1), scale=1).canvas.shape == (40, width, 1)
