"""Trained models from disk, ready to run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from artifex.generative_models.core.config import abstract_model, read_json
from artifex.generative_models.core.directories import foreign_weights, local_path
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.sharding import WeightLayout
from artifex.generative_models.core.tokenizer import found_beside
from artifex.generative_models.inference.formats.diffusers import described, find_diffusers, is_diffusers
from artifex.generative_models.inference.formats.found import Found
from artifex.generative_models.inference.formats.transformers import find_transformers, is_transformers

if TYPE_CHECKING:
    from jax.typing import DTypeLike

_log = logging.getLogger("artifex")

_METADATA_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "step": (int,),
    "image_range": (list, type(None)),
}
_OPTIONAL_TYPES: dict[str, tuple[type, ...]] = {
    "training_steps": (int,),
    "final_loss": (int, float),
    "compute_dtype": (str,),
}
_COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model_for_inference(
    checkpoint_dir: str | PathLike[str],
    config: Mapping[str, Any],
    *,
    model_type: str = "vae",
    step: int | None = None,
    item: str | None = None,
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | WeightLayout | None = None,
) -> Any:
    """Restores a trained model from a checkpoint directory.

    No weights are initialised to be thrown away: the model is built abstractly and restored straight
    to where its weights will live.

    Args:
        checkpoint_dir: Directory of an Orbax `CheckpointManager`, or a plain `StandardCheckpointer` one.
        config: Arguments of the model's constructor, `rngs` left out.
        model_type: Name of an installed family.
        step: Training step; `None` takes the latest.
        item: Name of the item that holds the model, as for `load_checkpoint`.
        dtype: Casts floating-point weights.
        sharding: Where the weights go, all or each; `None` is the default device.

    Returns:
        A model of the family, for `"vae"` a `VAE`.

    Raises:
        UnknownModelTypeError: No such family is installed.
        ConfigError: The config does not fit the family.
        CheckpointError: The checkpoint is missing, damaged, or does not fit the config.
    """
    from artifex.generative_models.core.checkpointing import (  # importing it imports Flax and Orbax
        load_checkpoint,
        setup_checkpoint_manager,
    )

    template = abstract_model(model_type, config)
    manager, path = setup_checkpoint_manager(checkpoint_dir, create=False)
    with manager:
        model, restored_step = load_checkpoint(
            manager, template, step, item=item, dtype=dtype, sharding=sharding
        )
    _log.info("loaded %s from %s, step %s", model_type, path, restored_step)
    return model


def load_exported_model(
    export_dir: str | PathLike[str],
    *,
    step: int | None = None,
    dtype: DTypeLike | None = None,
    sharding: jax.sharding.Sharding | WeightLayout | None = None,
    variant: str | None = None,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Restores a model from an export directory, or from a directory of diffusers or transformers.

    Args:
        export_dir: What `export_model` wrote, the name of a bundled model, a model or pipeline that diffusers
            wrote, or a GPT-2 that transformers wrote.
        step: Training step of an export; `None` takes the one that it names.
        dtype: Casts floating-point weights; `None` is the `compute_dtype` that the metadata names, which a
            model that is stored in fewer bits than it computes in has, or else the dtype that they have.
        sharding: Where the weights go, all or each; `None` is the default device.
        variant: Of the weights of diffusers, such as "fp16"; `None` is the one without a name, or the only
            one.

    Returns:
        The model, its config and its metadata.

    Raises:
        ConfigError: What describes the model is missing or unusable, or there is no such family.
        CheckpointError: The weights are missing, damaged, or do not fit the config.
        InputError: A step where there are none, or a variant of an export.
    """
    found = find_directory(export_dir, step=step, variant=variant)
    return found.load(dtype, sharding), dict(found.config), dict(found.metadata)


def find_directory(
    name_or_dir: str | PathLike[str], *, step: int | None = None, variant: str | None = None
) -> Found:
    """The model in a directory of any format, before its weights are read.

    Arguments and errors are those of `load_exported_model`.
    """
    path = find_model(name_or_dir)
    if not (path / "metadata.json").is_file() and is_diffusers(path):
        if step is not None:
            raise InputError(f"step: {path} is a directory of diffusers, which has no training steps")
        return find_diffusers(path, variant)
    if variant is not None:
        raise InputError(f"variant: expected none but of diffusers, got {variant!r}")
    if not (path / "metadata.json").is_file() and is_transformers(path):
        if step is not None:
            raise InputError(f"step: {path} is a directory of transformers, which has no training steps")
        return find_transformers(path)
    metadata = read_metadata(path)
    config, model_type = found_beside(read_json(path / "config.json"), path), metadata["model_type"]
    restore = partial(
        load_model_for_inference,
        path / "checkpoints",
        config,
        model_type=model_type,
        step=metadata["step"] if step is None else step,
    )
    return Found(path, model_type, config, metadata, restore)


def foreign_parts(path: Path) -> dict[str, Any] | None:
    """What a directory of another format is, as `described` says; None where it is an export."""
    return described(path) if not (path / "metadata.json").is_file() and is_diffusers(path) else None


def latest_step(export_dir: Path) -> int | None:
    """The last step among an export's checkpoints; None where there is none."""
    checkpoints = export_dir / "checkpoints"
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal() and path.is_dir()]
    return max(steps, default=None)


def read_metadata(export_dir: Path) -> dict[str, Any]:
    """Reads and checks an export's `metadata.json`.

    Raises:
        ConfigError: It is missing, and then what is there instead, or a fact is missing or of the wrong type.
    """
    path = export_dir / "metadata.json"
    if not path.is_file():
        found = foreign_weights(export_dir) or (
            "a directory of checkpoints becomes one by `artifex export` or `export_model`"
        )
        raise ConfigError(f"cannot read {path}: there is none, so this is no export; {found}")
    metadata = read_json(path)
    given = {name: types for name, types in _OPTIONAL_TYPES.items() if metadata.get(name) is not None}
    for name, types in (_METADATA_TYPES | given).items():
        value = metadata.get(name, ...)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            got = None if value is ... else value
            raise ConfigError(f"{path}: {name}: expected {wanted}, got {got!r}")
    if (dtype := metadata.get("compute_dtype")) not in (None, *_COMPUTE_DTYPES):
        raise ConfigError(
            f"{path}: compute_dtype: expected one of {', '.join(_COMPUTE_DTYPES)}, got {dtype!r}"
        )
    check_image_range(metadata["image_range"])
    return metadata


def check_image_range(image_range: Any) -> tuple[float, float] | None:
    """Checks a model's range of pixel values; None is for one that makes something else than pictures.

    Raises:
        ConfigError: It is not two finite numbers, the smaller first.
    """
    if image_range is None:
        return None
    numbers = isinstance(image_range, list | tuple) and len(image_range) == 2
    if not numbers or not all(type(value) in (int, float) for value in image_range):
        raise ConfigError(f"image_range: expected [low, high], got {image_range!r}")
    low, high = image_range
    if not -1e6 < low < high < 1e6:
        raise ConfigError(f"image_range: expected low < high, got {image_range!r}")
    return float(low), float(high)


def bundled_models() -> list[str]:
    """Names of the trained models that ship with Artifex."""
    return sorted(path.name for path in _zoo().iterdir() if (path / "metadata.json").is_file())


def find_model(name_or_dir: str | PathLike[str]) -> Path:
    """Directory of a bundled model, of an export or of another format.

    Raises:
        ConfigError: There is neither; lists the bundled models.
        InputError: It is an address, such as gs://bucket/model.
    """
    name = str(name_or_dir)
    if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) and name in bundled_models():
        return _zoo() / name
    path = local_path(name_or_dir)
    if path.is_file():
        found = foreign_weights(path) or "a model is a directory"
        raise ConfigError(f"{path} is a file, not an export; {found}")
    if not path.is_dir():
        raise ConfigError(
            f"no model {name!r}: neither a directory nor a bundled model ({', '.join(bundled_models())})"
        )
    return path


def _zoo() -> Path:
    return Path(str(resources.files("artifex"))) / "zoo"
