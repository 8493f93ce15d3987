"""Samples beside real pictures, and figures of quality with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.cli.outputs import save_png
from artifex.cli.plot import GREY, INK, matplotlib_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from artifex.generative_models.inference.measure.quality import Measure

COLUMNS, ROWS = 6, 8  # pictures of each grid
_SHARES = ("precision", "recall", "accuracy", "ssim")  # figures that are at most 1
_BLUE, _PALE = "#2563eb", "#e4e4e7"
_GAP = 0.12  # of a picture, between two


def save_quality(
    path: Path,
    found: Sequence[Measure],
    real: NDArray[np.uint8],
    drawn: NDArray[np.uint8] | None,
    *,
    title: str,
    note: str = "",
) -> None:
    """Draws some real pictures, some samples beside them, and the figures on the right, as a PNG.

    Figures that are shares have a bar from 0 to 1, and a line over their interval.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        found: The figures.
        real: Pictures [pictures, H, W, C].
        drawn: Samples [samples, H, W, C]; None where the model draws none.
        title: Above the plot.
        note: Below the title, in grey.

    Raises:
        OutputError: Matplotlib is not installed.
        OSError: The file cannot be written.
    """
    canvas_class, figure_class, _ = matplotlib_parts()
    figure = figure_class(figsize=(13, 6), dpi=140, facecolor="white")
    canvas = canvas_class(figure)
    grids = {"real": real, **({} if drawn is None else {"drawn": drawn})}
    width = 0.24
    for number, (name, pictures) in enumerate(grids.items()):
        axes = figure.add_axes((0.03 + number * (width + 0.02), 0.03, width, 0.78))
        axes.imshow(_grid(pictures), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_anchor("NW")
        axes.set_axis_off()
        axes.set_title(name, loc="left", fontsize=11, color=INK)
    left = 0.05 + len(grids) * (width + 0.02)
    _figures(figure.add_axes((left, 0.05, 0.98 - left, 0.79)), found)
    figure.text(0.03, 0.945, title, fontsize=14, fontweight="bold", color=INK, va="center")
    figure.text(0.03, 0.895, note, fontsize=9, color=GREY, va="center")
    canvas.draw()
    save_png(path, np.asarray(canvas.buffer_rgba())[..., :3])


def _figures(axes: Any, found: Sequence[Measure]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(found) - 0.5, -1)
    right = {"ha": "right", "va": "center", "fontsize": 9.5}
    columns = {0.5: "value", 0.74: "95 % interval"}
    for x, words in columns.items():
        axes.text(x, -0.75, words, color=GREY, **{**right, "fontsize": 9})
    for y, one in enumerate(found):
        axes.axhline(y - 0.42, color=_PALE, linewidth=0.8)
        axes.text(0, y, one.name.replace("_", " "), va="center", fontsize=10, color=INK)
        axes.text(0.5, y, f"{one.value:.4g}", color=INK, fontweight="bold", **right)
        axes.text(0.74, y, f"{one.low:.4g} to {one.high:.4g}", color=GREY, **right)
        if one.name in _SHARES:
            start, span = 0.78, 0.22
            axes.barh(y, span, 0.3, left=start, color=_PALE)
            axes.barh(y, span * max(one.value, 0), 0.3, left=start, color=_BLUE)
            ends = [start + span * max(end, 0) for end in (one.low, one.high)]
            axes.plot(ends, [y, y], color=INK, linewidth=2, solid_capstyle="butt")


def _grid(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures in rows and columns on white; of two channels or of more than three, the first alone."""
    pictures = pictures[: COLUMNS * ROWS]
    pictures = pictures if pictures.shape[-1] == 3 else pictures[..., :1]
    count, height, width, channels = pictures.shape
    gap = max(1, round(_GAP * min(height, width)))
    rows = -(-count // COLUMNS)
    canvas = np.full((rows * (height + gap), COLUMNS * (width + gap), channels), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (height + gap) * (i // COLUMNS), (width + gap) * (i % COLUMNS)
        canvas[top : top + height, left : left + width] = picture
    return canvas[: canvas.shape[0] - gap, : canvas.shape[1] - gap]
