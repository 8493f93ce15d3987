"""Trained models to disk, in a form that names everything needed to run them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifex import __version__
from artifex.generative_models.core.config import model_type_of, write_json
from artifex.generative_models.core.directories import local_path, replacing
from artifex.generative_models.core.endpoint import ExportableModel
from artifex.generative_models.core.errors import ExportError, InputTypeError
from artifex.generative_models.core.tokenizer import copied_beside
from artifex.generative_models.inference.executor.program import MANY_CAPTURED
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.formats.loading import check_image_range

if TYPE_CHECKING:
    from flax import nnx


def export_model(
    model: nnx.Module,
    export_dir: str | PathLike[str],
    *,
    step: int,
    training_steps: int | None = None,
    final_loss: float | None = None,
    image_range: Sequence[float] | None = (0.0, 1.0),
    **metadata: Any,
) -> Path:
    """Writes a model as an export directory: `config.json`, `metadata.json`, `checkpoints/`.

    The directory is written under a temporary name and put in place by one rename, so nobody ever
    sees half an export, and an export that was there stays whole until the new one is.

    Args:
        model: A model of an installed family.
        export_dir: Where to write. An export that is there is replaced; anything else is refused.
        step: Name of the checkpoint, from 0.
        training_steps: How many steps the model was trained for, where that is known.
        final_loss: Loss at the end of training, where that is known; finite.
        image_range: Range of the model's pixel values, (0, 1) or (-1, 1); None for a model that makes
            something else than pictures.
        **metadata: More facts for `metadata.json`: dataset, licence, measured quality.

    Returns:
        The export directory.

    Raises:
        InputTypeError: The model has no `endpoints()` or no `config`.
        UnknownModelTypeError: The model's class is no installed family.
        ConfigError: A fact has no form in JSON.
        InputError: `export_dir` is an address, such as gs://bucket/model.
        ExportError: Something that is not an export stands at `export_dir`; or an endpoint has closed over
            arrays that are no part of the model, so that an export would lack them.
    """
    from artifex.generative_models.core.checkpointing import (  # importing it imports Flax and Orbax
        save_checkpoint,
        setup_checkpoint_manager,
    )

    if not isinstance(model, ExportableModel):
        raise InputTypeError(
            f"{type(model).__name__} has no endpoints() and config; both are needed to export it"
        )
    target = local_path(export_dir).absolute()
    if os.path.lexists(target) and not (target / "metadata.json").is_file():
        raise ExportError(f"{target} exists and is not an export; remove it or choose another name")
    _refuse_captured_weights(model)
    known = {"training_steps": training_steps, "final_loss": final_loss}
    facts = {
        "model_type": model_type_of(model),
        "step": step,
        **{name: value for name, value in known.items() if value is not None},
        "image_range": check_image_range(image_range),
        **metadata,
        "versions": {
            "artifex": __version__,
            **{name: version(name) for name in ("jax", "flax", "orbax-checkpoint")},
        },
    }
    with replacing(target) as temporary:
        write_json(temporary / "config.json", copied_beside(model.config, temporary))
        write_json(temporary / "metadata.json", facts)
        manager, _ = setup_checkpoint_manager(temporary / "checkpoints")
        with manager:
            save_checkpoint(manager, model, step)
        for marker in temporary.rglob("commit_success.txt"):
            marker.write_text("")  # Orbax writes this machine's path into it; an export is to be shared
    return target


def _refuse_captured_weights(model: ExportableModel) -> None:
    executor = executor_for(model)
    for name in executor.endpoints:
        captured = executor.captured_bytes(name)
        if captured >= MANY_CAPTURED:
            raise ExportError(
                f"{name}: its function has closed over {captured / 1e6:.1f} MB of arrays that are no part of "
                "the model, so an export would lack them; keep them in attributes of the model"
            )
