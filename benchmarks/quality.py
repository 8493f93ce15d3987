"""Quality of samples: whether a classifier sees the digit that was asked for, and how far they are off.

Accuracy is the share of samples in which `mnist-classifier` sees the label that they were drawn with. The
Fréchet distance is between normal distributions of its features, of samples and of MNIST's test pictures
(Heusel et al. 2017, https://arxiv.org/abs/1706.08500, equation 6; with these features in place of those of an
Inception network, so numbers compare with one another only).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import Facts, Row, report

from artifex.generative_models.inference.measure.distances import Moments, frechet_distance, moments
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

STEPS = (3, 5, 10, 20, 50)
GUIDANCE = 1.5
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)  # with the model's own sampler and number of steps
MODELS = {
    "mnist-diffusion": ("ddim", "euler_a", "dpm++2m", "dpm++2m_sde", "unipc"),
    "mnist-flow": ("flow_euler", "dpm++2m", "unipc"),
}
NUM_LABELS = 10


class Quality(NamedTuple):
    """Share of samples that show what they should, and their Fréchet distance from real pictures."""

    accuracy: float
    distance: float


def real_moments() -> dict[str, Moments]:
    """Of MNIST's 10,000 test pictures and of 300 pictures of training, with the bundled classifier."""
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_features.npz")) as archive:
        return {
            name: Moments(archive[f"{name}_mean"], archive[f"{name}_covariance"])
            for name in ("test", "train")
        }


def measured(
    model: InferencePipeline, classifier: InferencePipeline, real: Moments, count: int, **said: object
) -> Quality:
    """Quality of so many samples, of each label in turn."""
    labels = np.arange(count) % NUM_LABELS
    pictures = model.generate(count, rngs=0, label=labels, **said)
    found = [
        np.concatenate([part[output] for part in classifier.executor.map(endpoint, [{"x": pictures}])])
        for endpoint, output in (("classify", "label"), ("features", "features"))
    ]
    return Quality(float((found[0] == labels).mean()), frechet_distance(moments(found[1]), real))


def sweep(
    name: str, classifier: InferencePipeline, real: Moments, count: int
) -> Iterator[tuple[str, int, float, Quality]]:
    """Sampler, steps, guidance and quality."""
    model = load_pipeline(name)
    own = model.executor.endpoints["generate"].says.fields
    choices = [(sampler, steps, GUIDANCE) for sampler in MODELS[name] for steps in STEPS]
    defaults = own["sampler"].default, own["num_steps"].default
    choices += [(*defaults, scale) for scale in SCALES if scale != GUIDANCE]
    for sampler, steps, scale in choices:
        said = {"sampler": sampler, "num_steps": steps, "guidance_scale": scale}
        yield sampler, steps, scale, measured(model, classifier, real, count, **said)


def plot(path: Path, results: dict[str, list[tuple[str, int, float, Quality]]]) -> None:
    """Fréchet distance against steps, a curve for each sampler and a picture for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (name, found) in zip(figure.subplots(1, 2, sharey=True), results.items(), strict=True):
        for sampler in MODELS[name]:
            points = [(steps, quality.distance) for each, steps, scale, quality in found
                      if each == sampler and scale == GUIDANCE]  # fmt: skip
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=sampler)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xticks(STEPS, map(str, STEPS))
        axes.minorticks_off()
        axes.set_xlabel("steps")
        axes.set_title(f"{name}, guidance {GUIDANCE:g}", loc="left", fontsize=11)
        axes.grid(axis="y", color="#e4e4e7", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.axes[0].set_ylabel("Fréchet distance to test pictures")
    canvas.print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=300, help="of each choice")
    parser.add_argument("--plot", type=Path, help="draw a picture of it, as PNG")
    args = parser.parse_args()

    classifier, real = load_pipeline("mnist-classifier", batch_size=256), real_moments()
    floor = frechet_distance(real["train"], real["test"])
    results = {}
    for name in MODELS:
        results[name] = list(sweep(name, classifier, real["test"], args.samples))
        rows: list[Row] = [["300 pictures of training", "", "", "", f"{floor:.1f}"]]
        rows += [
            [sampler, steps, f"{scale:g}", f"{quality.accuracy:.1%}", f"{quality.distance:.1f}"]
            for sampler, steps, scale, quality in results[name]
        ]
        facts: Facts = {"samples": args.samples, "distance_of_training_pictures": round(floor, 3)}
        report(f"quality: {name}", ["sampler", "steps", "guidance", "accuracy", "Fréchet"], rows, facts)
    if args.plot is not None:
        plot(args.plot, results)


if __name__ == "__main__":
    main()
