"""How a command fails: one line on stderr and an exit status."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand


class OneLineErrors(TyperCommand):
    """A command that turns what can go wrong on purpose into one line; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command's function."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has gone, and typer leaves in silence
        except KeyboardInterrupt as error:
            _explain(ctx, "interrupted", error)
            raise typer.Exit(130) from error
        except _expected() as error:
            _explain(ctx, f"error: {_message(error)}", error)
            raise typer.Exit(1) from error


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Says which extra to install where something that a block imports is not there.

    Raises:
        InputError: It is not; a module of ours that is not there is a bug, and left as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("artifex"):
            raise
        from artifex.generative_models.core.errors import InputError  # importing it imports JAX

        raise InputError(f"{error.name} is not installed: pip install 'artifex[{extra}]'") from error


def _expected() -> tuple[type[Exception], ...]:
    from artifex.generative_models.core.errors import ArtifexError  # importing it imports JAX

    return ArtifexError, OSError


def _explain(ctx: Any, message: str, error: BaseException) -> None:
    if ctx.find_root().params["debug"]:
        traceback.print_exception(error)
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("-----")]  # of JAX
    text = "; ".join([message, *notes])
    typer.echo("artifex: " + " ".join(text.split()), err=True)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
