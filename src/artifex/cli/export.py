"""`artifex export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from artifex.cli.options import AsJson


def export(
    checkpoint_dir: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT_DIR", help="A directory of Orbax checkpoints.", show_default=False
        ),
    ],
    export_dir: Annotated[
        Path, typer.Argument(metavar="EXPORT_DIR", help="Where to write.", show_default=False)
    ],
    config: Annotated[
        Path, typer.Option(help="The model's constructor arguments, as JSON.", show_default=False)
    ],
    final_loss: Annotated[float, typer.Option(help="Loss at the end of training.", show_default=False)],
    model_type: Annotated[str, typer.Option(help="Name of an installed family.")] = "vae",
    step: Annotated[int | None, typer.Option(min=0, help="Training step; the latest if left out.")] = None,
    training_steps: Annotated[
        int | None, typer.Option(min=0, help="Length of the training; the step if left out.")
    ] = None,
    image_range: Annotated[
        tuple[float, float], typer.Option(metavar="LOW HIGH", help="Range of the model's pixel values.")
    ] = (0.0, 1.0),
    as_json: AsJson = False,
) -> None:
    """Turn a training checkpoint into an export directory, which is a MODEL to the other commands."""
    from artifex.generative_models.core.checkpointing import load_checkpoint, setup_checkpoint_manager
    from artifex.generative_models.core.config import abstract_model, read_json
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.inference.formats.exporting import export_model

    template = abstract_model(model_type, read_json(config))
    manager, _ = setup_checkpoint_manager(checkpoint_dir, create=False)
    with manager:
        model, restored_step = load_checkpoint(manager, template, step)
    if restored_step is None:
        restored_step = training_steps
    if restored_step is None:
        raise InputError(f"{checkpoint_dir}: this checkpoint has no step; pass --training-steps")
    if training_steps is None:
        training_steps = restored_step
    path = export_model(
        model,
        export_dir,
        step=restored_step,
        training_steps=training_steps,
        final_loss=final_loss,
        image_range=image_range,
    )
    facts = {
        "output": str(path),
        "model_type": model_type,
        "step": restored_step,
        "training_steps": training_steps,
        "final_loss": final_loss,
    }
    typer.echo(json.dumps(facts) if as_json else f"step {restored_step} exported to {path}")
