"""U-Net of residual blocks and self-attention that is told the time, and a class if it has any.

The configs of diffusers' `UNet2DModel` are its arguments, and the attributes have the names that weights
have there. Blocks with finite impulse response filters (`SkipDownBlock2D` and its like) are not among those
it knows.

References:
    Ho et al., *Denoising Diffusion Probabilistic Models*, 2020, appendix B. https://arxiv.org/abs/2006.11239
    Dhariwal and Nichol, *Diffusion Models Beat GANs on Image Synthesis*, 2021, section 3.
    https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.nn import (
    Attention,
    Conv3x3,
    DownBlock,
    Downsample,
    FourierFeatures,
    GroupNorm,
    MidBlock,
    ResnetBlock,
    TimeEmbedding,
    UpBlock,
    Upsample,
    time_sinusoids,
)
from artifex.generative_models.core.published import PublishedWeight
from artifex.generative_models.models.arguments import (
    MAX_LAYERS,
    Arguments,
    check_choice,
    check_divides,
    check_flags,
    check_integers,
    check_numbers,
    items,
)
from artifex.generative_models.models.names import torch_weights

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_MAX_LEVELS = 14
_MAX_CLASSES = 2**24
_FOURIER_STD = 16.0
_ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")


class _Level(NamedTuple):
    """What a block of some type has beside residual blocks."""

    attention: bool
    resample: str | None  # "conv" or "resnet"; None where the config says


_DOWN_LEVELS = {
    "DownBlock2D": _Level(False, "conv"),
    "AttnDownBlock2D": _Level(True, None),
    "ResnetDownsampleBlock2D": _Level(False, "resnet"),
}
_UP_LEVELS = {
    "UpBlock2D": _Level(False, "conv"),
    "AttnUpBlock2D": _Level(True, None),
    "ResnetUpsampleBlock2D": _Level(False, "resnet"),
}


class UNet(nnx.Module):
    """U-Net of diffusers' `UNet2DModel`, with its arguments by their names there and its defaults.

    The model computes in the dtype of its weights, normalisations and waves of the time in float32. It stores
    no random number generators.

    Args:
        sample_size: Height and width of the pictures it was trained on, or both; it takes others.
        in_channels: Channels of a picture.
        out_channels: Channels of what the network gives.
        center_input_sample: Pictures are in [0, 1], and the network is to see them in [-1, 1].
        time_embedding_type: `positional` for sines and cosines of the time, `fourier` for those of its
            logarithm, by which the output is then divided, `learned` for a table.
        time_embedding_dim: Size of the vector of the time; None for four times the first level's channels.
        freq_shift: Of `positional`; see `time_sinusoids`.
        flip_sin_to_cos: Of `positional`: the cosines come first.
        down_block_types: `DownBlock2D`, `AttnDownBlock2D` or `ResnetDownsampleBlock2D`, for each level.
        mid_block_type: `UNetMidBlock2D`; None for no block at the lowest resolution.
        up_block_types: `UpBlock2D`, `AttnUpBlock2D` or `ResnetUpsampleBlock2D`, from the lowest resolution.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks of each level on the way down; one more on the way up.
        mid_block_scale_factor: By which the middle block divides its sums.
        downsample_padding: Zeros on each side before halving, 1; 0 for one row below and one column on the
            right.
        downsample_type: `conv` or `resnet`, of `AttnDownBlock2D`.
        upsample_type: `conv` or `resnet`, of `AttnUpBlock2D`.
        dropout: Of training; not used here.
        act_fn: `silu`, `swish`, `mish`, `gelu` or `relu`.
        attention_head_dim: Channels of a head; None for one head of all channels.
        norm_num_groups: Groups of normalisations.
        attn_norm_num_groups: Groups of the normalisation before the middle block's attention. None for
            `norm_num_groups`, or for no normalisation if `resnet_time_scale_shift` is `scale_shift`.
        norm_eps: Epsilon of normalisations.
        resnet_time_scale_shift: `default` to add the time, `scale_shift` to scale and shift by it.
        add_attention: The middle block has attention.
        class_embed_type: None for a table of classes if there are `num_class_embeds`, `timestep` for a label
            that is embedded as the time is, `identity` for one that is the vector itself.
        num_class_embeds: How many classes.
        num_train_timesteps: Times in the table of `learned`.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is none that the network can be made of; names it.
    """

    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", *["AttnDownBlock2D"] * 3),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1.0,
        downsample_padding: int = 1,
        downsample_type: str | None = "conv",
        upsample_type: str | None = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        _check(arguments)
        self._config = json.dumps(arguments)
        self._halvings = len(block_out_channels) - 1
        self.center_input_sample = center_input_sample
        self.time_embedding_type = time_embedding_type
        self.freq_shift = freq_shift
        self.flip_sin_to_cos = flip_sin_to_cos
        self.class_embed_type = class_embed_type

        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = Conv3x3(in_channels, first, rngs=rngs)
        time_features = time_embedding_dim or 4 * first
        waves = 2 * first if time_embedding_type == "fourier" else first
        self.time_proj: FourierFeatures | nnx.Embed | None
        if time_embedding_type == "fourier":
            self.time_proj = FourierFeatures(first, _FOURIER_STD, rngs=rngs)
        elif time_embedding_type == "learned":
            self.time_proj = nnx.Embed(num_train_timesteps or 0, first, rngs=rngs)
        else:
            self.time_proj = None
        self.time_embedding = TimeEmbedding(waves, time_features, rngs=rngs)
        self.class_embedding: nnx.Embed | TimeEmbedding | None
        if class_embed_type == "timestep":
            self.class_embedding = TimeEmbedding(waves, time_features, rngs=rngs)
        elif class_embed_type is None and num_class_embeds is not None:
            self.class_embedding = nnx.Embed(num_class_embeds, time_features, rngs=rngs)
        else:
            self.class_embedding = None

        make_resnet = partial(
            ResnetBlock,
            time_features=time_features,
            groups=norm_num_groups,
            epsilon=norm_eps,
            activation=act_fn,
            scale_shift=resnet_time_scale_shift == "scale_shift",
            rngs=rngs,
        )

        def make_attention(features: int, groups: int | None = norm_num_groups) -> Attention:
            head = attention_head_dim or features
            if head > features:
                raise ConfigError(f"attention_head_dim: expected at most {features} as channels, got {head}")
            return Attention(features, features // head, head, groups=groups, epsilon=norm_eps, rngs=rngs)

        levels = [*enumerate(block_out_channels)]
        self.down_blocks: nnx.List[DownBlock] = nnx.List()
        for (i, features), block_type in zip(levels, down_block_types, strict=True):
            level = _DOWN_LEVELS[block_type]
            downsample: ResnetBlock | Downsample | None = None
            if i < self._halvings and (level.resample or downsample_type) == "resnet":
                downsample = make_resnet(features, features, resample="halve")
            elif i < self._halvings:
                downsample = Downsample(features, downsample_padding, rngs=rngs)
            self.down_blocks.append(
                DownBlock(
                    block_out_channels[max(i - 1, 0)],
                    features,
                    layers_per_block,
                    make_resnet,
                    make_attention if level.attention else None,
                    downsample,
                )
            )

        mid_groups = attn_norm_num_groups
        if mid_groups is None and resnet_time_scale_shift == "default":
            mid_groups = norm_num_groups
        make_mid_attention = partial(make_attention, groups=mid_groups) if add_attention else None
        mid = partial(MidBlock, last, make_resnet, make_mid_attention, mid_block_scale_factor)
        self.mid_block = mid() if mid_block_type is not None else None

        self.up_blocks: nnx.List[UpBlock] = nnx.List()
        for (i, features), block_type in zip(levels[::-1], up_block_types, strict=True):
            level = _UP_LEVELS[block_type]
            upsample: ResnetBlock | Upsample | None = None
            if i > 0 and (level.resample or upsample_type) == "resnet":
                upsample = make_resnet(features, features, resample="double")
            elif i > 0:
                upsample = Upsample(features, rngs=rngs)
            self.up_blocks.append(
                UpBlock(
                    block_out_channels[min(i + 1, self._halvings)],
                    [*[features] * layers_per_block, block_out_channels[max(i - 1, 0)]],
                    features,
                    make_resnet,
                    make_attention if level.attention else None,
                    upsample,
                )
            )

        self.conv_norm_out = GroupNorm(first, norm_num_groups, norm_eps, rngs=rngs)
        self.conv_out = Conv3x3(first, out_channels, rngs=rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    def published_config(self) -> dict[str, Any]:
        """The config, as diffusers has it."""
        return {"_class_name": "UNet2DModel", **self.config}

    def published_weights(self) -> dict[str, PublishedWeight]:
        """The weights by the names that diffusers stores them under."""
        return torch_weights(self)

    def __call__(
        self, x: Float[Array, "batch h w in"], time: Float[Array, " batch"], label: Array | None = None
    ) -> Float[Array, "batch h w out"]:
        """What the network predicts for noisy pictures.

        Args:
            x: Pictures; height and width are multiples of 2 to the number of levels less one.
            time: As in training, of any dtype; above 0 where the network takes its logarithm.
            label: int32 [batch] for a network with classes, float [batch, features] if it takes vectors.

        Returns:
            In the dtype of `x`.

        Raises:
            InputError: The pictures cannot be halved so often, or a label is missing or too much.
        """
        side = 2**self._halvings
        if x.shape[1] % side or x.shape[2] % side:
            raise InputError(f"x: expected a height and width in multiples of {side}, got {x.shape[1:3]}")
        dtype = x.dtype
        told = self._told(time, label)
        x = 2 * x - 1 if self.center_input_sample else x
        skips = [self.conv_in(x.astype(self.conv_in.kernel.dtype))]
        for down in self.down_blocks:
            skips += down(skips[-1], told)
        x = skips[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, told)
        for up in self.up_blocks:
            x = up(x, skips, told)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(dtype)
        if self.time_embedding_type == "fourier":
            x = x / time.astype(dtype).reshape(-1, 1, 1, 1)
        return x

    def _told(self, time: Float[Array, " batch"], label: Array | None) -> Float[Array, "batch features"]:
        """The vector of the time and the label."""
        told = self.time_embedding(self._waves(time))
        wanted = self.class_embedding is not None or self.class_embed_type == "identity"
        if wanted != (label is not None):
            raise InputError(f"label: expected {'one' if wanted else 'none'} by the network's config")
        if label is None:
            return told
        if self.class_embed_type == "timestep":
            label = self._waves(label)
        vector = label if self.class_embedding is None else self.class_embedding(label)
        return told + vector.astype(told.dtype)

    def _waves(self, time: Array) -> Float[Array, "batch waves"]:
        if self.time_proj is None:
            features = self.conv_in.kernel.shape[-1]
            return time_sinusoids(time, features, cos_first=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        return self.time_proj(time.astype(jnp.int32) if self.time_embedding_type == "learned" else time)


def _check(arguments: Arguments) -> None:
    """Refuses arguments of which no network can be made."""
    channels = items(arguments, "block_out_channels")
    length = "the length of block_out_channels"
    check_integers({length: len(channels)}, length, maximum=_MAX_LEVELS)
    check_integers(channels, *channels)
    for name, levels in (("down_block_types", _DOWN_LEVELS), ("up_block_types", _UP_LEVELS)):
        types = items(arguments, name, len(channels))
        check_choice(types, *types, choices=levels)

    if isinstance(arguments["sample_size"], Sequence):
        sides = items(arguments, "sample_size", 2)
        check_integers(sides, *sides)
    else:
        check_integers(arguments, "sample_size", optional=True)
    check_integers(arguments, "in_channels", "out_channels")
    check_integers(arguments, "layers_per_block", maximum=MAX_LAYERS)
    check_integers(arguments, "downsample_padding", minimum=0, maximum=1)
    check_integers(arguments, "time_embedding_dim", "attention_head_dim", optional=True)
    check_integers(arguments, "num_class_embeds", maximum=_MAX_CLASSES, optional=True)
    check_flags(arguments, "center_input_sample", "flip_sin_to_cos", "add_attention")
    check_numbers(arguments, "mid_block_scale_factor", "norm_eps")
    check_choice(arguments, "mid_block_type", choices=["UNetMidBlock2D"], optional=True)
    check_choice(arguments, "downsample_type", "upsample_type", choices=["conv", "resnet"], optional=True)
    check_choice(arguments, "act_fn", choices=_ACTIVATIONS)
    check_choice(arguments, "resnet_time_scale_shift", choices=["default", "scale_shift"])
    check_choice(arguments, "class_embed_type", choices=["timestep", "identity"], optional=True)

    first = arguments["block_out_channels"][0]
    check_choice(arguments, "time_embedding_type", choices=["positional", "fourier", "learned"])
    learned = arguments["time_embedding_type"] == "learned"
    check_integers(arguments, "num_train_timesteps", maximum=_MAX_CLASSES, optional=not learned)
    if arguments["time_embedding_type"] == "positional":
        if first % 2:
            raise ConfigError(
                f"block_out_channels[0]: expected an even number for sines and cosines, got {first}"
            )
        check_integers(arguments, "freq_shift", minimum=0, maximum=first // 2 - 1)

    check_divides(arguments["norm_num_groups"], "norm_num_groups", channels)
    if arguments["attn_norm_num_groups"] is not None:
        groups = arguments["attn_norm_num_groups"]
        check_divides(
            groups, "attn_norm_num_groups", {"block_out_channels[-1]": arguments["block_out_channels"][-1]}
        )
