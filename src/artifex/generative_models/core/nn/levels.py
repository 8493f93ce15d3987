"""The levels of a U-Net: residual blocks, each followed by attention or not, and a change of resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.nn.attention import Attention, attend_to_pixels
from artifex.generative_models.core.nn.resnets import Downsample, ResnetBlock, Upsample

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    MakeResnet = Callable[..., ResnetBlock]
    MakeAttention = Callable[[int], Attention]


class DownBlock(nnx.Module):
    """One level on the way down.

    Args:
        in_features: Channels in.
        features: Channels out.
        layers: How many residual blocks.
        make_resnet: Makes one, of channels in and out.
        make_attention: Makes what follows each of them, of its channels; None for nothing.
        downsample: What halves the picture in the end, if anything does.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        layers: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        downsample: ResnetBlock | Downsample | None,
    ):
        self.resnets = nnx.List(make_resnet(features if i else in_features, features) for i in range(layers))
        self.attentions = nnx.List(make_attention(features) for _ in range(layers) if make_attention)
        self.downsamplers = nnx.List([] if downsample is None else [downsample])

    def __call__(
        self, x: Float[Array, "batch h w c"], time: Float[Array, "batch time"]
    ) -> list[Float[Array, "batch ..."]]:
        """What each layer gives, which the way up will want; the last is what the next level is given."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = attend_to_pixels(self.attentions[i], x)
            outputs.append(x)
        for downsample in self.downsamplers:
            x = _resampled(downsample, x, time)
            outputs.append(x)
        return outputs


class MidBlock(nnx.Module):
    """Attention between two residual blocks.

    Args:
        features: Channels.
        make_resnet: Makes a residual block.
        make_attention: Makes the attention; None for none.
        divisor: Of what the attention gives.
    """

    def __init__(
        self,
        features: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        divisor: float,
    ):
        self.divisor = divisor
        self.resnets = nnx.List(make_resnet(features, features, divisor=divisor) for _ in range(2))
        self.attentions = nnx.List([make_attention(features)] if make_attention else [])

    def __call__(
        self, x: Float[Array, "batch h w c"], time: Float[Array, "batch time"]
    ) -> Float[Array, "batch h w c"]:
        """A picture at the lowest resolution."""
        first, last = self.resnets
        x = first(x, time)
        for attention in self.attentions:
            x = attend_to_pixels(attention, x) / self.divisor
        return last(x, time)


class UpBlock(nnx.Module):
    """One level on the way up.

    Args:
        in_features: Channels in.
        skip_features: Channels of what each layer takes over from the way down, in the order of the layers.
        features: Channels out.
        make_resnet: Makes a residual block, of channels in and out.
        make_attention: Makes what follows each of them, of its channels; None for nothing.
        upsample: What doubles the picture in the end, if anything does.
    """

    def __init__(
        self,
        in_features: int,
        skip_features: Sequence[int],
        features: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        upsample: ResnetBlock | Upsample | None,
    ):
        self.resnets = nnx.List(
            make_resnet((features if i else in_features) + skip, features)
            for i, skip in enumerate(skip_features)
        )
        self.attentions = nnx.List(make_attention(features) for _ in skip_features if make_attention)
        self.upsamplers = nnx.List([] if upsample is None else [upsample])

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        skips: list[Float[Array, "batch ..."]],
        time: Float[Array, "batch time"],
    ) -> Float[Array, "batch ..."]:
        """Takes one of `skips` off its end for each residual block."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], -1), time)
            if self.attentions:
                x = attend_to_pixels(self.attentions[i], x)
        for upsample in self.upsamplers:
            x = _resampled(upsample, x, time)
        return x


def _resampled(
    resample: ResnetBlock | Downsample | Upsample,
    x: Float[Array, "batch ..."],
    time: Float[Array, "batch time"],
) -> Float[Array, "batch ..."]:
    return resample(x, time) if isinstance(resample, ResnetBlock) else resample(x)
