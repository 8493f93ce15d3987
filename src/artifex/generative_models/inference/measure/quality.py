"""How good a model is: whether what it draws and reconstructs looks like real pictures.

Pictures are looked at by the features that another model tells them by, and are never all in memory; features
are. Every figure comes with the interval in which 95 % of its bootstrap resamples lie (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.measure.distances import (
    frechet_distance,
    kernel_distance,
    manifolds,
    mean_distance,
    moments,
    nearest_distances,
)
from artifex.generative_models.inference.measure.likeness import peak_signal_to_noise, structural_similarity
from artifex.generative_models.inference.offline.chunks import row_chunks
from artifex.generative_models.inference.offline.sources import Pictures
from artifex.generative_models.inference.pipeline import InferencePipeline

_CONFIDENCE = 0.95
_MEAN_RESAMPLES, _SET_RESAMPLES = 1000, 50  # of means, and of what is computed from whole sets
_BLOCK_PICTURES = 1000  # of what takes all pairs, which are taken within blocks
_NEIGHBOURS = 3
_BEST_PSNR = 10 * np.log10(12 * 255**2)  # of pictures that rounding alone tells apart; of equal ones, too
_LEAST_SIDE = 11  # pixels, for SSIM

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


class Seen(NamedTuple):
    """What a model of features tells of some pictures.

    Args:
        features: Float32 [pictures, features].
        probabilities: Of the classes, float32 [pictures, classes]; None where it tells no classes.
    """

    features: np.ndarray
    probabilities: np.ndarray | None


class FeatureModel:
    """A model by whose features pictures are compared.

    Its endpoint `features` gives them, or `encode` where it has no such; and `classify`, where it is there,
    the probabilities of classes.

    Args:
        pipeline: The model; its preprocessing makes its input of uint8 pictures.

    Raises:
        InputError: It has neither endpoint, or one that does not give one vector a picture.
    """

    def __init__(self, pipeline: InferencePipeline):
        self._pipeline = pipeline
        executor = pipeline.executor
        self._endpoint = next((name for name in ("features", "encode") if name in executor.endpoints), "")
        if not self._endpoint:
            raise InputError(
                f"features: expected a model with an endpoint features or encode; it has "
                f"{', '.join(executor.endpoints)}"
            )
        self._output = _vector(executor, self._endpoint)
        self.has_classes = "classify" in executor.endpoints
        self.input_shape = executor.spec(self._endpoint)[0]["x"].shape

    def see(self, pictures: np.ndarray) -> Seen:
        """What it tells of uint8 pictures [pictures, H, W, C]."""
        if pictures.shape[1:] != self.input_shape:
            raise InputError(
                f"features: their model takes pictures {list(self.input_shape)}, and these are "
                f"{list(pictures.shape[1:])}"
            )
        x = self._pipeline.preprocess_fn(pictures)
        features = self._pipeline.call(self._endpoint, x=x)[self._output]
        probabilities = None
        if self.has_classes:
            probabilities = self._pipeline.call("classify", x=x)["probabilities"]
        return Seen(features, probabilities)

    def see_all(self, chunks: Iterable[np.ndarray]) -> Seen:
        """What it tells of pictures that come a part at a time."""
        parts = [self.see(chunk) for chunk in chunks]
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        features = np.concatenate([part.features for part in parts])
        return Seen(features, np.concatenate(probabilities) if probabilities else None)


def evaluate(
    pipeline: InferencePipeline,
    data: np.ndarray | Pictures,
    features: FeatureModel,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Measures a model by what it draws and, where it reconstructs, by how well it does.

    Where the model takes a label and nobody says which, each is drawn as often as the others. Real pictures
    that it was trained on make it look better than it is: give it others.

    Args:
        pipeline: The model.
        data: Real pictures, uint8 [pictures, H, W, C], or files of them, which are read a batch at a time.
        features: What pictures are compared by.
        num_samples: How many to draw.
        seed: Of the draws and of the resamples.
        given: What else `generate` takes, such as `num_steps`.
        progress: Told of how many pictures are done.

    Raises:
        InputError: The model neither draws nor reconstructs pictures; too few pictures or samples; pictures
            of another shape.
    """
    endpoints = pipeline.executor.endpoints
    if "generate" not in endpoints and "reconstruct" not in endpoints:
        raise InputError(f"expected a model that draws or reconstructs; it has {', '.join(endpoints)}")
    tell = progress or (lambda *_: None)
    random = np.random.default_rng(seed)
    size = max(1, pipeline.batch_size or pipeline.executor.batch_sizes[-1])
    real = features.see_all(_counted(_chunks(data, size), "real pictures", len(data), tell))
    found: list[Measure] = []
    if "generate" in endpoints:
        said, labels = _labels(pipeline, num_samples, given or {})
        key = sample_key(seed)
        chunks = pipeline.generate_chunks(num_samples, key=key, given=said)
        drawn = features.see_all(_counted(map(np.asarray, chunks), "samples", num_samples, tell))
        found += _of_samples(real, drawn, labels, random)
    if "reconstruct" in endpoints:
        found += _of_reconstructions(pipeline, data, size, real.features, features, random, tell)
    return found


def _of_samples(
    real: Seen, drawn: Seen, labels: np.ndarray | None, random: np.random.Generator
) -> list[Measure]:
    some, others = drawn.features.astype(np.float64), real.features.astype(np.float64)
    for what, features in (("samples", some), ("real pictures", others)):
        least = features.shape[1] + 1
        if len(features) < least:
            raise InputError(
                f"a covariance of {least - 1} features takes at least {least} {what}, got {len(features)}"
            )
    among = manifolds(others, some, num_neighbours=_NEIGHBOURS)
    count = len(some)

    def frechet(mine: np.ndarray, theirs: np.ndarray) -> float:
        return frechet_distance(moments(some[mine]), moments(others[theirs]))

    found = [
        Measure(
            "frechet_distance",
            *_of_sets(frechet, (count, len(others)), random),
            count,
            "of the features' normal distributions; lower is better, few samples make it larger",
        ),
        Measure(
            "kernel_distance",
            *_of_blocks(kernel_distance, some, others, random),
            count,
            "maximum mean discrepancy of the features, unbiased; 0 is as good as real",
        ),
        Measure(
            "precision",
            *_of_mean(among.drawn, random),
            count,
            "share of samples that lie among real pictures",
        ),
        Measure(
            "recall",
            *_of_mean(among.real, random),
            count,
            "share of real pictures that lie among samples",
        ),
        Measure(
            "diversity",
            *_of_blocks(lambda a, b: mean_distance(a) / mean_distance(b), some, others, random),
            count,
            "distance of two samples over that of two real pictures; 1 is as diverse",
        ),
        Measure(
            "nearest_real",
            *_of_mean(nearest_distances(some, others), random),
            count,
            "distance of a sample from the nearest real picture; near 0 is a copy",
        ),
    ]
    if drawn.probabilities is not None:
        chances = drawn.probabilities.astype(np.float64)
        found.append(
            Measure(
                "classifier_score",
                *_of_sets(lambda rows: _classifier_score(chances[rows]), (count,), random),
                count,
                "exp of the information between sample and class, as the Inception score; up to the "
                "number of classes",
            )
        )
        if labels is not None:
            right = chances.argmax(1) == labels
            about = "share of samples in which the classifier sees the label"
            found.append(Measure("accuracy", *_of_mean(right, random), count, about))
    return found


def _of_reconstructions(
    pipeline: InferencePipeline,
    data: np.ndarray | Pictures,
    size: int,
    real: np.ndarray,
    features: FeatureModel,
    random: np.random.Generator,
    tell: Progress,
) -> list[Measure]:
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
    return [
        Measure(name, *_of_mean(np.concatenate(values), random), done, about[name])
        for name, values in found.items()
        if values
    ]


def _chunks(data: np.ndarray | Pictures, size: int) -> Iterator[np.ndarray]:
    return row_chunks(data if isinstance(data, np.ndarray) else data.rows(0, len(data)), size)


def _classifier_score(probabilities: np.ndarray) -> float:
    """`exp(E_x KL(p(y|x) || p(y)))`: Salimans et al. 2016, https://arxiv.org/abs/1606.03498, section 4."""
    mean = probabilities.mean(0)
    ratio = np.divide(probabilities, mean, out=np.ones_like(probabilities), where=probabilities > 0)
    return float(np.exp((probabilities * np.log(ratio)).sum(1).mean()))


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
    return {**given, "label": labels}, np.broadcast_to(labels, num_samples)


def _of_mean(values: np.ndarray, random: np.random.Generator) -> tuple[float, float, float]:
    """The mean of values, one a picture, and its interval."""
    values = np.asarray(values, np.float64)
    share = np.full(len(values), 1 / len(values))
    means = [random.multinomial(len(values), share) @ values / len(values) for _ in range(_MEAN_RESAMPLES)]
    return (float(values.mean()), *_interval(means))


def _of_sets(
    figure: Callable[..., float], sizes: Sequence[int], random: np.random.Generator
) -> tuple[float, float, float]:
    """A figure of the rows of some sets, and its interval.

    Drawing rows twice shifts it, as if there were fewer; so what counts is how resamples lie around their
    mean.
    """
    value = figure(*map(np.arange, sizes))
    again = [figure(*(random.integers(size, size=size) for size in sizes)) for _ in range(_SET_RESAMPLES)]
    mean = float(np.mean(again))
    return (value, *_interval([one - mean + value for one in again]))


def _of_blocks(
    figure: Callable[[np.ndarray, np.ndarray], float],
    some: np.ndarray,
    others: np.ndarray,
    random: np.random.Generator,
) -> tuple[float, float, float]:
    """The mean of a figure of all pairs over blocks of both sets, and its interval."""
    fewest = min(len(some), len(others))
    count = max(2, fewest // _BLOCK_PICTURES)
    blocks = zip(np.array_split(some, count), np.array_split(others, count), strict=True)
    return _of_mean(np.array([figure(a, b) for a, b in blocks]), random)


def _interval(resamples: Sequence[float]) -> tuple[float, float]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return float(low), float(high)


def _counted(chunks: Iterable[Any], what: str, total: int, tell: Progress) -> Iterator[Any]:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        tell(what, done, total)
        yield chunk


def _vector(executor: Executor, endpoint: str) -> str:
    """The output that is one vector a picture."""
    outputs = executor.spec(endpoint)[1]
    for name in ("features", "mean", *outputs):
        if name in outputs and len(outputs[name].shape) == 1:
            return name
    shapes = {name: list(spec.shape) for name, spec in outputs.items()}
    raise InputError(f"features: {endpoint} gives no vector a picture, but {shapes}")
