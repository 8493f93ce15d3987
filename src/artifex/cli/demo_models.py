"""What `artifex demo` does with the bundled models: it compiles what it needs, draws, and takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from artifex.cli.figure import Panel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from artifex.generative_models.inference.pipeline import InferencePipeline

SEED = 0
BATCH_SIZE = 64
_COLUMNS = 16
_TIMED_ROWS = 4096
_START, _END = 7, 13  # places in the row of test digits: a 7 and a 3
_LABELS = 10
_OF_EACH = 2  # new digits of a label
_LOOKS = (1, 3, 6, 10)  # steps after which estimates are drawn


class Shown(NamedTuple):
    """A model at work.

    Args:
        panels: What it drew.
        facts: Seconds and rates by name.
        remarks: How each of these was measured.
    """

    panels: list[Panel]
    facts: dict[str, float]
    remarks: dict[str, str]


def show_autoencoder(pipeline: InferencePipeline, tell: Callable[[str], None]) -> Shown:
    """Reconstructions, samples and a line from one digit to another.

    Args:
        pipeline: Of a model that encodes, decodes and draws digits.
        tell: Told what is being done.
    """
    from flax import nnx

    from artifex.generative_models.core.keys import sample_key

    tell("Compiling")
    needed = {
        "generate": [BATCH_SIZE],
        "encode": [2, BATCH_SIZE],
        "decode": [_COLUMNS],
        "reconstruct": [_COLUMNS],
    }
    warmups = [pipeline.executor.warmup([endpoint], sizes)[endpoint] for endpoint, sizes in needed.items()]
    tell("Drawing")
    images, labels = digits()
    first_of = [int(np.argmax(labels == digit)) for digit in range(_LABELS)]
    second_of = [int(np.flatnonzero(labels == digit)[1]) for digit in range(_COLUMNS - _LABELS)]
    originals = images[first_of + second_of]
    reconstructions = np.asarray(pipeline.reconstruct(originals))
    samples = np.asarray(pipeline.generate(BATCH_SIZE, rngs=nnx.Rngs(SEED)))
    line = np.asarray(pipeline.interpolate(originals[_START], originals[_END], _COLUMNS))
    panels = [
        Panel("Test digits", "which the model was not trained on", originals[None]),
        Panel("Reconstructions", f"from {pipeline.config['latent_dim']} numbers each", reconstructions[None]),
        Panel(
            "New digits",
            "drawn from the prior, not picked",
            samples.reshape(-1, _COLUMNS, *samples.shape[1:]),
        ),
        Panel("From 7 to 3", "along a straight line between their latents", line[None]),
    ]
    tell("Timing")
    pictures = np.resize(images, (_TIMED_ROWS, *images.shape[1:]))
    jobs = {
        "samples_per_second": pipeline.generate_chunks(_TIMED_ROWS, key=sample_key(SEED)),
        "images_encoded_per_second": pipeline.encode_chunks(pictures),
    }
    facts = {"compile_seconds": sum(sum(by_size.values()) for by_size in warmups)}
    for name, chunks in jobs.items():
        start = time.perf_counter()
        rows = sum(len(chunk) for chunk in chunks)
        facts[name] = rows / (time.perf_counter() - start)
    each = f"{_TIMED_ROWS:,} in batches of {BATCH_SIZE}, compiled before"
    return Shown(panels, facts, {"compile_seconds": "5 executables", **dict.fromkeys(jobs, each)})


def show_denoiser(pipeline: InferencePipeline, tell: Callable[[str], None]) -> Shown:
    """Digits from 0 to 9, and how the first of each came out of noise.

    Args:
        pipeline: Of a model that draws the digit that its label says, step by step.
        tell: Told what is being done.
    """
    from artifex.generative_models.core.keys import sample_key
    from artifex.generative_models.inference.offline.sampling import sampling

    executor, rows = pipeline.executor, _OF_EACH * _LABELS
    labels = np.tile(np.arange(_LABELS), _OF_EACH)
    how = sampling(executor, rows, 1.0, {"label": labels})
    given = {"inputs": how.rows(0, rows), "key": sample_key(SEED), **how.options}
    tell("Compiling")
    start = time.perf_counter()
    next(executor.iterate("generate", **given))
    compile_seconds = time.perf_counter() - start
    tell("Drawing")
    start = time.perf_counter()
    looks = [progress.outputs["x"] for progress in executor.iterate("generate", **given)]
    rate = rows / (time.perf_counter() - start)
    digits = np.asarray(pipeline.postprocess_fn(looks[-1]))
    noisy = [np.asarray(pipeline.postprocess_fn(looks[number - 1][:_LABELS])) for number in _LOOKS]
    numbers = f"{', '.join(map(str, _LOOKS))} and all {len(looks)}"
    panels = [
        Panel("New digits", "not picked", digits.reshape(_OF_EACH, _LABELS, *digits.shape[1:])),
        Panel("Out of noise", f"estimates after {numbers} steps", np.stack([*noisy, digits[:_LABELS]])),
    ]
    return Shown(
        panels,
        {"compile_seconds": compile_seconds, "samples_per_second": rate},
        {
            "compile_seconds": "3 executables, and a first step",
            "samples_per_second": f"{rows} at once, {len(looks)} steps with a look after each, compiled",
        },
    )


def digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """Pictures [N, 28, 28, 1] and labels [N] of digits that no bundled model was trained on."""
    from importlib import resources

    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        return archive["images"], archive["labels"]
