"""`artifex demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifex.cli.options import AsJson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from artifex.generative_models.inference.pipeline import InferencePipeline

_MODEL = "mnist-vae"
_COLUMNS = 16
_SAMPLES = 64
_TIMED_ROWS = 4096
_SEED = 0
_START, _END = 7, 13  # places in the row of test digits: a 7 and a 3


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to draw, as PNG.")] = Path("demo.png"),
    as_json: AsJson = False,
) -> None:
    """Reconstruct, generate and interpolate digits with the bundled mnist-vae, and time it."""
    from rich.console import Console

    with Console(stderr=True).status("Loading mnist-vae") as status:
        start = time.perf_counter()
        import jax

        from artifex.generative_models.inference.pipeline import load_pipeline

        import_seconds = time.perf_counter() - start
        start = time.perf_counter()
        pipeline = load_pipeline(_MODEL, batch_size=_SAMPLES)
        load_seconds = time.perf_counter() - start
        images, labels = _digits()
        status.update("Compiling")
        compile_seconds = _compile(pipeline)
        status.update("Drawing")
        output.parent.mkdir(parents=True, exist_ok=True)
        _draw(pipeline, images, labels, output)
        status.update("Timing")
        facts = {
            "output": str(output.absolute()),
            "model": _MODEL,
            "device": jax.devices()[0].device_kind,
            "seed": _SEED,
            "import_seconds": round(import_seconds, 3),
            "load_seconds": round(load_seconds, 3),
            "compile_seconds": round(compile_seconds, 3),
            **_speeds(pipeline, images),
        }
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _show(facts)


def _digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """Pictures [N, 28, 28, 1] and labels [N] of digits that the model was not trained on."""
    from importlib import resources

    import numpy as np

    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        return archive["images"], archive["labels"]


def _compile(pipeline: InferencePipeline) -> float:
    """Compiles just what the demo runs; returns seconds."""
    needed = {
        "generate": [_SAMPLES],
        "encode": [2, _SAMPLES],
        "decode": [_COLUMNS],
        "reconstruct": [_COLUMNS],
    }
    seconds = [pipeline.executor.warmup([endpoint], sizes)[endpoint] for endpoint, sizes in needed.items()]
    return sum(sum(by_size.values()) for by_size in seconds)


def _draw(pipeline: InferencePipeline, images: NDArray[Any], labels: NDArray[Any], output: Path) -> None:
    import numpy as np
    from flax import nnx

    from artifex.cli.figure import Panel, draw_figure
    from artifex.cli.outputs import save_png

    first_of = [int(np.argmax(labels == digit)) for digit in range(10)]
    second_of = [int(np.flatnonzero(labels == digit)[1]) for digit in range(_COLUMNS - 10)]
    originals = images[first_of + second_of]
    reconstructions = np.asarray(pipeline.reconstruct(originals))
    samples = np.asarray(pipeline.generate(_SAMPLES, rngs=nnx.Rngs(_SEED)))
    line = np.asarray(pipeline.interpolate(originals[_START], originals[_END], _COLUMNS))
    panels = [
        Panel("Test digits", "which the model was not trained on", originals[None]),
        Panel("Reconstructions", f"from {pipeline.config['latent_dim']} numbers each", reconstructions[None]),
        Panel(
            "New digits",
            "drawn from the prior, not picked",
            samples.reshape(-1, _COLUMNS, *samples.shape[1:]),
        ),
        Panel("From 7 to 3", "along a straight line between their latents", line[None]),
    ]
    note = f"{pipeline.executor.num_parameters:,} parameters, seed {_SEED}"
    save_png(output, draw_figure(_MODEL, note, panels))


def _speeds(pipeline: InferencePipeline, images: NDArray[Any]) -> dict[str, float]:
    """Rows/s from start to end of a job on compiled code: uint8 pictures on the host on either side."""
    import numpy as np

    from artifex.generative_models.core.keys import sample_key

    pictures = np.resize(images, (_TIMED_ROWS, *images.shape[1:]))
    jobs = {
        "samples_per_second": pipeline.generate_chunks(_TIMED_ROWS, key=sample_key(_SEED)),
        "images_encoded_per_second": pipeline.encode_chunks(pictures),
    }
    speeds = {}
    for name, chunks in jobs.items():
        start = time.perf_counter()
        rows = sum(len(chunk) for chunk in chunks)
        speeds[name] = round(rows / (time.perf_counter() - start), 1)
    return speeds


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    each = f"{_TIMED_ROWS:,} in batches of {_SAMPLES}, on {facts['device']}, compiled before"
    table.add_row("Import", f"{facts['import_seconds']:.2f} s", "JAX, Flax and Orbax")
    table.add_row("Load", f"{facts['load_seconds']:.2f} s", "weights from disk, checksums compared")
    table.add_row("Compile", f"{facts['compile_seconds']:.2f} s", "5 executables")
    table.add_row("Generate", f"{facts['samples_per_second']:,.0f} samples/s", each)
    table.add_row("Encode", f"{facts['images_encoded_per_second']:,.0f} images/s", each)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{facts['output']}", markup=False, soft_wrap=True)
