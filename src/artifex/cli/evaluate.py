"""`artifex evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifex.cli.options import AsJson, BatchSize, Column, Dtype, Model, Resize, Seed, Settings, setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from artifex.generative_models.inference.measure.quality import Measure
    from artifex.generative_models.inference.offline.sources import Pictures
    from artifex.generative_models.inference.pipeline import InferencePipeline


def evaluate(
    model: Model,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PICTURES",
            help="Real ones: folders, files, Parquet, or one .npy or .npz array; may be repeated. "
            "Left out: 300 test digits.",
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(metavar="MODEL", help="A model with an endpoint features or encode.")
    ] = "mnist-classifier",
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=8, help="How many to draw.")] = 1000,
    settings: Settings = [],  # noqa: B006 - typer makes a list of its own
    likelihood: Annotated[
        bool | None,
        typer.Option(
            "--likelihood/--no-likelihood",
            help="Bits a number of real pictures; if left out, unless that solves an ODE for each.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw samples beside real pictures, and the figures."),
    ] = None,
    seed: Seed = 0,
    resize: Resize = False,
    column: Column = "image",
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Measure the quality of samples and reconstructions.

    Samples and real pictures are compared by the features that another model tells them by. Compare figures
    of equal numbers of pictures, and of the same features.
    """
    from artifex.cli.benchmark import progress_on_stderr
    from artifex.cli.run import compute_dtype, load_model, use_cache
    from artifex.generative_models.inference.measure.features import FeatureModel
    from artifex.generative_models.inference.measure.quality import evaluate as measure

    if plot is not None:
        from artifex.cli.plot import check_curve

        check_curve(plot)
    use_cache()
    pipeline = load_model(model, batch_size=batch_size, dtype=compute_dtype(dtype))
    seen_by = FeatureModel(load_model(features))
    real = _digits() if not data else _pictures(data, seen_by.input_shape, resize, column)
    chosen = dict(map(setting, settings))
    with progress_on_stderr() as progress:
        found = measure(
            pipeline,
            real,
            seen_by,
            num_samples=num_samples,
            seed=seed,
            given=chosen,
            likelihood=likelihood,
            progress=progress,
        )
    facts = {
        "model": model,
        "features": features,
        "data": [str(path) for path in data or []] or "mnist_digits",
        "num_real": len(real),
        "seed": seed,
        **({"set": chosen} if chosen else {}),
    }
    if plot is not None:
        from artifex.cli.quality_plot import COLUMNS, ROWS, save_quality

        some = min(COLUMNS * ROWS, num_samples)
        title, note = f"{model}, seen by {features}", f"beside {len(real):,} real pictures"
        save_quality(
            plot, found, _first(real, COLUMNS * ROWS), _drawn(pipeline, num_samples, seed, chosen, some),
            title=title, note=note,
        )  # fmt: skip
        facts["plot"] = str(plot.absolute())
    if as_json:
        typer.echo(json.dumps({**facts, "measures": [asdict(one) for one in found]}))
    else:
        _show(facts, found)


def _first(real: Any, count: int) -> NDArray[np.uint8]:
    import numpy as np

    rows = real[:count] if isinstance(real, np.ndarray) else real.rows(0, min(count, len(real)))
    return rows if isinstance(rows, np.ndarray) else np.concatenate(list(rows))


def _drawn(
    pipeline: InferencePipeline, num_samples: int, seed: int, given: dict[str, Any], count: int
) -> NDArray[np.uint8] | None:
    """The first of the samples that were measured."""
    import numpy as np

    from artifex.generative_models.inference.measure.quality import samples

    if "generate" not in pipeline.executor.endpoints:
        return None
    return np.concatenate(list(samples(pipeline, num_samples, seed=seed, given=given, stop=count)[0]))


def _digits() -> Any:
    from artifex.cli.demo_models import digits

    return digits()[0]


def _pictures(paths: list[Path], shape: tuple[int, ...], resize: bool, column: str) -> Pictures:
    """Files of uint8 pictures, to be read a batch at a time."""
    import numpy as np

    from artifex.cli.run import say_left_out
    from artifex.generative_models.core.errors import InputTypeError
    from artifex.generative_models.inference.offline.sources import open_pictures

    opened = open_pictures(paths, shape, resize=resize, column=column)
    say_left_out(getattr(opened, "left_out", ""))
    if opened.dtype != np.uint8:
        raise InputTypeError(f"--data: expected uint8 pictures, got {opened.dtype}")
    return opened


def _show(facts: dict[str, Any], found: list[Measure]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console.print(f"{facts['model']}, seen by {facts['features']}", style="bold", soft_wrap=True)
    console.print(f"beside {facts['num_real']:,} real pictures", style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("measure", no_wrap=True)
    for column in ("", "95 % interval", "of"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for one in found:
        interval = f"{one.low:.4g} to {one.high:.4g}"
        table.add_row(one.name, f"{one.value:.4g}", interval, f"{one.num_pictures:,}", one.about)
    console.print(table)
