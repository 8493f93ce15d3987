"""How good a model is: whether what it draws and reconstructs looks like real pictures.

Pictures are compared by the features of another model, and are never all in memory; features are. Every
figure comes with the interval in which 95 % of its bootstrap resamples lie.

References:
    Salimans et al., *Improved techniques for training GANs*, 2016. https://arxiv.org/abs/1606.03498
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.measure.distances import (
    frechet_distance,
    kernel_distance,
    mean_distance,
    weighted_moments,
)
from artifex.generative_models.inference.measure.features import FeatureModel, Seen
from artifex.generative_models.inference.measure.likelihoods import likelihood_endpoint, likelihoods
from artifex.generative_models.inference.measure.likeness import peak_signal_to_noise, structural_similarity
from artifex.generative_models.inference.measure.neighbours import manifolds
from artifex.generative_models.inference.measure.resampling import of_blocks, of_mean, of_means, of_sets
from artifex.generative_models.inference.offline.chunks import row_chunks
from artifex.generative_models.inference.offline.sources import Pictures
from artifex.generative_models.inference.pipeline import InferencePipeline

_NEIGHBOURS = 3
_BEST_PSNR = 10 * np.log10(12 * 255**2)  # of pictures that rounding alone tells apart; of equal ones, too
_LEAST_SIDE = 11  # pixels, for SSIM
_CHUNK_BYTES, _MOST_BYTES = 1 << 20, 64 << 20  # of pictures at once, and where a batch is more, of its

Progress = Callable[[str, int, int], None]  # what is done, how many pictures of it, and of how many


@dataclass(frozen=True)
class Measure:
    """A figure of a model's quality.

    Args:
        name: What it is, such as `frechet_distance`.
        value: The figure.
        low: The lower end of its interval.
        high: The upper end.
        num_pictures: How many pictures of the model it is of.
        about: One line for people: what it says, and which way is better.
    """

    name: str
    value: float
    low: float
    high: float
    num_pictures: int
    about: str


class _Column(NamedTuple):
    """What is told of each real picture, float64 [pictures]; and what that is, for people."""

    values: np.ndarray
    about: str


def evaluate(
    pipeline: InferencePipeline,
    data: np.ndarray | Pictures,
    features: FeatureModel,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    likelihood: bool | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Measures a model by what it draws and, where it can, by how well it reconstructs and foretells.

    Where the model takes a label and nobody says which, each is drawn as often as the others. Real pictures
    that it was trained on make it look better than it is: give it others.

    Args:
        pipeline: The model.
        data: Real pictures, uint8 [pictures, H, W, C], or files of them, which are read a batch at a time.
        features: What pictures are compared by.
        num_samples: How many to draw.
        seed: Of the draws and of the resamples.
        given: What else `generate` takes, such as `num_steps`.
        likelihood: Whether real pictures' bits a number are measured, where an endpoint `log_prob` or `elbo`
            tells them; None is unless that takes long: it has settings of a solver, or has to be told a
            class. Pictures then are of all classes, each as likely as the others. Where it can `dequantize`,
            pictures fill the cells of their 256 levels, as for published figures.
        progress: Told of how many pictures are done.

    Raises:
        InputError: The model neither draws nor reconstructs pictures; it tells no likelihood that is to be
            measured; too few pictures or samples; pictures of another shape.
    """
    draws, reconstructs = (_gives_pictures(pipeline, name) for name in ("generate", "reconstruct"))
    if not draws and not reconstructs:
        raise InputError(
            f"expected a model that draws or reconstructs pictures; it has "
            f"{', '.join(pipeline.executor.endpoints)}"
        )
    for what, count in (("samples", num_samples), ("real pictures", len(data))):
        if draws and count <= features.num_features:
            raise InputError(
                f"a covariance of {features.num_features} features takes at least "
                f"{features.num_features + 1} {what}, got {count}"
            )
    if draws:
        chunks, labels = samples(pipeline, num_samples, seed=seed, given=given)
    foretells = likelihood_endpoint(pipeline, likelihood)
    tell = progress or (lambda *_: None)
    random = np.random.default_rng(seed)
    size = _rows_at_once(pipeline, math.prod(features.input_shape))
    real = features.see_all(_counted(_chunks(data, size), "real pictures", len(data), tell))
    found: list[Measure] = []
    if draws:
        chunks = row_chunks(_counted(chunks, "samples", num_samples, tell), size)
        drawn = features.see_all(chunks)
        tell("measures of samples", 0, num_samples)
        found += _of_samples(real, drawn, labels, random)
    columns: dict[str, _Column] = {}
    if reconstructs:
        columns |= _of_reconstructions(pipeline, data, size, real.features, features, tell)
    if foretells is not None:
        name, values, about = likelihoods(
            pipeline,
            foretells,
            lambda: _chunks(data, size),
            len(data),
            seed=seed,
            progress=lambda done, total: tell("likelihoods", done, total),
        )
        columns[name] = _Column(values, about)
    estimates = of_means([column.values for column in columns.values()], random)
    return found + [
        Measure(name, *one, len(column.values), column.about)
        for one, (name, column) in zip(estimates, columns.items(), strict=True)
    ]


def samples(
    pipeline: InferencePipeline,
    num_samples: int,
    *,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    stop: int | None = None,
) -> tuple[Iterator[np.ndarray], np.ndarray | None]:
    """What `evaluate` draws: pictures, a batch at a time, and the label of each; None where they have none.

    Args:
        pipeline: The model.
        num_samples: How many there are.
        seed: Of the draws.
        given: What else `generate` takes.
        stop: How many are drawn, of all; None is all.
    """
    said, labels = _labels(pipeline, num_samples, given or {})
    key = sample_key(seed)
    return pipeline.generate_chunks(num_samples, key=key, given=said, stop=stop), labels


def _of_samples(
    real: Seen, drawn: Seen, labels: np.ndarray | None, random: np.random.Generator
) -> list[Measure]:
    some, others = drawn.features.astype(np.float64), real.features.astype(np.float64)
    among = manifolds(others, some, num_neighbours=_NEIGHBOURS)
    count, centre = len(some), others.mean(0)
    near, other_near = some - centre, others - centre

    def frechet(mine: np.ndarray, theirs: np.ndarray) -> float:
        return frechet_distance(weighted_moments(near, mine), weighted_moments(other_near, theirs))

    columns = [among.drawn, among.nearest]
    if drawn.probabilities is not None and labels is not None:
        columns.append(drawn.probabilities.argmax(1) == labels)
    precision, nearest, *accuracy = of_means(columns, random)
    found = [
        Measure(
            "frechet_distance",
            *of_sets(frechet, (count, len(others)), random),
            count,
            "of the features' normal distributions; lower is better, few samples make it larger",
        ),
        Measure(
            "kernel_distance",
            *of_blocks(kernel_distance, some, others, random),
            count,
            "maximum mean discrepancy of the features, unbiased; 0 is as good as real",
        ),
        Measure("precision", *precision, count, "share of samples that lie among real pictures"),
        Measure(
            "recall",
            *of_mean(among.real, random),
            count,
            "share of real pictures that lie among samples",
        ),
        Measure(
            "diversity",
            *of_blocks(lambda a, b: mean_distance(a) / mean_distance(b), some, others, random),
            count,
            "distance of two samples over that of two real pictures; 1 is as diverse",
        ),
        Measure(
            "nearest_real",
            *nearest,
            count,
            "distance of a sample from the nearest real picture; near 0 is a copy",
        ),
    ]
    if drawn.probabilities is not None:
        chances = drawn.probabilities.astype(np.float64)
        certainty = _negative_entropy(chances)

        def score(counts: np.ndarray) -> float:
            """`exp(E_x KL(p(y|x) || p(y)))`: Salimans et al. 2016, section 4."""
            mean = counts @ chances / counts.sum()
            return float(np.exp(counts @ certainty / counts.sum() - _negative_entropy(mean)))

        found.append(
            Measure(
                "classifier_score",
                *of_sets(score, (count,), random),
                count,
                "exp of the information between sample and class, as the Inception score; up to the "
                "number of classes",
            )
        )
    about = "share of samples in which the classifier sees the label"
    return found + [Measure("accuracy", *one, count, about) for one in accuracy]


def _of_reconstructions(
    pipeline: InferencePipeline,
    data: np.ndarray | Pictures,
    size: int,
    real: np.ndarray,
    features: FeatureModel,
    tell: Progress,
) -> dict[str, _Column]:
    """Of each picture and what the model makes of it; both are uint8."""
    found: dict[str, list[np.ndarray]] = {"psnr": [], "ssim": [], "feature_distance": []}
    done = 0
    for pictures in _chunks(data, size):
        made = np.concatenate([np.asarray(chunk) for chunk in pipeline.reconstruct_chunks(pictures)])
        found["psnr"].append(np.minimum(peak_signal_to_noise(pictures, made, span=255), _BEST_PSNR))
        if min(pictures.shape[1:3]) >= _LEAST_SIDE:
            found["ssim"].append(structural_similarity(pictures, made, span=255))
        theirs, ours = real[done : done + len(pictures)], features.see(made).features
        found["feature_distance"].append(np.linalg.norm(theirs.astype(np.float64) - ours, axis=1))
        done += len(pictures)
        tell("reconstructions", done, len(data))
    about = {
        "psnr": "of reconstructions, decibels; higher is better, 58.9 is equal",
        "ssim": "structural similarity of reconstructions; 1 is equal",
        "feature_distance": "of a picture's features and its reconstruction's; 0 is equal",
    }
    return {name: _Column(np.concatenate(values), about[name]) for name, values in found.items() if values}


def _gives_pictures(pipeline: InferencePipeline, endpoint: str) -> bool:
    """Whether an endpoint is there and gives uint8 pictures.

    Raises:
        InputError: It gives something else.
    """
    if endpoint not in pipeline.executor.endpoints:
        return False
    outputs = pipeline.executor.spec(endpoint)[1]
    if "x" not in outputs or len(outputs["x"].shape) != 3:
        shapes = {name: list(spec.shape) for name, spec in outputs.items()}
        raise InputError(f"{endpoint}: expected pictures x [height, width, channels], and it gives {shapes}")
    if pipeline.picture_dtype(endpoint) != np.uint8:
        raise InputError(
            f"{endpoint}: expected uint8 pictures, and it gives {pipeline.picture_dtype(endpoint)}"
        )
    return True


def _rows_at_once(pipeline: InferencePipeline, picture_bytes: int) -> int:
    """How many pictures are read at once: a batch or many, but of a few bytes."""
    batch = pipeline.batch_size or pipeline.executor.batch_sizes[-1]
    return max(1, min(max(batch, _CHUNK_BYTES // picture_bytes), _MOST_BYTES // picture_bytes))


def _chunks(data: np.ndarray | Pictures, size: int) -> Iterator[np.ndarray]:
    return row_chunks(data if isinstance(data, np.ndarray) else data.rows(0, len(data)), size)


def _negative_entropy(probabilities: np.ndarray) -> np.ndarray:
    """`sum p log p` along the last axis, where 0 log 0 is 0."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    total: np.ndarray = (probabilities * logs).sum(-1)
    return total


def _labels(
    pipeline: InferencePipeline, num_samples: int, given: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """What is said to `generate`, and the label of each sample; None where they have none."""
    says = pipeline.executor.endpoints["generate"].says
    label = None if says is None else says.fields.get("label")
    if label is None or label.maximum is None:
        return dict(given), None
    labels = given.get("label")
    if labels is None:
        labels = np.arange(num_samples) % (int(label.maximum) + 1)
    labels = label.checked("generate: label", labels, num_samples)
    return {**given, "label": labels}, np.broadcast_to(labels, num_samples)


def _counted(chunks: Iterable[Any], what: str, total: int, tell: Progress) -> Iterator[Any]:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        tell(what, done, total)
        yield chunk
