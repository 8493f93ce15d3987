"""`artifex tune`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from artifex.cli.benchmark import Endpoints, PlotOut, ceilings_line, progress_on_stderr
from artifex.cli.options import AsJson, Devices, Dtype, Model

if TYPE_CHECKING:
    from artifex.cli.plot import Curve
    from artifex.generative_models.inference.measure.roofline import Ceilings
    from artifex.generative_models.inference.tuning.results import Trial, TuningReport


def tune(
    model: Model,
    endpoint: Endpoints = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="The largest batch to consider.")] = 256,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="Try every combination.")] = False,
    store: Annotated[bool, typer.Option(help="Use the result from now on.")] = True,
    dtype: Dtype = None,
    devices: Devices = None,
    as_json: AsJson = False,
    plot: PlotOut = None,
) -> None:
    """Find the fastest batch size and way to run each endpoint here, and use them from now on."""
    from artifex.cli.plot import check_curve, save_curve
    from artifex.cli.run import compute_dtype, load_executor, mesh_of
    from artifex.generative_models.inference.executor.settings import powers_up_to
    from artifex.generative_models.inference.measure.roofline import machine_ceilings
    from artifex.generative_models.inference.tuning.optimize import tune as tune_endpoint

    if plot is not None:
        check_curve(plot)
    loaded = load_executor(model, None, mesh=mesh_of(devices), dtype=compute_dtype(dtype))
    names = list(dict.fromkeys(endpoint or loaded.endpoints))
    ceilings = None if plot is None else machine_ceilings()
    reports = []
    with progress_on_stderr() as progress:
        for done, name in enumerate(names):

            def show(trial: Trial, name: str = name, done: int = done) -> None:
                rate = f"{trial.rows_per_second:,.0f} rows/s"
                progress(f"{name}, {trial.candidate.batch_size} rows: {rate}", done, len(names))

            reports.append(
                tune_endpoint(
                    loaded,
                    name,
                    batch_sizes=powers_up_to(max_batch_size),
                    exhaustive=exhaustive,
                    store=store,
                    progress=show,
                )
            )
    if plot is not None and ceilings is not None:
        save_curve(
            plot,
            [_curve(report, ceilings) for report in reports],
            title=f"{model} on {reports[0].device_kind}, tuned",
            note=ceilings_line(ceilings),
            chosen={report.endpoint: report.chosen.candidate.batch_size for report in reports},
        )
    if as_json:
        facts = {"model": model, "endpoints": [report.as_dict() for report in reports]}
        typer.echo(json.dumps({**facts, "plot": None if plot is None else str(plot.absolute())}))
        return
    for report in reports:
        _show(report)
    if plot is not None:
        typer.echo(f"curves in {plot.absolute()}")


def _show(report: TuningReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    where = f"{report.device_kind}, jaxlib {report.jaxlib}, {report.seconds:.1f} s"
    chosen = report.chosen.candidate
    how = f"{chosen.batch_size} rows a batch, {chosen.executions_in_flight} in flight"
    speed = f"{report.chosen.rows_per_second:,.0f} rows/s"
    console.print(f"{report.endpoint}: {how}, {speed}", style="bold", soft_wrap=True)
    console.print(where, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("batch", "fusion", "in flight", "rows/s", "low", "high", "ms", "MB", ""):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    front = report.pareto
    for trial in report.trials:
        mark = "chosen" if trial == report.chosen else "pareto" if trial in front else ""
        table.add_row(*_cells(trial), mark, style="bold" if trial == report.chosen else None)
    console.print(table)
    if report.too_large is not None:
        console.print(
            f"batches from {report.too_large} rows on need more memory than is free", soft_wrap=True
        )
    stored = "used from now on" if report.not_stored is None else f"not kept: {report.not_stored}"
    console.print(f"{stored}\n", soft_wrap=True)


def _cells(trial: Trial) -> tuple[str, ...]:
    candidate = trial.candidate
    return (
        str(candidate.batch_size),
        "yes" if candidate.setting.fusion else "no",
        str(candidate.executions_in_flight),
        f"{trial.rows_per_second:,.0f}",
        f"{min(trial.rates):,.0f}",
        f"{max(trial.rates):,.0f}",
        f"{1e3 * trial.latency_seconds:.2f}",
        f"{trial.memory_bytes / 1e6:,.1f}",
    )


def _curve(report: TuningReport, ceilings: Ceilings) -> Curve:
    """Of each batch size, the fastest trial."""
    from artifex.cli.plot import Curve
    from artifex.generative_models.inference.measure.roofline import roofline

    fastest: dict[int, Trial] = {}
    for trial in sorted(report.trials, key=lambda trial: trial.rows_per_second):
        fastest[trial.candidate.batch_size] = trial
    fastest[report.chosen.candidate.batch_size] = report.chosen
    points = []
    for size, trial in sorted(fastest.items()):
        rates = (trial.rows_per_second, min(trial.rates), max(trial.rates))
        seconds = roofline(trial.cost, trial.latency_seconds, ceilings).attainable_seconds
        points.append((size, *rates, 1e3 * trial.latency_seconds, size / seconds if seconds else None))
    return Curve.of(report.endpoint, points)
