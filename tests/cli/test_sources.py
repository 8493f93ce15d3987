import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from artifex.cli import app
from artifex.generative_models.inference.offline.sources import ArrayFile, open_picture, open_pictures

FailingCli = Callable[..., str]
GREY, COLOUR = (8, 8, 1), (8, 8, 3)


def read(*paths: str, shape: tuple[int, ...] = GREY, resize: bool = False) -> np.ndarray:
    pictures = open_pictures([Path(path) for path in paths], shape, resize=resize)
    return np.stack([row.reshape(shape) for row in pictures.rows()])


@pytest.fixture
def files(small: np.ndarray, folder: Path) -> np.ndarray:
    """Ten pictures in a folder, named so that their order is not that of writing."""
    Path("pictures").mkdir()
    for number in reversed(range(10)):
        Image.fromarray(small[number, ..., 0]).save(f"pictures/{number}.png")
    return small[:10]


def test_folder_in_the_order_of_names(files: np.ndarray):
    np.testing.assert_array_equal(read("pictures"), files)


def test_files_and_folders_in_the_order_given(files: np.ndarray):
    pictures = read("pictures/7.png", "pictures", "pictures/0.png")
    np.testing.assert_array_equal(pictures, files[[7, *range(10), 0]])


def test_rows_begin_anywhere_without_reading_what_is_before(files: np.ndarray):
    pictures = open_pictures([Path("pictures")], GREY)
    Path("pictures/2.png").write_bytes(b"broken")
    np.testing.assert_array_equal(np.concatenate(list(pictures.rows(3))), files[3:])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("shape", [GREY, COLOUR, (8, 8, 4)])
def test_any_mode_becomes_the_models_channels(files: np.ndarray, mode: str, shape: tuple[int, ...]):
    picture = Image.fromarray(np.repeat(files[0] // 128 * 255, 3, axis=-1)).convert(mode)
    picture.save("picture.tiff")
    expected = np.broadcast_to(files[0] // 128 * 255, COLOUR)
    np.testing.assert_array_equal(read("picture.tiff", shape=shape)[0][..., :3], expected[..., : shape[-1]])


def test_resize_scales_other_sizes(folder: Path):
    Image.new("L", (30, 20), 77).save("wide.png")
    np.testing.assert_array_equal(read("wide.png", resize=True), np.full((1, *GREY), 77))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_memory_mapped_unless_compressed(small: np.ndarray, save: Callable[..., None], order: str):
    save("digits.npz", labels=np.arange(70), images=small.copy(order))
    pictures = open_pictures([Path("digits.npz")], GREY)
    assert isinstance(pictures, ArrayFile)
    assert isinstance(pictures.array, np.memmap) == (save is np.savez)
    np.testing.assert_array_equal(pictures.array, small)


def test_npy_is_memory_mapped(small: np.ndarray):
    np.save("digits.npy", small)
    pictures = open_pictures([Path("digits.npy")], GREY)
    assert isinstance(pictures.rows(5), np.memmap)
    np.testing.assert_array_equal(pictures.rows(5), small[5:])


def test_grey_arrays_may_lack_the_channel_axis(small: np.ndarray):
    np.save("digits.npy", small[..., 0])
    np.testing.assert_array_equal(read("digits.npy"), small)


def test_a_row_of_an_array_is_a_picture(small: np.ndarray):
    np.save("digits.npy", small)
    np.testing.assert_array_equal(open_picture("digits.npy:3", GREY), small[3])
    np.testing.assert_array_equal(open_picture("digits.npy", GREY), small[0])


def test_identity_changes_with_the_files(files: np.ndarray):
    before = open_pictures([Path("pictures")], GREY).identity()
    assert open_pictures([Path("pictures")], GREY).identity() == before
    Image.fromarray(255 - files[4, ..., 0]).save("pictures/4.png")
    assert open_pictures([Path("pictures")], GREY).identity() != before


@pytest.fixture(scope="module")
def broken_inputs(tmp_path_factory: pytest.TempPathFactory, small: np.ndarray) -> Path:
    """A folder with every bad input of the table below."""
    folder = tmp_path_factory.mktemp("broken")
    with contextlib.chdir(folder):
        make_broken_inputs(small)
    return folder


def make_broken_inputs(small: np.ndarray) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save("good.png")
    Path("truncated.png").write_bytes(Path("good.png").read_bytes()[:60])
    Path("text.png").write_text("not a picture")
    Path("empty.png").touch()
    Image.new("L", (9, 8)).save("wide.png")
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    Image.new("1", (11_000, 11_000)).save("large.png")
    Path("none").mkdir()
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("objects.npz", np.array([{}]), allow_pickle=True)
    np.save("good.npy", small)
    whole = Path("good.npy").read_bytes()
    Path("truncated.npy").write_bytes(whole[:1000])
    Path("lying.npy").write_bytes(whole.replace(b"(70, 8, 8, 1)", b"(7**9, 8,8,1)"))
    Path("long.npy").write_bytes(whole.replace(b"(70, 8, 8, 1)", b"(99999, 8, 8)"))
    Path("negative.npy").write_bytes(whole.replace(b"(70, 8, 8, 1)", b"(-70, 8, 8, )"))
    Path("empty.npy").touch()
    Path("text.npz").write_text("not a zip file")
    np.savez("two.npz", a=small, b=small)
    np.savez("long.npz", small)
    Path("long.npz").write_bytes(Path("long.npz").read_bytes().replace(b"(70, 8, 8, 1)", b"(9999999,8,8)"))
    np.savez_compressed("corrupt.npz", small)
    corrupt = bytearray(Path("corrupt.npz").read_bytes())
    corrupt[500:600] = bytes(100)
    Path("corrupt.npz").write_bytes(corrupt)
    np.save("shape.npy", small[:, :7])
    np.save("ints.npy", small.astype(np.int64))
    np.save("no_rows.npy", small[:0])
    nan = small.astype(np.float32) / 255
    nan[41] = np.nan
    np.save("nan.npy", nan)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("missing.png", "missing.png: No such file or directory"),
        ("missing.npy", "missing.npy: No such file or directory"),
        ("missing.npz", "missing.npz: No such file or directory"),
        ("none", "none: no pictures in this folder"),
        ("truncated.png", "truncated.png: not a picture that can be read"),
        ("good.png truncated.png", "truncated.png: not a picture that can be read"),
        ("text.png", "text.png: not a picture that can be read"),
        ("empty.png", "empty.png: not a picture that can be read"),
        ("wide.png", "wide.png: 9 x 8 pixels where the model takes 8 x 8; the option to resize scales it"),
        ("--resize bomb.png", "bomb.png: more than 89,478,485 pixels"),
        ("--resize large.png", "large.png: more than 89,478,485 pixels"),
        ("objects.npy", "objects.npy: not an array that can be read"),
        ("objects.npz", "objects.npz: "),
        ("truncated.npy", "truncated.npy: not an array that can be read"),
        ("lying.npy", "lying.npy: not an array that can be read"),
        ("long.npy", "long.npy: not an array that can be read"),
        ("negative.npy", "negative.npy: not an array that can be read"),
        ("empty.npy", "empty.npy: not an array that can be read"),
        ("text.npz", "text.npz: not an array that can be read"),
        ("two.npz", "two.npz: expected one array, or one named 'images'; it has a, b"),
        ("long.npz", "long.npz: not an array that can be read"),
        ("corrupt.npz", "corrupt.npz: not an array that can be read"),
        ("shape.npy", "shape.npy: expected shape [rows, 8, 8, 1], got [70, 7, 8, 1]"),
        ("ints.npy", "ints.npy: expected uint8 pictures"),
        ("no_rows.npy", "no_rows.npy: expected shape [rows, 8, 8, 1], got [0, 8, 8, 1]"),
        ("nan.npy", "encode: x: row 41 has a NaN or infinite value"),
        ("good.npy good.png", "expected either one .npy or .npz array or picture files"),
    ],
)
def test_bad_input_says_one_line(
    model: Path, broken_inputs: Path, failing_cli: FailingCli, paths: str, message: str
):
    shutil.copytree(broken_inputs, ".", dirs_exist_ok=True)
    before = sorted(Path().iterdir())
    assert failing_cli("encode", model, *paths.split(), "-o", "latents.npy").startswith(message)
    assert [path for path in sorted(Path().iterdir()) if ".partial" not in path.name] == before


def put_other_things_in(folder: Path) -> None:
    for name in ("._0.png", ".DS_Store", "a.tif", "b.tif", "README"):
        (folder / name).write_bytes(b"no picture")
    for name in ("x.png", "more"):
        (folder / name).mkdir()


LEFT_OUT = "pictures: 10 pictures; left out: 2 .tif, 2 folders, 2 hidden, 1 without a suffix"


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_what_a_folder_leaves_out_is_said_in_one_line(files: np.ndarray, model: Path, command: str):
    put_other_things_in(Path("pictures"))
    np.testing.assert_array_equal(read("pictures"), files)
    result = CliRunner().invoke(app, [command, str(model), "pictures", "-o", "x.npy"])
    assert result.exit_code == 0
    assert result.stderr == f"artifex: warning: {LEFT_OUT}\n"


def test_a_folder_without_pictures_tells_what_is_there(model: Path, failing_cli: FailingCli):
    Path("pictures").mkdir()
    put_other_things_in(Path("pictures"))
    said = failing_cli("encode", model, "pictures")
    assert said.endswith("there are 2 .tif, 2 folders, 2 hidden, 1 without a suffix")


def test_a_job_goes_on_when_its_broken_file_is_mended(
    files: np.ndarray, model: Path, cli: Callable[..., str], failing_cli: FailingCli
):
    args = ("encode", model, "pictures", "--batch-size", 1)
    cli(*args, "-o", "whole.npy")
    Path("pictures/9.png").write_bytes(b"broken")
    said = failing_cli(*args, "-o", "x.npy")
    assert said.startswith("pictures/9.png: not a picture that can be read")
    assert "rows are kept in x.npy.partial" in said
    Image.fromarray(files[9, ..., 0]).save("pictures/9.png")
    facts = json.loads(cli(*args, "-o", "x.npy", "--resume", "--json"))
    assert facts["resumed_at"] > 0
    assert Path("x.npy").read_bytes() == Path("whole.npy").read_bytes()


def test_a_job_does_not_go_on_when_a_file_that_is_done_changed(
    files: np.ndarray, model: Path, failing_cli: FailingCli
):
    args = ("encode", model, "pictures", "--batch-size", 1, "-o", "x.npy")
    Path("pictures/9.png").write_bytes(b"broken")
    failing_cli(*args)
    Image.fromarray(255 - files[0, ..., 0]).save("pictures/0.png")
    assert "cannot resume x.npy: images was" in failing_cli(*args, "--resume")
    Path("pictures/9.png").unlink()
    assert "cannot resume x.npy: images was" in failing_cli(*args, "--resume")


@pytest.fixture
def parquet(files: np.ndarray) -> Path:
    """The pictures in two parts, an empty one between them and what others keep beside them."""
    Path("parts/.hidden").mkdir(parents=True)
    Path("parts/.hidden/a.parquet").write_bytes(b"none of ours")
    contents = [Path(f"pictures/{i}.png").read_bytes() for i in range(10)]
    parts = {"a": contents[:4], "b": [], "c": contents[4:]}
    for name, part in parts.items():
        kind = pa.binary() if part else pa.null()
        pq.write_table(pa.table({"image": pa.array(part, kind)}), f"parts/{name}.parquet")
    return Path("parts")


def test_parquet_files_are_read_as_they_are(
    files: np.ndarray, parquet: Path, model: Path, cli: Callable[..., str], failing_cli: FailingCli
):
    np.testing.assert_array_equal(np.concatenate(list(open_pictures([parquet], GREY).rows())), files)
    np.save("x.npy", files)
    for paths in (["x.npy"], ["parts"], ["parts/a.parquet", "parts/c.parquet"]):
        cli("encode", model, *paths, "-o", f"{len(paths[0])}.npy")
    assert Path("5.npy").read_bytes() == Path("15.npy").read_bytes()
    cli("reconstruct", model, "parts", "-o", "x.png")
    np.testing.assert_array_equal(open_picture("parts/c.parquet:2", GREY), files[6])
    np.testing.assert_array_equal(open_picture("parts", GREY), files[0])
    said = failing_cli("encode", model, "parts", "--column", "picture")
    assert said == "parts/a.parquet: no column 'picture'; it has image"
    assert "either Parquet files or other pictures" in failing_cli("encode", model, "parts", "pictures")


def test_parquet_needs_what_reads_it(
    parquet: Path, model: Path, failing_cli: FailingCli, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(
        sys.modules, "artifex.generative_models.inference.offline.parquet_pictures", raising=False
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = failing_cli("encode", model, "parts/a.parquet")
    assert said == "pyarrow is not installed: pip install 'artifex[parquet]'"
