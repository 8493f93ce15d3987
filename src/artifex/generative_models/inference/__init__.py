"""Running trained models."""

from artifex.generative_models.inference.batching.async_server import AsyncInferenceServer
from artifex.generative_models.inference.batching.batcher import Batcher
from artifex.generative_models.inference.cache import enable_compilation_cache
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.formats.exporting import export_model
from artifex.generative_models.inference.formats.loading import load_exported_model, load_model_for_inference
from artifex.generative_models.inference.images import denormalize_images, normalize_images
from artifex.generative_models.inference.measure.calls import (
    benchmark_inference,
    benchmark_vae_inference,
    inference_with_jit,
)
from artifex.generative_models.inference.measure.endpoints import benchmark_model
from artifex.generative_models.inference.measure.laws import check
from artifex.generative_models.inference.offline.batch import (
    batch_encode_images,
    batch_generate_samples,
    encode_images_jit,
    generate_samples_jit,
    memory_efficient_inference,
    parallel_batch_inference,
)
from artifex.generative_models.inference.pipeline import InferencePipeline
from artifex.generative_models.inference.step_stream import StepStream
from artifex.generative_models.inference.streaming import StreamingGenerator, stream_samples
from artifex.generative_models.inference.tuning.optimize import optimize_batch_size, tune

__all__ = [
    "AsyncInferenceServer",
    "Batcher",
    "Executor",
    "InferencePipeline",
    "StepStream",
    "StreamingGenerator",
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
    "load_exported_model",
    "load_model_for_inference",
    "memory_efficient_inference",
    "normalize_images",
    "optimize_batch_size",
    "parallel_batch_inference",
    "stream_samples",
    "tune",
]
