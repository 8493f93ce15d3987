"""What generators of generative adversarial networks share: their arguments, their prior and their labels.

Two networks are trained against one another: a generator, which makes pictures of noise, and a discriminator,
which tells them from real ones. Only the first is a model here; `examples/train_mnist_gan.py` has the second.

References:
    Goodfellow et al., *Generative Adversarial Networks*, 2014. https://arxiv.org/abs/1406.2661
    Mirza and Osindero, *Conditional Generative Adversarial Nets*, 2014. https://arxiv.org/abs/1411.1784
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import Field, RowNumbers
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import check_integers, items

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SIDE = 2**14
_MAX_DOUBLINGS = 13
EPSILON = 1e-8  # of squares of lengths
_Z, _OTHER_Z, _LABEL, _OTHERS = range(4)  # what each child of a row's key is for


def check_generator(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that make no generator.

    Args:
        arguments: The constructor's, by name. Height and width are doubled once for each of `features`.

    Raises:
        ConfigError: Names the argument.
    """
    sides = items(arguments, "output_shape", 3)
    check_integers(sides, *sides, maximum=_MAX_SIDE)
    channels = items(arguments, "features")
    check_integers(channels, *channels)
    if len(channels) > _MAX_DOUBLINGS:
        raise ConfigError(f"features: expected 1 to {_MAX_DOUBLINGS} integers, got {len(channels)}")
    check_integers(arguments, "latent_dim")
    check_integers(arguments, "num_labels", minimum=0)
    divisor, shape = 2 ** len(channels), list(sides.values())
    if shape[0] % divisor or shape[1] % divisor:
        raise ConfigError(
            f"output_shape: expected sides that {divisor} divides, as there are {len(channels)} features; "
            f"got {shape}"
        )


def pixel_norm(x: Float[Array, "*positions features"]) -> Float[Array, "*positions features"]:
    """Each vector with mean square 1: `x / sqrt(mean(x²) + 1e-8)`.

    References:
        Karras et al., *Progressive Growing of GANs for Improved Quality, Stability, and Variation*, 2018,
        section 4.2. https://arxiv.org/abs/1710.10196
    """
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)  # which float16 does not hold
    return x * jax.lax.rsqrt(square + jnp.float32(EPSILON)).astype(x.dtype)


def prior(
    keys: Key[Array, " batch"], latent_dim: int, *, other: bool = False
) -> Float[Array, "batch latent"]:
    """Draws of z from the standard normal distribution, one for each row's key, or others of them."""
    which = _OTHER_Z if other else _Z

    def drawn(key: Key[Array, ""]) -> Float[Array, " latent"]:
        return jax.random.normal(jax.random.fold_in(key, which), (latent_dim,), jnp.float32)

    return jax.vmap(drawn)(keys)


def noise(keys: Key[Array, " batch"], layer: int, side: tuple[int, int]) -> Float[Array, "batch h w 1"]:
    """Standard normal noise for the pixels of a layer, of each row's key."""

    def drawn(key: Key[Array, ""]) -> Float[Array, "h w 1"]:
        return jax.random.normal(jax.random.fold_in(key, _OTHERS + layer), (*side, 1), jnp.float32)

    return jax.vmap(drawn)(keys)


def chosen_labels(
    keys: Key[Array, " batch"], inputs: Mapping[str, Array], num_labels: int
) -> Int[Array, " batch"] | None:
    """The labels that were said; where none was, drawn evenly from those there are. None without classes."""
    if not num_labels:
        return None

    def drawn(key: Key[Array, ""]) -> Int[Array, ""]:
        return jax.random.randint(jax.random.fold_in(key, _LABEL), (), 0, num_labels, jnp.int32)

    label = inputs["label"]
    return jnp.where(label == num_labels, jax.vmap(drawn)(keys), label)


def numbers(num_labels: int, fields: Mapping[str, Field], *, knows_none: bool) -> RowNumbers:
    """Fields that are numbers, and the label where there are classes; any where none need be said."""
    unsaid = {"label": num_labels} if num_labels and knows_none else {}
    return RowNumbers.of({**label_fields(num_labels, knows_none), **fields}, unsaid)


def truncation_field(doc: str) -> Field:
    """How much of the prior's variety is kept."""
    return Field(float, 1.0, minimum=0, maximum=1, doc=doc)


WEIGHT = Field(float, 0.5, minimum=0, maximum=1, doc="How far from z to z_end.")


def latent_spec(latent_dim: int, doc: str) -> TensorSpec:
    """An input that is a latent."""
    return TensorSpec((latent_dim,), np.float32, doc=doc)
