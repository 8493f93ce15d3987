"""The bundled models that draw, side by side: how good their digits are, and how long one takes.

Each draws as many digits of each class where it is told the class, and is compared with MNIST's test pictures
by the features of `mnist-classifier`, which none of them was trained with. All figures are those of
`artifex evaluate`; distances compare with one another only where the number of pictures is the same. Seconds
are of one picture in batches of 64, compiled before. With `--grids`, the command line draws the grids of the
documentation.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from common import Row, in_turns, report

from artifex.generative_models.inference.formats.loading import find_model
from artifex.generative_models.inference.measure.features import FeatureModel
from artifex.generative_models.inference.measure.quality import evaluate
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline

MODELS = {  # and what they are
    "mnist-diffusion": "diffusion, U-Net, 20 steps",
    "mnist-flow": "flow matching, transformer, 20 steps",
    "mnist-autoregressive": "autoregressive transformer",
    "mnist-vqvae": "VQ-VAE with an autoregressive prior",
    "mnist-gan": "GAN, style-based",
    "mnist-realnvp": "normalizing flow, temperature 0.7",
    "mnist-energy": "energy-based, Langevin chains",
    "mnist-vae": "VAE",
}
TEMPERATURES = {"mnist-realnvp": 0.7}  # others draw at 1
FEATURES = "mnist-classifier"
BATCH = 64
ROUNDS = 3
MEASURES = {  # and how they are written
    "accuracy": lambda value: f"{value:.1%}",
    "frechet_distance": lambda value: f"{value:.1f}",
    "precision": lambda value: f"{value:.2f}",
    "recall": lambda value: f"{value:.2f}",
    "bits_per_dim": lambda value: f"{value:.2f}",
    "bits_per_dim_bound": lambda value: f"{value:.2f}",
}


def test_digits(folder: Path | None) -> np.ndarray:
    """MNIST's test pictures from a folder of its files, or the 300 that ship."""
    if folder is None:
        with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
            return archive["images"]
    sys.path.append(str(Path(__file__).parent.parent / "examples"))
    from mnist import TEST_PICTURES, read_idx

    return read_idx(folder, TEST_PICTURES)[..., None]


def milliseconds(pipeline: InferencePipeline, temperature: float) -> float:
    """Of one picture, in batches of `BATCH`."""
    says = pipeline.executor.endpoints["generate"].says
    labels = {"label": np.arange(BATCH) % 10} if says is not None and "label" in says.fields else {}

    def draw() -> np.ndarray:
        return pipeline.generate(BATCH, rngs=0, temperature=temperature, **labels)

    draw()
    return 1e3 * statistics.median(in_turns({"draw": draw}, ROUNDS)["draw"]) / BATCH


def draw_grid(name: str, folder: Path) -> None:
    """What the documentation shows of a model: the digits from 0 to 9, ten of each."""
    says = load_pipeline(name).executor.endpoints["generate"].says
    chosen = ["--set", f"label={','.join('0123456789' * 10)}"] if says and "label" in says.fields else []
    if name in TEMPERATURES:
        chosen += ["--temperature", f"{TEMPERATURES[name]}"]
    output = folder / f"{name}.png"
    words = ["generate", name, "-n", "100", "-o", f"{output}", "--scale", "1", *chosen]
    subprocess.run([sys.executable, "-m", "artifex", *words], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with MNIST's test pictures; else 300 that ship")
    parser.add_argument("--samples", type=int, default=1000, help="of each model")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--grids", type=Path, help="a folder to draw a grid of each model into")
    args = parser.parse_args(arguments)

    real = test_digits(args.data)
    features = FeatureModel(load_pipeline(FEATURES, batch_size=256))
    rows: list[Row] = []
    facts: dict[str, dict[str, object]] = {}
    for name in args.models:
        pipeline = load_pipeline(name, batch_size=BATCH)
        temperature = TEMPERATURES.get(name, 1.0)
        said = {"temperature": temperature} if name in TEMPERATURES else {}
        measures = evaluate(pipeline, real, features, num_samples=args.samples, given=said)
        found = {one.name: one for one in measures}
        taken = milliseconds(pipeline, temperature)
        facts[name] = {
            "numbers": pipeline.executor.num_parameters,
            "bytes": sum(file.stat().st_size for file in find_model(name).rglob("*") if file.is_file()),
            "milliseconds": round(taken, 3),
            **{one: [round(m.value, 4), round(m.low, 4), round(m.high, 4)] for one, m in found.items()},
        }
        cells = [write(found[one].value) if one in found else "" for one, write in MEASURES.items()]
        rows.append([name, MODELS[name], f"{facts[name]['numbers']:,}", *cells, f"{taken:.2f}"])
        if args.grids is not None:
            draw_grid(name, args.grids)
    head = ["model", "", "numbers", *(one.replace("_", " ") for one in MEASURES), "ms a picture"]
    report("zoo", head, rows, {"samples": args.samples, "real": len(real), "models": facts})


if __name__ == "__main__":
    main()
