"""`artifex export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from artifex.cli.options import AsJson, ComputeDtype, DirectoryFormat


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
    model_type: Annotated[str, typer.Option(help="Name of an installed family.")] = "vae",
    step: Annotated[int | None, typer.Option(min=0, help="Training step; the latest if left out.")] = None,
    item: Annotated[
        str | None, typer.Option(help="Item of the checkpoint that holds the model, where it has several.")
    ] = None,
    dtype: Annotated[ComputeDtype | None, typer.Option(help="Dtype to cast the weights to.")] = None,
    training_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Length of the training; the checkpoint's step if left out."),
    ] = None,
    final_loss: Annotated[float | None, typer.Option(help="Loss at the end of training.")] = None,
    image_range: Annotated[
        tuple[float, float], typer.Option(metavar="LOW HIGH", help="Range of the model's pixel values.")
    ] = (0.0, 1.0),
    directory_format: Annotated[
        DirectoryFormat,
        typer.Option("--format", help="Whose directory to write; diffusers has no place for the training."),
    ] = DirectoryFormat.artifex,
    as_json: AsJson = False,
) -> None:
    """Turn a training checkpoint into an export directory, which is a MODEL to the other commands."""
    from artifex.generative_models.core.checkpointing import load_checkpoint, setup_checkpoint_manager
    from artifex.generative_models.core.config import abstract_model, read_json
    from artifex.generative_models.core.errors import InputError
    from artifex.generative_models.inference.formats.diffusers_export import export_diffusers
    from artifex.generative_models.inference.formats.exporting import export_model

    template = abstract_model(model_type, read_json(config))
    manager, _ = setup_checkpoint_manager(checkpoint_dir, create=False)
    with manager:
        model, restored_step = load_checkpoint(manager, template, step, item=item, dtype=dtype)
    if _float_dtypes(model) != (of_family := _float_dtypes(template)):
        raise InputError(
            f"--dtype {dtype}: '{model_type}' has {', '.join(sorted(of_family))} weights by this config, and "
            "so must its export; the commands that run it have a --dtype of their own"
        )
    if directory_format is DirectoryFormat.diffusers:
        path = export_diffusers(model, export_dir)
        written = {"output": str(path), "model_type": model_type, "step": restored_step}
        typer.echo(json.dumps(written) if as_json else f"exported to {path}")
        return
    if restored_step is None:  # a checkpoint that was saved by itself
        restored_step = training_steps or 0
    elif training_steps is None:
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


def _float_dtypes(model: Any) -> set[str]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))}
    return {dtype.name for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
