"""To disk and back: a checkpoint, an export, and a second start from the cache, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from parts.bench import Bench, Finding, Step, random_vae

import artifex
from artifex.generative_models.core.checkpointing import (
    load_checkpoint,
    save_checkpoint,
    setup_checkpoint_manager,
)
from artifex.generative_models.inference import (
    Executor,
    InferencePipeline,
    export_model,
    load_exported_model,
)
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE

ROWS = 8

Outputs = Mapping[str, np.ndarray]


def save_and_load(bench: Bench) -> Iterator[Step]:
    """A model with random weights, written and read in each way there is."""
    model = random_vae(bench.models[bench.smaller].config, seed=12)
    pictures = bench.pictures(bench.smaller, ROWS)
    outputs = partial(outputs_of, pictures=pictures, latent_dim=model.latent_dim)
    expected = outputs(Executor(model, batch_sizes=(ROWS,), tuned=False))
    with TemporaryDirectory() as name:
        folder = Path(name)
        ways: dict[str, Callable[[], tuple[Executor, dict[str, float]]]] = {
            "checkpoint": partial(through_a_checkpoint, model, folder / "checkpoints"),
            "export": partial(through_an_export, model, folder / "export"),
            "artifex.load": lambda: (artifex.load(folder / "export").executor, {}),
            "first start": partial(through_the_cache, folder / "export"),
            "second start": partial(through_the_cache, folder / "export"),
        }
        for way, load in ways.items():
            yield Step(way, partial(compared, load, outputs, expected))
        as_uint8 = np.round(pictures * 255).astype(np.uint8)
        yield Step("uint8 pictures, loaded and cached", partial(same_pictures, folder / "export", as_uint8))


def outputs_of(executor: Executor, pictures: np.ndarray, latent_dim: int) -> Outputs:
    """What the endpoints give for eight rows, a batch size of every executor here."""
    z = np.random.default_rng(0).standard_normal((ROWS, latent_dim)).astype(np.float32)
    calls = {
        "encode": executor("encode", {"x": pictures}),
        "decode": executor("decode", {"z": z}),
        "generate": executor("generate", key=jax.random.key(3), num_rows=ROWS),
    }
    return {
        f"{call}: {name}": np.asarray(value)
        for call, outputs in calls.items()
        for name, value in outputs.items()
    }


def compared(
    load: Callable[[], tuple[Executor, dict[str, float]]],
    outputs: Callable[[Executor], Outputs],
    expected: Outputs,
) -> Finding:
    """Whether what was read gives the same bits as what was written."""
    executor, more = load()
    found = outputs(executor)
    different = [name for name, value in expected.items() if not np.array_equal(found[name], value)]
    says = f"{', '.join(different)} differ" if different else "bits equal"
    details = "".join(f", {name} {value:.3g}" for name, value in more.items())
    return Finding({"different": different, **more}, says + details, [says] if different else [])


def through_a_checkpoint(model: VAE, directory: Path) -> tuple[Executor, dict[str, float]]:
    manager, _ = setup_checkpoint_manager(directory)
    with manager:
        save_checkpoint(manager, model, 3)
        restored, _ = load_checkpoint(manager, random_vae(model.config, seed=13))
    return Executor(restored, batch_sizes=(ROWS,), tuned=False), {}


def through_an_export(model: VAE, directory: Path) -> tuple[Executor, dict[str, float]]:
    export_model(model, directory, step=3, training_steps=3, final_loss=0.0)
    return Executor(load_exported_model(directory)[0], batch_sizes=(ROWS,), tuned=False), {}


def cached_start(export_dir: Path) -> InferencePipeline:
    """A pipeline that takes what an earlier start kept in the cache."""
    return load_pipeline(export_dir, batch_size=ROWS)


def through_the_cache(export_dir: Path) -> tuple[Executor, dict[str, float]]:
    """The executor, the seconds until it was warm, and how much it compiled."""
    start = time.perf_counter()
    executor = cached_start(export_dir).executor
    executor.warmup(batch_sizes=[ROWS])
    return executor, {"seconds": time.perf_counter() - start, "compiled": executor.compile_count}


def same_pictures(export_dir: Path, pictures: np.ndarray) -> Finding:
    """Whether pipelines, one loaded and one from the cache, make the same pictures of pictures."""
    found = [np.asarray(load(export_dir).reconstruct(pictures)) for load in (artifex.load, cached_start)]
    says = "equal" if np.array_equal(*found) else "they differ"
    return Finding({"same": says}, says, [] if says == "equal" else [says])
