"""Blocks that model families share."""

from artifex.generative_models.core.nn.subpixel import SubpixelConv, subpixel_convs

__all__ = ["SubpixelConv", "subpixel_convs"]
