import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifex.cli.plot import Curve, check_curve, save_curve
from artifex.generative_models.core.errors import InputError, OutputError

CURVE = Curve(
    "encode",
    batch_sizes=[1, 8, 64],
    rows_per_second=[100, 700, 1500],
    low=[90, 650, 1400],
    high=[110, 750, 1600],
    latency_ms=[1, 1.5, 4],
    attainable=[1000, 2000, 2000],
)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def draw(name: str, *curves: Curve, **settings: Any) -> np.ndarray:
    save_curve(Path(name), curves, title="model on device", **settings)
    return pixels(Path(name))


def colors(picture: np.ndarray) -> set[tuple[int, ...]]:
    """The colours that many pixels have, paper and greys left out."""
    numbers = (picture.astype(np.int64) @ [1 << 16, 1 << 8, 1]).reshape(-1)  # quicker told apart than rows
    values, counts = np.unique(numbers, return_counts=True)
    many = (tuple(value.to_bytes(3)) for value in values[counts > 500].tolist())
    return {color for color in many if max(color) - min(color) > 60}


def test_a_curve_is_drawn_on_both_sides(folder: Path):
    picture = draw("curve.png", CURVE)
    assert picture.shape == (800, 1760, 3)
    assert (picture[0] == 255).all()
    (blue,) = colors(picture)
    drawn = (picture == blue).all(axis=2)
    left, right = drawn[150:620, :880], drawn[150:620, 880:]  # the legend left out
    assert left.sum() > 500
    assert right.sum() > 500
    assert [path.name for path in folder.iterdir()] == ["curve.png"]


def test_every_curve_has_a_colour_of_its_own():
    others = [replace(CURVE, label=f"other {i}", rows_per_second=[i, 2 * i, 3 * i]) for i in (200, 300, 400)]
    assert len(colors(draw("curve.png", CURVE, *others))) == 4


def test_what_is_chosen_is_marked_on_both_sides():
    differs = (draw("a.png", CURVE) != draw("b.png", CURVE, chosen={"encode": 8})).any(axis=2)[:620]
    assert differs[:, :880].any()
    assert differs[:, 880:].any()


def test_the_roofline_is_drawn_where_it_is_known():
    unknown = replace(CURVE, attainable=[None] * 3)
    differs = (draw("a.png", CURVE) != draw("b.png", unknown)).any(axis=2)[150:620]
    assert differs[:, :880].any()
    assert not differs[:, 880:].any()


def test_one_batch_size_is_enough():
    single = Curve("encode", [3], [100], [90], [110], [1], [1000])
    known, unknown = draw("a.png", single), draw("b.png", replace(single, attainable=[None]))
    for picture in (known, unknown):
        colored = (np.ptp(picture.astype(int), axis=2) > 60)[150:620]
        assert colored[:, :880].any()
        assert colored[:, 880:].any()
    assert (known != unknown)[150:620].any()


def test_many_batch_sizes_keep_their_ticks_apart():
    sizes = range(16, 257, 16)
    ones = [1.0] * len(sizes)
    many = Curve("encode", sizes, ones, ones, ones, ones, ones)
    few = replace(
        many,
        batch_sizes=[*sizes][:1] + [*sizes][-1:],
        **dict.fromkeys(("rows_per_second", "low", "high", "latency_ms", "attainable"), [1.0] * 2),
    )
    below = slice(640, 672)  # the ticks' labels
    assert (draw("a.png", many)[below] < 200).sum() < 4 * (draw("b.png", few)[below] < 200).sum()


def test_a_failure_leaves_the_earlier_plot(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Path("curve.png").write_bytes(b"earlier")

    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space") as caught:
        save_curve(Path("curve.png"), [CURVE], title="")
    assert caught.value.filename == "curve.png"
    assert Path("curve.png").read_bytes() == b"earlier"
    assert [path.name for path in folder.iterdir()] == ["curve.png"]


def test_a_plot_that_can_be_written_leaves_no_trace_before(folder: Path):
    Path("old.png").write_bytes(b"earlier")
    check_curve(Path("old.png"))
    check_curve(Path("new/curve.png"))
    assert Path("old.png").read_bytes() == b"earlier"
    assert sorted(path.name for path in folder.rglob("*")) == ["new", "old.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("curve.jpg", InputError, "curve.jpg: expected a .png, got '.jpg'"),
        ("curve", InputError, "curve: expected a .png, got ''"),
        ("folder.png", OutputError, "folder.png is a folder"),
        ("file/curve.png", FileExistsError, "file"),
        ("/proc/curve.png", OSError, "/proc/curve.png.partial"),
    ],
)
def test_impossible_plots_are_refused(name: str, error: type[Exception], message: str):
    Path("folder.png").mkdir()
    Path("file").touch()
    with pytest.raises(error, match=message):
        check_curve(Path(name))


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutputError, match=r"a plot needs matplotlib: pip install 'artifex\[plot\]'"):
        check_curve(Path("curve.png"))
