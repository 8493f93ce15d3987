"""Inference for generative models in JAX and Flax NNX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from artifex.generative_models.core import Endpoint, Option, TensorSpec
    from artifex.generative_models.inference import (
        AsyncInferenceServer,
        Batcher,
        Executor,
        InferencePipeline,
        StepStream,
        StreamingGenerator,
        batch_encode_images,
        batch_generate_samples,
        benchmark_inference,
        benchmark_model,
        benchmark_vae_inference,
        check,
        denormalize_images,
        enable_compilation_cache,
        encode_images_jit,
        export_model,
        generate_samples_jit,
        inference_with_jit,
        load_exported_model,
        load_model_for_inference,
        memory_efficient_inference,
        normalize_images,
        optimize_batch_size,
        parallel_batch_inference,
        stream_samples,
        tune,
    )

__version__ = "0.1.0"
__all__ = [
    "AsyncInferenceServer",
    "Batcher",
    "Endpoint",
    "Executor",
    "InferencePipeline",
    "Option",
    "StepStream",
    "StreamingGenerator",
    "TensorSpec",
    "__version__",
    "batch_encode_images",
    "batch_generate_samples",
    "benchmark_inference",
    "benchmark_model",
    "benchmark_vae_inference",
    "check",
    "denormalize_images",
    "enable_compilation_cache",
    "encode_images_jit",
    "export_model",
    "generate_samples_jit",
    "inference_with_jit",
    "load",
    "load_exported_model",
    "load_model_for_inference",
    "memory_efficient_inference",
    "normalize_images",
    "optimize_batch_size",
    "parallel_batch_inference",
    "stream_samples",
    "tune",
]


def load(name_or_dir: str | PathLike[str]) -> InferencePipeline:
    """Loads a bundled model, an export directory or one of diffusers or transformers, ready to run.

    Args:
        name_or_dir: A bundled name such as `"mnist-vae"`, what `export_model` wrote, a model or an
            unconditional pipeline that diffusers wrote, or a GPT-2 that transformers wrote.

    Raises:
        ConfigError: There is no such model, or its config or metadata is unusable.
        CheckpointError: Its weights are missing, damaged, or do not fit the config.
    """
    from artifex.generative_models.inference.pipeline import load_pipeline  # importing it imports JAX

    return load_pipeline(name_or_dir)


def __getattr__(name: str) -> Any:
    """Imports a name when it is first asked for: JAX takes a second, which no `--help` should wait for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "core" if name in ("Endpoint", "Option", "TensorSpec") else "inference"
    return getattr(importlib.import_module(f"{__name__}.generative_models.{room}"), name)


def __dir__() -> list[str]:
    return __all__
