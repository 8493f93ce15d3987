"""`artifex check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from artifex.cli.options import AsJson, Model


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
        typer.echo(found)
    if not found.holds:
        raise typer.Exit(1)
