import subprocess
import sys
import warnings

import pytest

import artifex
import artifex.ray
from artifex import serving
from artifex.generative_models import core, inference
from artifex.generative_models.core import checkpointing, errors
from artifex.generative_models.models import vae

NAMES = {
    core: ["DeviceManager", "Endpoint", "Model", "Option", "TensorSpec"],
    artifex.ray: ["deployment", "encode_dataset", "generate_dataset", "run_on_ray"],
    serving: ["Tls", "create_app", "run_server"],
    inference: [
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
    ],
}
NAMES[artifex] = sorted([*NAMES[inference], "Endpoint", "Option", "TensorSpec", "__version__", "load"])


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_public_names(module: object) -> None:
    assert sorted(module.__all__) == NAMES[module]
    with warnings.catch_warnings(action="ignore"):  # Ray's own code uses what others deprecate
        assert all(getattr(module, name) is not None for name in module.__all__)


def test_names_that_the_specification_imports_from_their_own_modules() -> None:
    assert callable(checkpointing.load_checkpoint)
    assert callable(checkpointing.save_checkpoint)
    assert callable(checkpointing.setup_checkpoint_manager)
    assert callable(vae.VAE)


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    drawn = {
        "InputError": {"ArtifexError", "ValueError"},
        "InputTypeError": {"InputError", "TypeError"},
        "ConfigError": {"ArtifexError", "ValueError"},
        "UnknownModelTypeError": {"ConfigError"},
        "CheckpointError": {"ArtifexError"},
        "CheckpointNotFoundError": {"CheckpointError"},
        "CheckpointMismatchError": {"CheckpointError"},
        "CheckpointCorruptError": {"CheckpointError"},
        "ExportError": {"ArtifexError"},
        "OutputError": {"ArtifexError"},
        "CacheError": {"ArtifexError"},
        "Overloaded": {"ArtifexError"},
        "DeadlineExceededError": {"ArtifexError", "TimeoutError"},
        "LostProcessError": {"ArtifexError"},
        "ClosedError": {"ArtifexError", "RuntimeError"},
        "OutOfDeviceMemoryError": {"ArtifexError"},
        "DeviceError": {"ArtifexError"},
        "NonFiniteError": {"ArtifexError", "ArithmeticError"},
        "ArtifexError": {"Exception"},
    }
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name: {base.__name__ for base in value.__bases__} for name, value in found.items()} == drawn


def test_importing_artifex_imports_neither_jax_nor_numpy_and_create_app_no_server() -> None:
    script = """
import sys
import artifex
print(*{name.split(".")[0] for name in sys.modules})
from artifex.serving import create_app
print(*{name.split(".")[0] for name in sys.modules})
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    first, second = (set(line.split()) for line in run.stdout.splitlines())
    assert {"jax", "numpy", "flax", "orbax"}.isdisjoint(first)
    assert "artifex" in first
    assert {"uvicorn", "grpc", "flax", "orbax"}.isdisjoint(second)
    assert "starlette" in second


def test_importing_what_runs_on_ray_imports_no_ray() -> None:
    script = "import artifex.ray, artifex.ray.cluster, sys; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert {"ray", "pyarrow", "grpc"}.isdisjoint(modules.split())
