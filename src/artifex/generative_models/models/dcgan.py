"""Deep convolutional generator of pictures: transposed convolutions from one vector.

A layer makes a small picture of z, and each level doubles height and width by a transposed 4×4 convolution of
stride 2, as one matrix product (`core/nn/subpixel.py`). Where the paper normalises over a batch, so that rows
of training see one another, this one normalises the features of each pixel; and its pictures are in [0, 1]
by the logistic function where the paper's are in [-1, 1] by tanh, which is the same up to scale.

References:
    Radford et al., *Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks*, 2016, section 3 and figure 1. https://arxiv.org/abs/1511.06434
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.between import spherical
from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.nn import SubpixelConv
from artifex.generative_models.models.gan import (
    WEIGHT,
    check_generator,
    chosen_labels,
    latent_spec,
    numbers,
    pixel_norm,
    prior,
    truncation_field,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_KERNEL_SIZE = 2  # of the convolution before depth-to-space: 4×4 as a transposed one


class DCGAN(nnx.Module):
    """Generator of a deep convolutional GAN.

    Pictures are in [0, 1]. The model computes in the dtype of its weights, and gives float32. It stores no
    random number generators.

    Args:
        output_shape: (height, width, channels) of a picture; two to the number of `features` divides both
            sides.
        latent_dim: Size of z.
        features: Channels before each doubling, from the latent outwards.
        num_labels: Classes that callers may ask for; 0 where there are none.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable.
    """

    def __init__(
        self,
        output_shape: Sequence[int],
        latent_dim: int = 64,
        features: Sequence[int] = (128, 64),
        num_labels: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        check_generator({name: value for name, value in locals().items() if name != "self"})
        self.output_shape = tuple(output_shape)
        self.latent_dim = latent_dim
        self.features = tuple(features)
        self.num_labels = num_labels
        height, width, channels = self.output_shape
        self.start = height >> len(self.features), width >> len(self.features)
        self.embed = nnx.data(nnx.Embed(num_labels, latent_dim, rngs=rngs) if num_labels else None)
        first = self.start[0] * self.start[1] * self.features[0]
        self.stem = nnx.Linear(latent_dim * (2 if num_labels else 1), first, rngs=rngs)
        self.ups = nnx.List(
            SubpixelConv(c_in, c_out, _KERNEL_SIZE, rngs=rngs)
            for c_in, c_out in pairwise((*self.features, channels))
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {
            "output_shape": list(self.output_shape),
            "latent_dim": self.latent_dim,
            "features": list(self.features),
            "num_labels": self.num_labels,
        }

    def decode(
        self, z: Float[Array, "batch latent"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch h w c"]:
        """Pictures in [0, 1], float32, of latents and, where there are classes, of labels."""
        x = z.astype(self.stem.kernel.dtype)
        if self.embed is not None:
            assert label is not None  # as every endpoint has it
            x = jnp.concatenate([x, self.embed(label).astype(x.dtype)], -1)
        x = self.stem(x).reshape(len(z), *self.start, -1)
        for up in self.ups:
            x = up(nnx.relu(pixel_norm(x)))
        return nnx.sigmoid(x.astype(jnp.float32))

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate`, `decode` and `interpolate`."""
        truncation = truncation_field("What z is multiplied by: 1 is a plain sample, 0 the prior's mean.")
        generate = numbers(self.num_labels, {"truncation": truncation}, knows_none=True)
        decode = numbers(self.num_labels, {}, knows_none=False)
        between = numbers(self.num_labels, {"weight": WEIGHT}, knows_none=False)
        z = latent_spec(self.latent_dim, "latent vectors")
        ends = {"z": z, "z_end": latent_spec(self.latent_dim, "other latent vectors")}
        return {
            "generate": Endpoint(
                _generate, generate.inputs, doc="the picture of a draw from the prior", says=generate
            ),
            "decode": Endpoint(
                _decode,
                {"z": z, **decode.inputs},
                doc="pictures of latents",
                says=decode if self.num_labels else None,
            ),
            "interpolate": Endpoint(
                _interpolate,
                {**ends, **between.inputs},
                doc="pictures between latents, along the arc from one to the other",
                says=between,
                ahead=False,
            ),
        }


def _generate(model: DCGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    """The prior is narrowed as that of a flow is by its temperature.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1×1 Convolutions*, 2018.
        https://arxiv.org/abs/1807.03039
        Brock et al., *Large Scale GAN Training for High Fidelity Natural Image Synthesis*, 2019, section 3.1,
        which cuts the prior in place of narrowing it, to the same end. https://arxiv.org/abs/1809.11096
    """
    z = inputs["truncation"][:, None] * prior(keys, model.latent_dim)
    return {"x": model.decode(z, chosen_labels(keys, inputs, model.num_labels))}


def _decode(model: DCGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(inputs["z"], inputs.get("label"))}


def _interpolate(model: DCGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    z = spherical(inputs["z"], inputs["z_end"], inputs["weight"])
    return {"x": model.decode(z, inputs.get("label"))}
