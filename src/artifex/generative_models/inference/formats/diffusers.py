"""Directories that diffusers writes: one model, or a pipeline of a model and a scheduler.

A model's directory holds `config.json`, which names the class, and `diffusion_pytorch_model.safetensors`,
which may be one of several variants (`.fp16.safetensors`) or in shards with an index. A pipeline's holds
`model_index.json`, which names the parts, and a directory for each of them. Keys that start with an
underscore are notes of whoever wrote them; a pipeline that we wrote has one of ours, with what diffusers has
no place for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from artifex.generative_models.core.config import abstract_model, read_json
from artifex.generative_models.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
)
from artifex.generative_models.core.published import Published
from artifex.generative_models.core.sharding import WeightLayout
from artifex.generative_models.inference.formats.found import Found
from artifex.generative_models.inference.formats.restoring import restored
from artifex.generative_models.inference.formats.safetensors import StoredArray, stored_arrays

if TYPE_CHECKING:
    from jax.typing import DTypeLike

PIPELINE_FILE, MODEL_FILE, SCHEDULER_FILE = "model_index.json", "config.json", "scheduler_config.json"
OURS = "_artifex"  # the key of a pipeline's index
WEIGHTS = "diffusion_pytorch_model"
_WEIGHTS_FILE = re.compile(
    rf"{WEIGHTS}(?P<index>\.safetensors\.index(\.(?P<of_shards>\w+))?\.json|(\.(?P<alone>\w+))?\.safetensors)"
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OLD_LAYERS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_NETWORKS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "dit"}
MODELS = (*_NETWORKS, "AutoencoderTiny")
# A DiT of before it had a class of its own, and what its config has besides, where that changes nothing.
_OLD_DIT, _OLD_DIT_NORM = "Transformer2DModel", "ada_norm_zero"
_OLD_DIT_SETTINGS: dict[str, tuple[Any, ...]] = {
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "use_linear_projection": (False,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "interpolation_scale": (None,),
    "use_additional_conditions": (None, False),
}


@dataclass(frozen=True)
class _Pipeline:
    """A pipeline, and what holds in it where callers say nothing.

    Args:
        network: The part that removes noise.
        num_steps: Steps of the sampler.
        sampler: The sampler; None is the scheduler's own.
        guidance_scale: Guidance.
    """

    network: str
    num_steps: int
    sampler: str | None = None
    guidance_scale: float = 1.0


PIPELINES = {
    "DDPMPipeline": _Pipeline("unet", 1000),
    "DDIMPipeline": _Pipeline("unet", 50, "ddim"),
    "DiTPipeline": _Pipeline("transformer", 50, guidance_scale=4.0),
    "ConsistencyModelPipeline": _Pipeline("unet", 1),
}


def is_diffusers(path: Path) -> bool:
    """Whether a directory looks like one of diffusers."""
    return (path / PIPELINE_FILE).is_file() or "_class_name" in _json(path / MODEL_FILE)


def find_diffusers(path: Path, variant: str | None = None) -> Found:
    """The model in a directory of diffusers.

    Args:
        path: The directory.
        variant: Which of the weights' variants, such as "fp16"; None is the one without a name, or the only
            one.

    Raises:
        ConfigError: Its class is none of `MODELS` and `PIPELINES`, or a setting is not supported.
        CheckpointNotFoundError: There are no weights that can be read, or none of that variant.
    """
    if (path / PIPELINE_FILE).is_file():
        return _pipeline(path, variant)
    config = read_json(path / MODEL_FILE)
    model_type, arguments = family_of(path / MODEL_FILE, config)
    metadata = {"class": config["_class_name"]}
    return _found(path, path, model_type, arguments, metadata, variant)


def described(path: Path) -> dict[str, Any]:
    """What a directory of diffusers is, in words.

    Returns:
        Its `class`; whether it `is_run`; of its parts by name what each that `runs` is, and of each that
        `does_not_run` why.
    """
    index = path / PIPELINE_FILE
    if not index.is_file():
        kind, why = str(read_json(path / MODEL_FILE).get("_class_name")), _why_not(path)
        return {
            "class": kind,
            "is_run": why is None,
            "runs": {},
            "does_not_run": {} if why is None else {kind: why},
        }
    config = read_json(index)
    kind = str(config.get("_class_name"))
    pipeline = PIPELINES.get(kind)
    runs: dict[str, str] = {}
    does_not_run: dict[str, str] = {}
    for part, (_, name) in _parts(config).items():
        if pipeline is not None and part == "scheduler":
            why, word = None, name
        elif pipeline is not None and part != pipeline.network:
            why, word = f"{name}: {kind} is run without it", ""
        elif (path / part / MODEL_FILE).is_file():
            why, word = _why_not(path / part), name if pipeline else f"{name}, as a model of its own"
        else:
            why, word = f"{name} is not run here", ""
        (runs if why is None else does_not_run)[part] = word if why is None else why
    is_run = pipeline is not None and {pipeline.network, "scheduler"} <= runs.keys()
    return {"class": kind, "is_run": is_run, "runs": runs, "does_not_run": does_not_run}


def current_name(name: str) -> str:
    """The name that diffusers gives a weight now; files of early versions have others for attention."""
    for old, new in _OLD_LAYERS.items():
        name = name.replace(old, new)
    return name


def _pipeline(path: Path, variant: str | None) -> Found:
    index = read_json(path / PIPELINE_FILE)
    kind = index.get("_class_name")
    pipeline = PIPELINES.get(kind) if isinstance(kind, str) else None
    if pipeline is None:
        raise ConfigError(
            f"{path} is a {kind} of diffusers, which is not run here; pipelines that are: "
            f"{', '.join(PIPELINES)}; and models: {', '.join(MODELS)}"
        )
    parts = _parts(index)
    if missing := [name for name in (pipeline.network, "scheduler") if name not in parts]:
        raise ConfigError(f"{path / PIPELINE_FILE}: a {kind} without {' and '.join(missing)}")
    directory = path / pipeline.network
    model_type, arguments = family_of(directory / MODEL_FILE, read_json(directory / MODEL_FILE))
    if model_type != "denoiser":
        raise ConfigError(f"{directory}: expected one of {', '.join(_NETWORKS)}, which remove noise")
    scheduler = read_json(path / "scheduler" / SCHEDULER_FILE)
    trained = scheduler.get("num_train_timesteps", pipeline.num_steps)
    steps = min(pipeline.num_steps, trained) if isinstance(trained, int) else pipeline.num_steps
    ours = index.get(OURS) or {}
    arguments |= {
        "scheduler": scheduler,
        "num_steps": steps,
        "sampler": pipeline.sampler,
        "guidance_scale": pipeline.guidance_scale if arguments["num_labels"] else 1.0,
    }
    if isinstance(ours, Mapping):
        arguments |= {name: value for name, value in ours.items() if name in _OF_PIPELINES}
    metadata = {"class": kind, "not_run": sorted(parts.keys() - {pipeline.network, "scheduler"})}
    return _found(path, directory, model_type, arguments, metadata, variant)


_OF_PIPELINES = ("num_labels", "num_steps", "sampler", "guidance_scale")


def _found(
    path: Path,
    directory: Path,
    model_type: str,
    arguments: dict[str, Any],
    metadata: dict[str, Any],
    variant: str | None,
) -> Found:
    weights = _weights_file(directory, variant)
    config = arguments.get("arguments", arguments)
    channels = config.get("in_channels", 4 if arguments.get("network") == "dit" else 3)
    facts = {
        "format": "diffusers",
        **metadata,
        "model_type": model_type,
        "weights": weights.name,
        "image_range": [-1.0, 1.0] if channels in (1, 3) else None,
        "compute_dtype": "float32",
    }
    restore = partial(_restore, weights, model_type, arguments)
    return Found(path, model_type, arguments, facts, restore)


def _restore(
    weights: Path,
    model_type: str,
    config: Mapping[str, Any],
    *,
    dtype: DTypeLike | None,
    sharding: jax.sharding.Sharding | WeightLayout | None,
) -> Any:
    template = abstract_model(model_type, config)
    assert isinstance(template, Published)  # as all of `MODELS` are
    stored: dict[str, StoredArray] = {}
    for name, array in stored_arrays(weights).items():
        if current_name(name) in stored:
            raise CheckpointCorruptError(f"{weights}: {current_name(name)} is there twice, once as {name}")
        stored[current_name(name)] = array
    where = str(weights)
    return restored(template, stored, template.published_weights(), where, dtype=dtype, sharding=sharding)


def family_of(file: Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The family of a model and its arguments, by a config of diffusers.

    Raises:
        ConfigError: Its class is none of `MODELS`, or a setting is not supported.
    """
    kind = config.get("_class_name")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if kind == _OLD_DIT and config.get("norm_type") == _OLD_DIT_NORM:
        kind = "DiTTransformer2DModel"
        for key, neutral in _OLD_DIT_SETTINGS.items():
            if (value := arguments.pop(key, neutral[0])) not in neutral:
                raise ConfigError(f"{file}: {key}: expected {neutral[0]!r}, got {value!r}")
    if kind == "AutoencoderTiny":
        return "autoencoder_tiny", arguments
    if not isinstance(kind, str) or kind not in _NETWORKS:
        raise ConfigError(
            f"{file.parent} is a {kind} of diffusers, which is not run here; models that are: "
            f"{', '.join(MODELS)}; and pipelines: {', '.join(PIPELINES)}"
        )
    classes = "num_class_embeds" if kind == "UNet2DModel" else "num_embeds_ada_norm"
    labels = arguments.get(classes, 0 if kind == "UNet2DModel" else 1000)
    return "denoiser", {"network": _NETWORKS[kind], "arguments": arguments, "num_labels": labels or 0}


def _weights_file(directory: Path, variant: str | None) -> Path:
    """The file of a model's weights, or the index of its shards."""
    found: dict[str | None, Path] = {}
    for file in sorted(directory.glob(f"{WEIGHTS}*")):
        match = _WEIGHTS_FILE.fullmatch(file.name)
        if match is not None:  # an index goes before a file beside it, as in diffusers
            name = match["of_shards"] or match["alone"]
            if name not in found or "index" in file.name:
                found[name] = file
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    if variant in found:
        return found[variant]
    if found:
        known = ", ".join(name or "one without a name" for name in found)
        raise CheckpointNotFoundError(
            f"{directory} has no variant {variant!r} of its weights; it has {known}"
        )
    raise CheckpointNotFoundError(f"{directory} has no {WEIGHTS}.safetensors{_pickles(directory)}")


def _pickles(directory: Path) -> str:
    """What to do about pickles, where there are some."""
    names = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if not names:
        return ""
    kind = _json(directory / MODEL_FILE).get("_class_name", "ModelMixin")
    return (
        f"; {names[0]} is a pickle, which can run programs and is never read; where PyTorch is, this "
        f'converts it: python -c "import diffusers as d; d.{kind}.from_pretrained({str(directory)!r})'
        ".save_pretrained('converted')\""
    )


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each part that a pipeline has, by its name."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    }


def _why_not(directory: Path) -> str | None:
    """Why a model's directory cannot be run; None if it can."""
    try:
        file = directory / MODEL_FILE
        model_type, arguments = family_of(file, read_json(file))
        abstract_model(model_type, arguments)
        _weights_file(directory, None)
    except (ConfigError, CheckpointNotFoundError, InputError) as error:
        return str(error)
    return None


def _json(path: Path) -> dict[str, Any]:
    """A file of JSON, or nothing where there is none."""
    try:
        return read_json(path)
    except ConfigError:
        return {}
