"""`artifex demo`."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifex.cli.options import AsJson

if TYPE_CHECKING:
    from artifex.cli.demo_models import Shown


class DemoModel(StrEnum):
    """The bundled models that draw."""

    VAE = "mnist-vae"
    DIFFUSION = "mnist-diffusion"
    FLOW = "mnist-flow"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to draw, as PNG.")] = Path("demo.png"),
    model: Annotated[DemoModel, typer.Option("--model", help="Which bundled model.")] = DemoModel.VAE,
    as_json: AsJson = False,
) -> None:
    """Draw digits with a bundled model, and time it.

    mnist-vae reconstructs, generates and interpolates; the others draw each digit out of noise, step by step.
    """
    from rich.console import Console

    with Console(stderr=True).status(f"Loading {model}") as status:
        start = time.perf_counter()
        import jax

        from artifex.cli.demo_models import BATCH_SIZE, SEED, show_autoencoder, show_denoiser
        from artifex.cli.figure import draw_figure
        from artifex.cli.outputs import save_png
        from artifex.generative_models.inference.pipeline import load_pipeline

        import_seconds = time.perf_counter() - start
        start = time.perf_counter()
        pipeline = load_pipeline(model.value, batch_size=BATCH_SIZE)
        load_seconds = time.perf_counter() - start
        show = show_autoencoder if model is DemoModel.VAE else show_denoiser
        shown = show(pipeline, status.update)
        note = f"{pipeline.executor.num_parameters:,} parameters, seed {SEED}"
        output.parent.mkdir(parents=True, exist_ok=True)
        save_png(output, draw_figure(model.value, note, shown.panels))
    facts = {
        "output": str(output.absolute()),
        "model": model.value,
        "device": jax.devices()[0].device_kind,
        "seed": SEED,
        "import_seconds": round(import_seconds, 3),
        "load_seconds": round(load_seconds, 3),
        **{name: round(value, 3 if name == "compile_seconds" else 1) for name, value in shown.facts.items()},
    }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _show(facts, shown)


def _show(facts: dict[str, Any], shown: Shown) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("Import", f"{facts['import_seconds']:.2f} s", "JAX, Flax and Orbax")
    table.add_row("Load", f"{facts['load_seconds']:.2f} s", "weights from disk, checksums compared")
    table.add_row("Compile", f"{facts['compile_seconds']:.2f} s", shown.remarks["compile_seconds"])
    rates = {
        "samples_per_second": ("Generate", "samples/s"),
        "images_encoded_per_second": ("Encode", "images/s"),
    }
    for name, (label, unit) in rates.items():
        if name in facts:
            remark = f"{shown.remarks[name]}, on {facts['device']}"
            table.add_row(label, f"{facts[name]:,.0f} {unit}", remark)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{facts['output']}", markup=False, soft_wrap=True)
