"""Curves of throughput and latency against batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.cli.outputs import save_png
from artifex.generative_models.core.errors import InputError, OutputError

if TYPE_CHECKING:
    from artifex.generative_models.inference.measure.endpoints import ModelBenchmark

_COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#db2777")
_MAX_TICKS = 9
INK, GREY = "#18181b", "#71717a"


Point = tuple[int, float, float, float, float, float | None]


@dataclass(frozen=True)
class Curve:
    """One endpoint at several batch sizes, each list as long as `batch_sizes`.

    Args:
        label: Name of the endpoint.
        batch_sizes: Rows a batch, rising.
        rows_per_second: Throughput.
        low: Lower bounds of the throughput.
        high: Upper bounds of it.
        latency_ms: Of one batch, in milliseconds.
        attainable: Rows a second that the machine's ceilings allow; None where it is not known.
    """

    label: str
    batch_sizes: Sequence[int]
    rows_per_second: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    latency_ms: Sequence[float]
    attainable: Sequence[float | None]

    @staticmethod
    def of(label: str, points: Iterable[Point]) -> Curve:
        """A curve from the values at each batch size, in the order of the fields."""
        columns: Any = zip(*points, strict=True)
        return Curve(label, *columns)


def curves_of(benchmark: ModelBenchmark) -> list[Curve]:
    """A curve for each endpoint of a benchmark."""
    points: dict[str, list[Point]] = {}
    for row in benchmark.rows:
        rates = (row.throughput.rows_per_second, *row.throughput.interval)
        point = (row.batch_size, *rates, 1e3 * row.latency.median, row.attainable_rows_per_second)
        points.setdefault(row.endpoint, []).append(point)
    return [Curve.of(name, each) for name, each in points.items()]


def check_curve(path: Path) -> None:
    """Makes sure that `save_curve` can write a plot, before what it shows is measured.

    Raises:
        InputError: The name does not end in `.png`.
        OutputError: Matplotlib is not installed, or there is a folder of that name.
        OSError: The file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a .png, got {path.suffix!r}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; choose another name")
    matplotlib_parts()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.touch()
    partial.unlink()


def save_curve(
    path: Path,
    curves: Sequence[Curve],
    *,
    title: str,
    note: str = "",
    chosen: Mapping[str, int] | None = None,
) -> None:
    """Draws throughput on the left and latency on the right, a colour for each endpoint, as a PNG.

    Dashed lines are the rows a second that the machine's ceilings allow; bands are the bounds of the
    throughput.

    Args:
        path: The file; one that is there is replaced when the new one is whole.
        curves: What to draw.
        title: Above the plot.
        note: Below the title, in grey.
        chosen: The batch size to mark, by the curve's label.

    Raises:
        OutputError: Matplotlib is not installed.
        OSError: The file cannot be written.
    """
    canvas_class, figure_class, formatter = matplotlib_parts()
    figure = figure_class(figsize=(11, 5), dpi=160, facecolor="white")
    canvas = canvas_class(figure)
    throughput, latency = figure.subplots(1, 2)
    sizes = sorted({size for curve in curves for size in curve.batch_sizes})
    for i, curve in enumerate(curves):
        style = {"color": _COLORS[i % len(_COLORS)], "solid_capstyle": "round"}
        line = {**style, "linewidth": 2, "marker": "o", "markersize": 4}
        throughput.fill_between(
            curve.batch_sizes, curve.low, curve.high, color=style["color"], alpha=0.15, lw=0
        )
        throughput.plot(curve.batch_sizes, curve.rows_per_second, label=curve.label, **line)
        attainable = [np.nan if rate is None else rate for rate in curve.attainable]
        alone = {"marker": "_", "markersize": 14} if len(curve.batch_sizes) == 1 else {}
        throughput.plot(curve.batch_sizes, attainable, linestyle=(0, (4, 3)), linewidth=1, **style, **alone)
        latency.plot(curve.batch_sizes, curve.latency_ms, **line)
        if chosen is not None and curve.label in chosen:
            at = list(curve.batch_sizes).index(chosen[curve.label])
            for axes, values in ((throughput, curve.rows_per_second), (latency, curve.latency_ms)):
                ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 2}
                axes.plot(curve.batch_sizes[at], values[at], marker="o", color=style["color"], **ring)
    _dress(throughput, "Throughput", "rows/s", sizes, formatter)
    _dress(latency, "Latency of one batch", "ms (median)", sizes, formatter)
    rates = [rate for curve in curves for rate in (*curve.high, *curve.attainable) if rate is not None]
    throughput.set_ylim(0, 1.05 * max(rates))
    latency.set_ylim(bottom=0)
    handles, labels = throughput.get_legend_handles_labels()
    grey = {"color": GREY}
    if any(rate is not None for curve in curves for rate in curve.attainable):
        handles += throughput.plot([], [], linestyle=(0, (4, 3)), linewidth=1, **grey)
        labels.append("roofline")
    if chosen:
        handles += throughput.plot([], [], "o", markersize=9, markerfacecolor="none", **grey)
        labels.append("chosen")
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, labelcolor=INK)
    figure.text(0.065, 0.955, title, fontsize=14, fontweight="bold", color=INK, va="center")
    figure.text(0.065, 0.905, note, fontsize=9, color=GREY, va="center")
    figure.subplots_adjust(left=0.065, right=0.975, top=0.8, bottom=0.19, wspace=0.16)
    canvas.draw()
    save_png(path, np.asarray(canvas.buffer_rgba())[..., :3])


def _dress(axes: Any, title: str, unit: str, sizes: Sequence[int], formatter: Any) -> None:
    axes.set_xscale("log", base=2)
    powers = [2**n for n in range(32) if sizes[0] <= 2**n <= sizes[-1]]
    ticks = sizes if len(sizes) <= _MAX_TICKS or not powers else powers
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("batch size (rows)", color=INK)
    axes.set_title(f"{title}, {unit}", loc="left", fontsize=11, color=INK)
    axes.yaxis.set_major_formatter(formatter(lambda value, _: f"{value:,.10g}"))
    axes.tick_params(length=0, colors=GREY)
    axes.grid(axis="y", color="#e4e4e7", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#a1a1aa")


def matplotlib_parts() -> tuple[Any, Any, Any]:
    """What a plot is made of, without matplotlib's global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ModuleNotFoundError as error:
        raise OutputError("a plot needs matplotlib: pip install 'artifex[plot]'") from error
    return FigureCanvasAgg, Figure, FuncFormatter
