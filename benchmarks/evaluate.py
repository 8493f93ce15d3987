"""What `artifex evaluate` costs beside the models that it runs.

Both sides run in turns: `evaluate`, and the same calls of both models without any measuring. Their share of
the time is that of the second over the first. The table's rows are the parts that measure, timed within.

    python benchmarks/evaluate.py --data test.npy

`test.npy` holds uint8 pictures [N, 28, 28, 1], such as MNIST's test pictures; without it the test digits that
ship are taken over and over. Of the models that ship, `mnist-vae` takes the least time to draw, so its share
is the smallest, and those that take steps the most.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, digits, in_turns, ratio, report

from artifex.generative_models.inference.measure import quality
from artifex.generative_models.inference.measure.features import FeatureModel
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

MODELS, FEATURES = ("mnist-vae", "mnist-gan", "mnist-vqvae"), "mnist-classifier"
PARTS = (
    "manifolds",
    "of_blocks",
    "of_mean",
    "of_means",
    "of_sets",
    "peak_signal_to_noise",
    "structural_similarity",
)
ROWS = 1 << 10  # that are read at once, about as evaluate does


def models_alone(
    pipeline: InferencePipeline,
    real: np.ndarray,
    features: FeatureModel,
    num_samples: int,
) -> None:
    """What `evaluate` has both models do."""
    endpoints = pipeline.executor.endpoints
    for start in range(0, len(real), ROWS):
        pictures = real[start : start + ROWS]
        features.see(pictures)
        if "reconstruct" in endpoints:
            features.see(pipeline.reconstruct(pictures))
        if "elbo" in endpoints:
            pipeline.call("elbo", x=pictures, rngs=0)
        elif "log_prob" in endpoints:
            pipeline.call("log_prob", x=pipeline.preprocess_fn(pictures))
    drawn: list[np.ndarray] = []
    for chunk in quality.samples(pipeline, num_samples)[0]:
        drawn.append(chunk)
        if len(drawn) * len(chunk) >= ROWS:
            features.see(np.concatenate(drawn))
            drawn = []
    if drawn:
        features.see(np.concatenate(drawn))


def timed(name: str, fn: Callable[..., Any], spent: Counter[str]) -> Callable[..., Any]:
    """A function that adds up its seconds."""

    @functools.wraps(fn)
    def run(*args: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        try:
            return fn(*args, **settings)
        finally:
            spent[name] += time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="a .npy array of real pictures, uint8 [N, 28, 28, 1]")
    parser.add_argument("--pictures", type=int, default=10_000, help="real ones, and as many samples")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    count = args.pictures
    real = np.rint(255 * digits(count)).astype(np.uint8) if args.data is None else np.load(args.data)[:count]
    features = FeatureModel(load_pipeline(FEATURES))
    spent: Counter[str] = Counter()
    for name in PARTS:
        setattr(quality, name, timed(name, getattr(quality, name), spent))
    for model in args.models:
        measure(model, real, features, spent, args.rounds)


def measure(model: str, real: np.ndarray, features: FeatureModel, spent: Counter[str], rounds: int) -> None:
    pipeline, count = load_pipeline(model), len(real)
    calls = {
        "models": lambda: models_alone(pipeline, real, features, count),
        "evaluate": lambda: quality.evaluate(pipeline, real, features, num_samples=count),
    }
    for call in calls.values():
        call()
    spent.clear()
    times = in_turns(calls, rounds)
    share = ratio(times, "models", "evaluate")
    medians = {name: float(np.median(values)) for name, values in times.items()}
    rows: list[Row] = [[name, f"{seconds:.2f} s"] for name, seconds in medians.items()]
    rows += [[f"  {name}", f"{seconds / rounds:.2f} s"] for name, seconds in spent.most_common()]
    rows.append(["share of the models", f"{share:.0%}"])
    facts = {
        "pictures": count,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "share_of_models": round(share, 3),
    }
    report(f"evaluate: {model} by {FEATURES}, {count:,} samples", ["", "median"], rows, facts)


if __name__ == "__main__":
    main()
