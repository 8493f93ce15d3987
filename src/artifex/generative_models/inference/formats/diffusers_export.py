"""Models written as directories of diffusers, which it loads without anything of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.casting import cast
from artifex.generative_models.core.config import write_json
from artifex.generative_models.core.directories import local_path, replacing
from artifex.generative_models.core.errors import ExportError, InputTypeError
from artifex.generative_models.core.published import Published
from artifex.generative_models.inference.formats.diffusers import (
    MODEL_FILE,
    OURS,
    PIPELINE_FILE,
    PIPELINES,
    SCHEDULER_FILE,
    WEIGHTS,
    is_diffusers,
)
from artifex.generative_models.inference.formats.safetensors import write_arrays

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike

# Of a network with a scheduler: the pipeline that runs it, by the network's class.
_PIPELINE_OF = {"UNet2DModel": "DDIMPipeline", "DiTTransformer2DModel": "DiTPipeline"}


def export_diffusers(
    model: nnx.Module, directory: str | PathLike[str], *, dtype: DTypeLike | None = None
) -> Path:
    """Writes a model as a directory of diffusers: a pipeline if it has a scheduler, else the model alone.

    What a pipeline has no place for there, such as how many of the classes stand for one, is a note in
    `model_index.json` that only Artifex reads.

    Args:
        model: A model of a family that is published: it has `published_config` and `published_weights`.
        directory: Where to write. A directory of diffusers that is there is replaced; anything else is
            refused.
        dtype: Of the weights in the file; None is that which they have.

    Returns:
        The directory.

    Raises:
        InputTypeError: The model's family has no form in diffusers.
        ExportError: Something else stands at `directory`.
    """
    if not isinstance(model, Published):
        raise InputTypeError(f"{type(model).__name__} has no form in diffusers")
    target = local_path(directory).absolute()
    if os.path.lexists(target) and not is_diffusers(target):
        raise ExportError(
            f"{target} exists and is no directory of diffusers; remove it or choose another name"
        )
    config: Mapping[str, Any] = getattr(model, "config", {})
    scheduler = config.get("scheduler")
    with replacing(target) as temporary:
        if scheduler is None:
            _write_model(temporary, model, dtype)
            return target
        pipeline = _PIPELINE_OF[model.published_config()["_class_name"]]
        network = PIPELINES[pipeline].network
        (temporary / network).mkdir()
        _write_model(temporary / network, model, dtype)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / SCHEDULER_FILE, scheduler)
        index = {
            "_class_name": pipeline,
            OURS: {name: config[name] for name in ("num_labels", "num_steps", "sampler", "guidance_scale")},
            "scheduler": ["diffusers", scheduler.get("_class_name", "DDPMScheduler")],
            network: ["diffusers", model.published_config()["_class_name"]],
        }
        write_json(temporary / PIPELINE_FILE, index)
    return target


def _write_model(directory: Path, model: Published, dtype: DTypeLike | None) -> None:
    from flax import nnx

    leaves = dict(nnx.to_flat_state(nnx.state(model)))
    arrays = {}
    for name, (path, axes) in model.published_weights().items():
        values = np.asarray(leaves[path][...])
        if dtype is not None and jnp.issubdtype(values.dtype, jnp.floating):
            values = np.asarray(cast(values, dtype))
        arrays[name] = values if axes is None else values.transpose(np.argsort(axes))
    write_json(directory / MODEL_FILE, model.published_config())
    write_arrays(directory / f"{WEIGHTS}.safetensors", arrays)
