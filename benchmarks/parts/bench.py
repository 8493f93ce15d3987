"""What the parts of the accelerator script share: sizes, models, and the form of what they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import Facts, digits
from flax import nnx

from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.models.vae import VAE

DTYPES = ("float32", "bfloat16")


class Finding(NamedTuple):
    """What a step found.

    Args:
        facts: For the JSON.
        says: The same in a line for people.
        broken: What ought to hold on every device and does not on this one.
    """

    facts: Facts
    says: str
    broken: Sequence[str] = ()


class Step(NamedTuple):
    """One thing that a part finds out; where it raises, the next ones are still run."""

    what: str
    find: Callable[[], Finding]


class NotApplicableError(Exception):
    """A part has nothing to say about this device."""


@dataclass(frozen=True)
class ModelSizes:
    """A model, and how much of it is run where throughput is measured.

    Args:
        batch_sizes: Those that are tried.
        num_rows: Rows of one run.
        shape: Of a picture; None is the bundled trained model.
        features: Channels after each level of the encoder.
    """

    batch_sizes: tuple[int, ...]
    num_rows: int
    shape: tuple[int, int, int] | None = None
    features: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How much of everything, by platform.

    Args:
        law_batch_sizes: The batch sizes in which laws are tested.
        num_calls: Calls of a round of latencies.
        num_rounds: Rounds of everything that is timed in turns.
        matmul_side: Rows and columns of the matrices whose product is the ceiling of bfloat16.
        models: By name, the smaller one first.
    """

    law_batch_sizes: tuple[int, ...]
    num_calls: int
    num_rounds: int
    matmul_side: int
    models: Mapping[str, ModelSizes]


_LARGE = (64, 64, 3), (128, 256, 512)
QUICK = Sizes(
    law_batch_sizes=(1, 8),
    num_calls=5,
    num_rounds=2,
    matmul_side=128,
    models={
        "tiny-vae": ModelSizes((8,), 64, (8, 8, 1), (4,)),
        "odd-vae": ModelSizes((8,), 24, (5, 7, 3), (4,)),
    },
)
CPU = Sizes(
    law_batch_sizes=(1, 4, 16),
    num_calls=100,
    num_rounds=7,
    matmul_side=2048,
    models={
        "mnist-vae": ModelSizes((16, 64, 256), 8192),
        "large-vae": ModelSizes((16, 64), 256, *_LARGE),
    },
)
ACCELERATOR = Sizes(
    law_batch_sizes=(1, 4, 16),
    num_calls=100,
    num_rounds=9,
    matmul_side=8192,
    models={
        "mnist-vae": ModelSizes((256, 1024, 4096), 1 << 16),
        "large-vae": ModelSizes((256, 1024, 4096), 1 << 13, *_LARGE),
    },
)


@dataclass
class Bench:
    """What one run works with.

    Args:
        sizes: How much of everything.
        chosen: The fastest batch size by model, dtype and endpoint, once it is known.
        exact: What runs the smaller model at the highest precision, once it is made.
    """

    sizes: Sizes
    chosen: dict[tuple[str, str, str], int] = field(default_factory=dict)
    exact: Executor | None = None

    @cached_property
    def models(self) -> dict[str, VAE]:
        """The models by name."""
        return {name: _model(name, sizes) for name, sizes in self.sizes.models.items()}

    @property
    def smaller(self) -> str:
        """Name of the smaller model."""
        return next(iter(self.sizes.models))

    def pictures(self, model: str, num_rows: int) -> np.ndarray:
        """Pictures on the host, float32 [rows, H, W, C] in [0, 1]."""
        shape = self.models[model].input_shape
        if shape == (28, 28, 1):
            return digits(num_rows)
        return np.random.default_rng(0).random((num_rows, *shape), np.float32)

    def batch_size(self, model: str, dtype: str, endpoint: str) -> int:
        """The fastest that was found, or else the largest that would be tried."""
        return self.chosen.get((model, dtype, endpoint), self.sizes.models[model].batch_sizes[-1])


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def computed_in(dtype: str) -> str | None:
    """The dtype for `Executor`, where None leaves what the model has."""
    return None if dtype == "float32" else dtype


def random_vae(config: Mapping[str, Any], seed: int = 0) -> VAE:
    """A model with weights from NumPy: Flax would compile an initialisation for each shape."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: VAE(**config, rngs=nnx.Rngs(0))))
    generator = np.random.default_rng(seed)

    def drawn(weight: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = weight.size // weight.shape[-1]
        values = generator.standard_normal(weight.shape, np.float32) / np.float32(np.sqrt(fan_in))
        return jnp.asarray(values, values.dtype)  # without a dtype JAX compiles a program for each shape

    return nnx.merge(graphdef, jax.tree.map(drawn, state))


def _model(name: str, sizes: ModelSizes) -> VAE:
    if sizes.shape is None:
        return load_exported_model(name)[0]
    features = {"encoder_features": sizes.features, "decoder_features": sizes.features[::-1]}
    return random_vae({"input_shape": sizes.shape, "latent_dim": sizes.features[-1] // 4, **features})
