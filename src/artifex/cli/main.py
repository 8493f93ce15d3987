"""The `artifex` command and what its commands share before they run."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Annotated

import typer

from artifex import __version__
from artifex.cli.benchmark import benchmark
from artifex.cli.check import check
from artifex.cli.convert import convert
from artifex.cli.decode import decode
from artifex.cli.demo import demo
from artifex.cli.encode import encode
from artifex.cli.evaluate import evaluate
from artifex.cli.export import export
from artifex.cli.failures import OneLineErrors
from artifex.cli.generate import generate
from artifex.cli.inspect import inspect
from artifex.cli.interpolate import interpolate
from artifex.cli.reconstruct import reconstruct
from artifex.cli.serve import serve
from artifex.cli.tune import tune

app = typer.Typer(
    name="artifex",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo,
    inspect,
    generate,
    encode,
    decode,
    reconstruct,
    interpolate,
    export,
    convert,
    check,
    benchmark,
    evaluate,
    tune,
    serve,
):
    app.command(cls=OneLineErrors)(command)


def main() -> None:
    """Runs the command line."""
    # Else the interpreter looks through all of JAX for garbage when it ends: 0.2 s.
    atexit.register(gc.freeze)
    sys.unraisablehook = _interrupt_again
    if "--debug" not in sys.argv:
        _keep_libraries_quiet()
    app()


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Delivers Ctrl-C once more where it struck in a callback of the garbage collector, and was lost."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _keep_libraries_quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"artifex {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Trained JAX / Flax NNX generative models, from disk to samples.

    MODEL is the name of a bundled model, such as mnist-vae, an export directory, or a directory
    that diffusers or transformers wrote.
    """
