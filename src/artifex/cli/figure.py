"""A figure of labelled rows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALE = 2
_GAP = 8  # pixels, all of them
_MARGIN = 48
_PANEL_GAP = 34
_TITLE_SIZE, _LABEL_SIZE = 30, 19
_INK, _GREY, _PAPER = (24, 24, 27), (125, 125, 132), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """Rows of pictures under one label.

    Args:
        label: What they are.
        note: More about it, in grey beside the label; "" is none.
        rows: Grey-level pictures [rows, columns, H, W, 1], uint8, light on dark.
    """

    label: str
    note: str
    rows: NDArray[np.uint8]


def draw_figure(title: str, note: str, panels: Sequence[Panel]) -> NDArray[np.uint8]:
    """Draws panels of equal width below each other, in dark ink on white, as a figure [H, W, 3].

    The note is in grey, beside the title above them all.
    """
    blocks = [_tile(panel.rows) for panel in panels]
    width = blocks[0].width + 2 * _MARGIN
    heights = [block.height + 2 * _LABEL_SIZE + _PANEL_GAP for block in blocks]
    height = 2 * _MARGIN + 2 * _TITLE_SIZE + sum(heights) - _PANEL_GAP
    figure = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(figure)
    _write(draw, _MARGIN, title, note, _TITLE_SIZE)
    top = _MARGIN + 2 * _TITLE_SIZE
    for panel, block, height in zip(panels, blocks, heights, strict=True):
        _write(draw, top, panel.label, panel.note, _LABEL_SIZE)
        figure.paste(block, (_MARGIN, top + 2 * _LABEL_SIZE))
        top += height
    return np.asarray(figure)


def _write(draw: ImageDraw.ImageDraw, top: int, text: str, note: str, size: int) -> None:
    font, small = ImageFont.load_default(size), ImageFont.load_default(_LABEL_SIZE * 0.85)
    baseline = top + size
    draw.text((_MARGIN, baseline), text, _INK, font, anchor="ls")
    left = _MARGIN + draw.textlength(text, font) + size * 0.6
    draw.text((left, baseline), note, _GREY, small, anchor="ls")


def _tile(rows: NDArray[np.uint8]) -> Image.Image:
    num_rows, num_columns, height, width, _ = rows.shape
    cell_height, cell_width = height * _SCALE + _GAP, width * _SCALE + _GAP
    block = Image.new("L", (num_columns * cell_width - _GAP, num_rows * cell_height - _GAP), 255)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(255 - picture[..., 0])
            tile = tile.resize((width * _SCALE, height * _SCALE), Image.Resampling.LANCZOS)
            block.paste(tile, (column * cell_width, row * cell_height))
    return block
