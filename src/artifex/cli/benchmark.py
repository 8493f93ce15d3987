"""`artifex benchmark`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifex.cli.options import AsJson, Devices, Dtype, Model

if TYPE_CHECKING:
    from artifex.generative_models.inference.measure.endpoints import BenchmarkRow, ModelBenchmark
    from artifex.generative_models.inference.measure.roofline import Ceilings

Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", help="Only this endpoint; may be repeated.")
]
PlotOut = Annotated[
    Path | None, typer.Option("--plot", metavar="CURVE.png", help="Draw the curves as a picture.")
]

_LINE_SECONDS = 5.0  # between lines of progress where there is no terminal


def benchmark(
    model: Model,
    endpoint: Endpoints = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows a batch; may be repeated.")
    ] = None,
    num_runs: Annotated[int, typer.Option(min=1, help="Single batches to time.")] = 100,
    dtype: Dtype = None,
    devices: Devices = None,
    as_json: AsJson = False,
    plot: PlotOut = None,
) -> None:
    """Measure latency, throughput and how close they come to the machine's limit."""
    from artifex.cli.plot import check_curve, curves_of, save_curve
    from artifex.cli.run import compute_dtype, load_executor, mesh_of
    from artifex.generative_models.inference.executor.settings import powers_up_to
    from artifex.generative_models.inference.measure.endpoints import benchmark_model

    if plot is not None:
        check_curve(plot)
    sizes = batch_size or powers_up_to(64)
    executor = load_executor(model, sizes, mesh=mesh_of(devices), dtype=compute_dtype(dtype))
    with progress_on_stderr() as progress:
        found = benchmark_model(executor, endpoints=endpoint, num_runs=num_runs, progress=progress)
    facts = {
        "model": model,
        "compute_dtype": compute_dtype(dtype),
        **found.as_dict(),
        "plot": None if plot is None else str(plot.absolute()),
    }
    if plot is not None:
        save_curve(plot, curves_of(found), title=headline(facts), note=ceilings_line(found.ceilings))
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _show(facts, found)


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for what measures: a function of what comes next, how much is done, and of how much.

    Where stderr is no terminal, a line every few seconds says the same.
    """
    if not sys.stderr.isatty():
        begun = told = time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now >= told + _LINE_SECONDS:
                told = now
                typer.echo(f"artifex: {what} ({done} of {total} done, {now - begun:.0f} s)", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    times = (TimeElapsedColumn(), "passed,", TimeRemainingColumn(), "to go")
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def headline(facts: dict[str, Any]) -> str:
    """Which model was measured, on what."""
    count = facts["num_devices"]
    devices = facts["device_kind"] if count == 1 else f"{count} x {facts['device_kind']}"
    return f"{facts['model']} on {devices}, {facts['compute_dtype'] or 'float32'}"


def ceilings_line(ceilings: Ceilings) -> str:
    """What the machine does at most."""
    matmul, copy = ceilings.matmul_flops_per_second, ceilings.copy_bytes_per_second
    return f"measured ceilings: float32 matmul {matmul / 1e9:,.0f} GFLOP/s, copy {copy / 1e9:,.0f} GB/s"


def _show(facts: dict[str, Any], found: ModelBenchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console.print(headline(facts), style="bold", soft_wrap=True)
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    console.print(versions, style="dim", soft_wrap=True)
    console.print(ceilings_line(found.ceilings), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("endpoint", no_wrap=True)
    for column in ("batch", "compile s", "p50 ms", "p95 ms", "rows/s", "±", "matmul", "roofline"):
        table.add_column(column, justify="right", no_wrap=True)
    last = None
    for row in found.rows:
        if last not in (None, row.endpoint):
            table.add_row()
        table.add_row(row.endpoint if row.endpoint != last else "", *_cells(row))
        last = row.endpoint
    console.print()
    console.print(table)
    if not all(row.is_reliable for row in found.rows):
        console.print()
        console.print("? too noisy to rely on: close other programs and measure again")
    if facts["plot"] is not None:
        console.print(f"curves in {facts['plot']}", soft_wrap=True)


def _cells(row: BenchmarkRow) -> tuple[str, ...]:
    known = row.attainable_rows_per_second is not None
    return (
        str(row.batch_size),
        f"{row.compile_seconds:.2f}",
        f"{1e3 * row.latency.median:.2f}",
        f"{1e3 * row.latency.percentile(95):.2f}",
        f"{row.throughput.rows_per_second:,.0f}",
        f"{'' if row.is_reliable else '? '}{row.noise:.0%}",
        f"{row.roofline.share_of_matmul:.0%}" if known else "",
        f"{row.roofline.share_of_roofline:.0%}" if known else "",
    )
