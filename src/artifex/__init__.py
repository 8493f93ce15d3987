"""Inference for generative models in JAX and Flax NNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from artifex.generative_models.inference.pipeline import InferencePipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(name_or_dir: str | PathLike[str]) -> InferencePipeline:
    """Loads a bundled model or an export directory, ready to run on uint8 pictures.

    Args:
        name_or_dir: A bundled name such as `"mnist-vae"`, or what `export_model` wrote.

    Raises:
        ConfigError: There is no such model, or its config or metadata is unusable.
        CheckpointError: Its checkpoint is missing, damaged, or does not fit the config.
    """
    from artifex.generative_models.inference.pipeline import load_pipeline  # importing it imports JAX

    return load_pipeline(name_or_dir)
