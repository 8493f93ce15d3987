from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from artifex.cli import app
from artifex.cli.outputs import open_output
from artifex.generative_models.core.errors import InputError

FailingCli = Callable[..., str]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pngs_keep_every_channel(folder: Path, channels: int, mode: str):
    pictures = np.random.default_rng(0).integers(0, 256, (1, 4, 6, channels), np.uint8)
    with open_output("out.png", pictures.shape, job={}) as output:
        output.write(pictures)
    image = Image.open("out.png")
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image).reshape(pictures.shape), pictures)


def test_pngs_of_two_channels_are_refused():
    with pytest.raises(InputError, match="2 channels"):
        open_output("out.png", (1, 4, 6, 2), job={})


def test_failure_leaves_the_earlier_grid(folder: Path):
    Path("out.png").write_bytes(b"earlier")
    with pytest.raises(RuntimeError), open_output("out.png", (1, 4, 6, 1), job={}):
        raise RuntimeError
    assert Path("out.png").read_bytes() == b"earlier"
    assert [path.name for path in folder.iterdir()] == ["out.png"]


@pytest.mark.parametrize("name", ["file/out.png", "file/out.npy", "file/folder", "file/"])
def test_unwritable_output_says_one_line(model: Path, failing_cli: FailingCli, name: str):
    Path("file").write_bytes(b"")
    assert failing_cli("generate", model, "-n", 1, "-o", name).startswith("file")


@pytest.mark.parametrize("name", ["/proc/out.png", "/proc/out.npy", "/proc/folder"])
def test_unwritable_folder_says_one_line(model: Path, failing_cli: FailingCli, name: str):
    assert failing_cli("generate", model, "-n", 1, "-o", name).startswith(name)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "out.jpg"], "out.jpg: expected a .png, a .npy or a folder"),
        (["-o", "out.png", "--resume"], "out.png: --resume needs a .npy output"),
        (["-o", "folder", "--resume"], "folder: --resume needs a .npy output"),
        (["-o", "full"], "full is not empty"),
        (["-o", "out.npy", "--scale", "2"], "out.npy: --scale is for a .png grid"),
        (["-o", "out/", "--scale", "2"], "out/: --scale is for a .png grid"),
        (["-o", "out.png", "-n", "900", "--scale", "64"], "out.png: a grid of 900 pictures"),
        (["-o", "out.png", "-n", "2000000"], "out.png: a grid of 2,000,000 pictures"),
        (["-o", "out.npy", "-n", str(10**15)], "out.npy.partial: "),
        (["--devices", "9"], "num_devices: expected 1 to 2"),
    ],
)
def test_impossible_output_says_one_line(model: Path, failing_cli: FailingCli, args: list[str], message: str):
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert failing_cli("generate", model, *args).startswith(message)
    assert not list(Path().glob("out*"))


@pytest.mark.parametrize("command", ["generate", "decode", "reconstruct", "interpolate"])
def test_scales_out_of_range_are_usage_errors(model: Path, command: str):
    for scale in ("0", "-1", "65", "1.5"):
        result = CliRunner().invoke(app, [command, str(model), "a", "b", "--scale", scale])
        assert result.exit_code == 2
        assert "--scale" in result.stderr


def test_words_beside_pictures_have_room(folder: Path):
    pictures = np.zeros((1, 8, 4, 1), np.uint8)
    widths = []
    for scale in (1, 3):
        with open_output("x.png", pictures.shape, job={}, scale=scale, labels=("above", "below")) as output:
            output.write(pictures)
        with Image.open("x.png") as picture:
            widths.append(picture.width)
    assert widths[0] == 4
    assert widths[1] > 12
