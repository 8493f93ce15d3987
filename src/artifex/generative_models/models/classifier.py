"""Convolutional classifier: it tells what samples show, and how far they lie from real pictures.

Strided 3×3 convolutions halve the picture once a level; two layers follow. What the first of those gives are
the features in which `benchmarks/quality.py` compares sets of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import check_integers, items

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

_MAX_SIDE = 2**14
_MAX_LEVELS = 14


class Classifier(nnx.Module):
    """Classes of pictures.

    Pictures are in [0, 1]. The model computes in the dtype of its weights, and gives float32. It stores no
    random number generators.

    Args:
        input_shape: (height, width, channels) of a picture; any sizes.
        num_labels: How many classes, from 2.
        level_features: Channels after each halving level.
        num_features: Size of the vector of features.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: A size is not a positive integer, or larger than any picture model needs.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_labels: int,
        level_features: Sequence[int] = (24, 48, 96),
        num_features: int = 64,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        sides = items(arguments, "input_shape", 3)
        check_integers(sides, *sides, maximum=_MAX_SIDE)
        channels = items(arguments, "level_features")
        check_integers(channels, *channels)
        if not 1 <= len(channels) <= _MAX_LEVELS:
            raise ConfigError(f"level_features: expected 1 to {_MAX_LEVELS} integers, got {len(channels)}")
        check_integers(arguments, "num_features")
        check_integers(arguments, "num_labels", minimum=2)

        self.input_shape = tuple(input_shape)
        self.num_labels = num_labels
        self.level_features = tuple(level_features)
        self.num_features = num_features
        height, width, first = self.input_shape
        self.convs = nnx.List(
            nnx.Conv(c_in, c_out, (3, 3), strides=2, rngs=rngs)
            for c_in, c_out in pairwise((first, *self.level_features))
        )
        for _ in self.convs:
            height, width = -(-height // 2), -(-width // 2)
        self.embed = nnx.Linear(height * width * self.level_features[-1], num_features, rngs=rngs)
        self.head = nnx.Linear(num_features, num_labels, rngs=rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {
            "input_shape": list(self.input_shape),
            "num_labels": self.num_labels,
            "level_features": list(self.level_features),
            "num_features": self.num_features,
        }

    def features(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch features"]:
        """What the last layer but one gives for pictures in [0, 1]; none is below 0."""
        x = x.astype(self.embed.kernel.dtype)
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return nnx.relu(self.embed(x.reshape(len(x), -1)))

    def logits(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch labels"]:
        """Unnormalised log-probabilities of the classes, float32, of pictures in [0, 1]."""
        return self.head(self.features(x)).astype(jnp.float32)

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`classify` and `features`."""
        picture = {"x": TensorSpec(self.input_shape, np.float32, doc="pictures in [0, 1]")}
        return {
            "classify": Endpoint(_classify, picture, doc="the class, and the probability of each"),
            "features": Endpoint(_features, picture, doc="the vector that classes are told by"),
        }


def _classify(model: Classifier, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    logits = model.logits(inputs["x"])
    return {"label": jnp.argmax(logits, -1).astype(jnp.int32), "probabilities": jax.nn.softmax(logits)}


def _features(model: Classifier, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"features": model.features(inputs["x"]).astype(jnp.float32)}
