"""The features that a model tells pictures by, which are what measures of quality compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.pipeline import InferencePipeline


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
        inputs, outputs = executor.spec(self._endpoint)
        self.input_shape = inputs["x"].shape
        self.num_features = outputs[self._output].shape[0]

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


def _vector(executor: Executor, endpoint: str) -> str:
    """The output that is one vector a picture."""
    outputs = executor.spec(endpoint)[1]
    for name in ("features", "mean", *outputs):
        if name in outputs and len(outputs[name].shape) == 1:
            return name
    shapes = {name: list(spec.shape) for name, spec in outputs.items()}
    raise InputError(f"features: {endpoint} gives no vector a picture, but {shapes}")
