"""`artifex check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from artifex.cli.options import AsJson, Model

if TYPE_CHECKING:
    from artifex.generative_models.inference.measure.laws import ModelCheck


def check(
    model: Model,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="Endpoint, which may be given again; all if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether a model keeps the laws that batching rests on; exit status 1 if it does not."""
    from artifex.cli.run import load_model
    from artifex.generative_models.inference.measure.laws import check as check_model

    found = check_model(load_model(model).executor, endpoints=endpoint)
    if as_json:
        typer.echo(json.dumps({"holds": found.holds, "findings": list(map(asdict, found.findings))}))
    else:
        _show(found)
    if not found.holds:
        raise typer.Exit(1)


def _show(found: ModelCheck) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("Endpoint", "Law", "Holds", ""):
        table.add_column(column, overflow="fold")
    for finding in found.findings:
        holds = Text("yes", style="green") if finding.holds else Text("NO", style="bold red")
        table.add_row(finding.endpoint, finding.law, holds, finding.note)
    Console(highlight=False).print(table)
