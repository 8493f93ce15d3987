"""Residual blocks of convolutions that may be told the time, and what halves and doubles pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.convolutions import doubled
from artifex.generative_models.core.nn.activations import ACTIVATIONS
from artifex.generative_models.core.nn.conv import Conv3x3
from artifex.generative_models.core.nn.norms import GroupNorm

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ResnetBlock(nnx.Module):
    """Two 3×3 convolutions, each after a normalisation and an activation, added to the input.

    Args:
        in_features: Channels in.
        features: Channels out. Where they differ from those in, the input goes through a 1×1 convolution.
        time_features: Size of the vector of the time; None for a block that is not told it.
        groups: Of the normalisations.
        epsilon: Of the normalisations.
        activation: One of `ACTIVATIONS`.
        scale_shift: The time scales and shifts what the second normalisation gives, instead of being added
            to what it is given.
        resample: Halve or double the picture before the first convolution.
        divisor: Of the sum.
        rngs: Random number generators for the weights.

    References:
        Ho et al., *Denoising Diffusion Probabilistic Models*, 2020, appendix B.
        https://arxiv.org/abs/2006.11239
        Dhariwal and Nichol, *Diffusion Models Beat GANs on Image Synthesis*, 2021, section 3.1, for
        `scale_shift`. https://arxiv.org/abs/2105.05233
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        time_features: int | None = None,
        *,
        groups: int,
        epsilon: float,
        activation: str = "silu",
        scale_shift: bool = False,
        resample: Literal["halve", "double"] | None = None,
        divisor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.scale_shift = scale_shift
        self.resample = resample
        self.divisor = divisor
        self.norm1 = GroupNorm(in_features, groups, epsilon, rngs=rngs)
        self.conv1 = Conv3x3(in_features, features, rngs=rngs)
        told = 2 * features if scale_shift else features
        self.time_emb_proj = nnx.Linear(time_features, told, rngs=rngs) if time_features else None
        self.norm2 = GroupNorm(features, groups, epsilon, rngs=rngs)
        self.conv2 = Conv3x3(features, features, rngs=rngs)
        same = in_features == features
        self.conv_shortcut = None if same else nnx.Conv(in_features, features, (1, 1), rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch h w in"], time: Float[Array, "batch time"] | None = None
    ) -> Float[Array, "batch out_h out_w out"]:
        """A picture, and the vector of the time."""
        activation = ACTIVATIONS[self.activation]
        h = activation(self.norm1(x))
        if self.resample is not None:
            resample = {"halve": halved, "double": doubled}[self.resample]
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        if self.time_emb_proj is None:
            h = self.norm2(h)
        else:
            assert time is not None  # as the block was made to be told it
            told = self.time_emb_proj(activation(time))[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(told, 2, -1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + told)
        h = self.conv2(activation(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.divisor


class Downsample(nnx.Module):
    """Halves a picture by a 3×3 convolution of stride 2.

    Args:
        features: Channels, in and out.
        padding: Zeros on each side; 0 stands for one row below and one column on the right.
        rngs: Random number generators for the weights.
    """

    def __init__(self, features: int, padding: int, *, rngs: nnx.Rngs):
        sides = (padding, padding) if padding else (0, 1)
        self.conv = nnx.Conv(features, features, (3, 3), strides=2, padding=(sides, sides), rngs=rngs)

    def __call__(self, x: Float[Array, "batch 2*h 2*w c"]) -> Float[Array, "batch h w c"]:
        """The picture at half its size."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles a picture by repeating its pixels, and smooths it by a 3×3 convolution.

    Args:
        features: Channels, in and out.
        rngs: Random number generators for the weights.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.conv = Conv3x3(features, features, doubles=True, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch 2*h 2*w c"]:
        """The picture at twice its size."""
        return self.conv(x)


def halved(x: Float[Array, "batch 2*h 2*w c"]) -> Float[Array, "batch h w c"]:
    """The mean of each 2×2 pixels."""
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).mean((2, 4))
