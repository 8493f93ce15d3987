"""Directories of transformers that hold a GPT-2: `config.json`, safetensors, and a tokenizer.

Its weights are in `model.safetensors`, or in shards with an index. The tokenizer is in `tokenizer.json`, or
in `vocab.json` and `merges.txt`; without one callers give tokens in place of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from artifex.generative_models.core.config import abstract_model, read_json
from artifex.generative_models.core.errors import CheckpointNotFoundError, ConfigError
from artifex.generative_models.core.published import PublishedWeights
from artifex.generative_models.core.sharding import WeightLayout
from artifex.generative_models.core.tokenizer import tokenizer_in
from artifex.generative_models.inference.formats.found import Found
from artifex.generative_models.inference.formats.restoring import restored
from artifex.generative_models.inference.formats.safetensors import INDEX_SUFFIX, stored_arrays

if TYPE_CHECKING:
    from jax.typing import DTypeLike

MODELS = ("GPT2LMHeadModel",)
_CONFIG_FILE, _WEIGHTS = "config.json", "model.safetensors"
_ARGUMENTS: dict[
    str, tuple[str, Any]
] = {  # what we call them, and what transformers takes if nothing is said
    "vocab_size": ("vocab_size", 50257),
    "n_positions": ("num_positions", 1024),
    "n_embd": ("features", 768),
    "n_layer": ("num_layers", 12),
    "n_head": ("num_heads", 12),
    "tie_word_embeddings": ("tied", True),
    "layer_norm_epsilon": ("epsilon", 1e-5),
    "eos_token_id": ("end", 50256),
    "bos_token_id": ("start", 50256),
}
_SUPPORTED: dict[str, tuple[Any, ...]] = {  # the usual value first
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_MASKS = (".attn.bias", ".attn.masked_bias")  # which old files have among the weights
_HEAD, _BODY = "lm_head.weight", "transformer."


def is_transformers(path: Path) -> bool:
    """Whether a directory looks like one of transformers."""
    try:
        config = read_json(path / _CONFIG_FILE)
    except ConfigError:
        return False
    return "model_type" in config and "architectures" in config


def find_transformers(path: Path) -> Found:
    """The model in a directory of transformers.

    Raises:
        ConfigError: It is none of `MODELS`, or a setting is not supported.
        CheckpointNotFoundError: There are no weights that can be read.
    """
    file = path / _CONFIG_FILE
    config = read_json(file)
    kinds = config["architectures"]
    if not isinstance(kinds, list) or not set(kinds) & {*MODELS}:
        raise ConfigError(
            f"{path} is {kinds} of transformers, which is not run here; models that are: {', '.join(MODELS)}"
        )
    for key, values in _SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            wanted = " or ".join(map(repr, values))
            raise ConfigError(f"{file}: {key}: expected {wanted}, got {config[key]!r}")
    arguments = {ours: config.get(theirs, usual) for theirs, (ours, usual) in _ARGUMENTS.items()}
    inner, features = config.get("n_inner"), arguments["features"]
    if inner is not None and inner != 4 * features:
        raise ConfigError(f"{file}: n_inner: expected {4 * features}, four times n_embd, got {inner!r}")
    end = arguments["end"]
    if isinstance(end, list):
        raise ConfigError(f"{file}: eos_token_id: expected one symbol, got {end!r}")
    arguments["tokenizer"] = tokenizer_in(path)
    weights = _weights_file(path)
    facts = {
        "format": "transformers",
        "class": MODELS[0],
        "model_type": "gpt2",
        "weights": weights.name,
        "image_range": None,
        "compute_dtype": "float32",
    }
    return Found(path, "gpt2", arguments, facts, partial(_restore, weights, arguments))


def _weights_file(path: Path) -> Path:
    """The file of the weights, or the index of its shards."""
    for name in (_WEIGHTS + INDEX_SUFFIX, _WEIGHTS):
        if (path / name).is_file():
            return path / name
    pickles = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for file in path.glob(pattern)
    )
    also = ""
    if pickles:
        also = (
            f'; {pickles[0]} is not read; where PyTorch is, this converts it: python -c "import transformers '
            f"as t; t.GPT2LMHeadModel.from_pretrained({str(path)!r}).save_pretrained('converted')\""
        )
    raise CheckpointNotFoundError(f"{path} has no {_WEIGHTS}{also}")


def _restore(
    weights: Path,
    config: Mapping[str, Any],
    *,
    dtype: DTypeLike | None,
    sharding: jax.sharding.Sharding | WeightLayout | None,
) -> Any:
    template = abstract_model("gpt2", config)
    assert isinstance(template, PublishedWeights)
    wanted = template.published_weights()
    stored = {
        name if name == _HEAD or name.startswith(_BODY) else _BODY + name: array
        for name, array in stored_arrays(weights).items()
        if not name.endswith(_MASKS)
    }
    if _HEAD not in wanted:
        stored.pop(_HEAD, None)  # where it is tied, some files have the symbols' vectors twice
    return restored(template, stored, wanted, str(weights), dtype=dtype, sharding=sharding)
