"""Blocks that model families share."""

from artifex.generative_models.core.nn.attention import Attention, attend_to_pixels
from artifex.generative_models.core.nn.conv import Conv3x3
from artifex.generative_models.core.nn.embeddings import (
    FourierFeatures,
    LabelEmbedding,
    TimeEmbedding,
    position_sinusoids,
    time_sinusoids,
)
from artifex.generative_models.core.nn.feedforward import FeedForward
from artifex.generative_models.core.nn.levels import DownBlock, MidBlock, UpBlock
from artifex.generative_models.core.nn.norms import GroupNorm, LayerNorm, layer_norm
from artifex.generative_models.core.nn.resnets import Downsample, ResnetBlock, Upsample
from artifex.generative_models.core.nn.subpixel import SubpixelConv, subpixel_convs

__all__ = [
    "Attention",
    "Conv3x3",
    "DownBlock",
    "Downsample",
    "FeedForward",
    "FourierFeatures",
    "GroupNorm",
    "LabelEmbedding",
    "LayerNorm",
    "MidBlock",
    "ResnetBlock",
    "SubpixelConv",
    "TimeEmbedding",
    "UpBlock",
    "Upsample",
    "attend_to_pixels",
    "layer_norm",
    "position_sinusoids",
    "subpixel_convs",
    "time_sinusoids",
]
