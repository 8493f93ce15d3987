"""What `artifex generate` does with models of text: it prints texts, or writes them to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Finishing
from artifex.generative_models.inference.pipeline import InferencePipeline

_PICTURES = "samples.png"  # where pictures go if nobody says where


def gives_texts(pipeline: InferencePipeline) -> bool:
    """Whether what a model draws is text."""
    generate = pipeline.executor.endpoints.get("generate")
    return generate is not None and isinstance(generate.says, Finishing)


def text_fields(pipeline: InferencePipeline) -> list[str]:
    """Names of what a model of text is told that is text."""
    says = pipeline.executor.endpoints["generate"].says
    fields = {} if says is None else says.fields
    return [name for name, field in fields.items() if field.kind is str and field.choices is None]


def write_texts(
    pipeline: InferencePipeline, num_samples: int, output: str, given: Mapping[str, Any], as_json: bool
) -> None:
    """Draws texts.

    Args:
        pipeline: Of a model of text.
        num_samples: How many.
        output: A `.jsonl` file, which gets an object a line; or what says nothing, and they are printed.
        given: What they are drawn with: `seed`, `temperature` and, by name, `set`.
        as_json: Prints them as objects, one a line; where a file gets them, one that says where they are.

    Raises:
        InputError: Another kind of file, or as for `InferencePipeline.call`.
    """
    path = None if output == _PICTURES else Path(output)
    if path is not None and path.suffix != ".jsonl":
        raise InputError(f"{output}: expected a .jsonl file for text, got {path.suffix or 'no suffix'!r}")
    said = {"temperature": given["temperature"], **given.get("set", {})}
    found = pipeline.call("generate", num_rows=num_samples, rngs=given["seed"], **said)
    lines = [
        json.dumps({"text": text, "tokens": tokens[:length].tolist()}, ensure_ascii=False)
        for text, tokens, length in zip(found["text"], found["tokens"], found["length"], strict=True)
    ]
    if path is not None:
        path.write_text("\n".join(lines) + "\n")
        if as_json:
            typer.echo(json.dumps({"output": str(path.absolute()), "rows": num_samples, **given}))
            return
        typer.echo(f"{num_samples:,} text{'' if num_samples == 1 else 's'} in {path.absolute()}")
    elif as_json:
        typer.echo("\n".join(lines))
    else:
        typer.echo("\n\n".join(found["text"]))
