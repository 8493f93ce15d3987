"""Tiny autoencoder: pictures to small latents that diffusion models work on, and back, without noise.

The configs of diffusers' `AutoencoderTiny` are its arguments, and its layers have the numbers that weights
have there. A later form of the published models has one more branch in the blocks of the lowest resolution.

References:
    The models, by Ollin Boer Bohan: https://github.com/madebyollin/taesd
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.nn import Conv3x3, GroupNorm
from artifex.generative_models.core.nn.activations import ACTIVATIONS
from artifex.generative_models.core.published import PublishedWeight
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.models.arguments import (
    MAX_LAYERS,
    Arguments,
    check_choice,
    check_flags,
    check_integers,
    check_numbers,
    items,
)
from artifex.generative_models.models.names import torch_weights

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

_LATENT_LIMIT = 3.0  # of the decoder's inputs, approached smoothly
_POOL_FEATURES, _POOL_GROUPS, _POOL_EPSILON = 256, 4, 1e-5
_USUAL_SIDE, _MAX_SIDE = 256, 2**12
_MAX_LEVELS = 10
_LAYERS = {
    ".squeeze.": ".0.",
    ".norm.": ".1.",
    ".spread.": ".3.",
}  # of `Pool`, and their numbers in diffusers


class Activation(nnx.Module):
    """An activation as a layer.

    Args:
        name: One of `ACTIVATIONS`.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Applies it elementwise."""
        return ACTIVATIONS[self.name](x)


class Doubling(nnx.Module):
    """The place of a layer that doubles pictures, which the convolution after it does as well."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Nothing."""
        return x


class Pool(nnx.Module):
    """What is added to a block's input in the later form: a group norm between two 1×1 convolutions.

    Args:
        features: Channels, in and out.
        rngs: Random number generators for the weights.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.squeeze = nnx.Conv(features, _POOL_FEATURES, (1, 1), use_bias=False, rngs=rngs)
        self.norm = GroupNorm(_POOL_FEATURES, _POOL_GROUPS, _POOL_EPSILON, rngs=rngs)
        self.spread = nnx.Conv(_POOL_FEATURES, features, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """A picture of features."""
        return self.spread(nnx.relu(self.norm(self.squeeze(x))))


class Block(nnx.Module):
    """Three 3×3 convolutions with activations between them, added to the input; then a ReLU.

    Args:
        features: Channels, in and out.
        activation: One of `ACTIVATIONS`.
        pools: Whether what `Pool` gives is added to the input first.
        rngs: Random number generators for the weights.
    """

    def __init__(self, features: int, activation: str, pools: bool, *, rngs: nnx.Rngs):
        self.activation = activation
        self.pool = nnx.data(Pool(features, rngs=rngs) if pools else None)
        self.convs = nnx.List(Conv3x3(features, features, rngs=rngs) for _ in range(3))

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """A picture of features."""
        if self.pool is not None:
            x = x + self.pool(x)
        first, second, third = self.convs
        activation = ACTIVATIONS[self.activation]
        return nnx.relu(x + third(activation(second(activation(first(x))))))


class Half(nnx.Module):
    """The encoder or the decoder: layers one after another.

    Args:
        layers: The layers.
    """

    def __init__(self, layers: Sequence[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """In the dtype of the weights."""
        layers: Sequence[Any] = self.layers
        x = x.astype(layers[0].kernel.dtype)
        for layer in layers:
            x = layer(x)
        return x


class AutoencoderTiny(nnx.Module):
    """Autoencoder of diffusers' `AutoencoderTiny`, with its arguments by their names there and its defaults.

    Pictures are in [-1, 1], of any height and width that can be halved as often as there are levels after the
    first. The model stores no random number generators.

    Args:
        in_channels: Channels of a picture.
        out_channels: Channels of a picture that it makes.
        encoder_block_out_channels: Channels of each level from the picture inwards; all are alike.
        decoder_block_out_channels: Channels of each level from the latents outwards; all are alike.
        act_fn: `relu`, `silu`, `swish`, `mish` or `gelu`.
        upsample_fn: `nearest`.
        latent_channels: Channels of a latent.
        upsampling_scaling_factor: 2.
        num_encoder_blocks: Blocks of each level from the picture inwards.
        num_decoder_blocks: Blocks of each level from the latents outwards.
        latent_magnitude: Of those who store latents as bytes; not used here.
        latent_shift: As `latent_magnitude`.
        force_upcast: Not used: the dtype of the computation is chosen where the model is loaded.
        scaling_factor: By which a diffusion model multiplies latents; not used here.
        shift_factor: Which a diffusion model takes off latents; not used here.
        block_out_channels: `decoder_block_out_channels` once more, as configs have it.
        use_midblock_gn: The blocks of the lowest resolution have `Pool`.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is none that the network can be made of; names it.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1),
        latent_magnitude: float = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        block_out_channels: Sequence[int] | None = None,
        use_midblock_gn: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        _check(arguments)
        self._config = json.dumps(arguments)
        make_conv = partial(Conv3x3, rngs=rngs)

        def blocks(features: int, count: int, is_lowest: bool) -> list[Block]:
            pools = is_lowest and use_midblock_gn
            return [Block(features, act_fn, pools, rngs=rngs) for _ in range(count)]

        features, levels = encoder_block_out_channels[0], len(num_encoder_blocks)
        layers: list[nnx.Module] = []
        for level, count in enumerate(num_encoder_blocks):
            halving = partial(nnx.Conv, features, features, (3, 3), strides=2, padding=1, use_bias=False)
            layers.append(halving(rngs=rngs) if level else make_conv(in_channels, features))
            layers += blocks(features, count, level == levels - 1)
        self.encoder = Half([*layers, make_conv(features, latent_channels)])

        features, levels = decoder_block_out_channels[0], len(num_decoder_blocks)
        layers = [make_conv(latent_channels, features), Activation(act_fn)]
        for level, count in enumerate(num_decoder_blocks):
            layers += blocks(features, count, level == 0)
            if level < levels - 1:
                layers += [Doubling(), make_conv(features, features, use_bias=False, doubles=True)]
        self.decoder = Half([*layers, make_conv(features, out_channels)])

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    @property
    def side(self) -> int:
        """Pixels of a picture to one of its latent, along each axis."""
        return 2 ** (len(self.config["num_encoder_blocks"]) - 1)

    def encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch rows columns latent"]:
        """Latents of pictures, in the dtype of the pictures.

        Args:
            x: Pictures in [-1, 1]; height and width are multiples of `side`.

        Raises:
            InputError: They are not.
        """
        if x.shape[1] % self.side or x.shape[2] % self.side:
            raise InputError(
                f"x: expected a height and width in multiples of {self.side}, got {x.shape[1:3]}"
            )
        return self.encoder((x + 1) / 2).astype(x.dtype)

    def decode(self, z: Float[Array, "batch rows columns latent"]) -> Float[Array, "batch h w c"]:
        """Pictures of latents, about in [-1, 1] and not clipped, in the dtype of the latents."""
        return self.decoder(jnp.tanh(z / _LATENT_LIMIT) * _LATENT_LIMIT).astype(z.dtype) * 2 - 1

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`encode`, `decode` and `reconstruct`, for pictures of any size."""
        config, side = self.config, self.side
        usual = -(-_USUAL_SIDE // side)  # rows and columns of a latent
        of_picture = partial(Option, usual * side, minimum=side, maximum=_MAX_SIDE, multiple=side)
        of_latent = partial(Option, usual, minimum=1, maximum=_MAX_SIDE // side)
        picture_size = {"height": of_picture(doc="of a picture"), "width": of_picture(doc="of a picture")}
        latent_size = {"rows": of_latent(doc="of a latent"), "columns": of_latent(doc="of a latent")}
        picture = TensorSpec(
            ("height", "width", config["in_channels"]), np.float32, doc="pictures in [-1, 1]"
        )
        latent = TensorSpec(("rows", "columns", config["latent_channels"]), np.float32, doc="latents")
        found = {
            "encode": Endpoint(_encode, {"x": picture}, picture_size, doc="latents of pictures, as mean"),
            "decode": Endpoint(_decode, {"z": latent}, latent_size, doc="pictures of latents"),
        }
        if config["in_channels"] == config["out_channels"]:
            found["reconstruct"] = Endpoint(
                _reconstruct, {"x": picture}, picture_size, doc="pictures as latents tell them"
            )
        return found

    def published_config(self) -> dict[str, Any]:
        """The config, as diffusers has it."""
        config = dict(self.config)
        config["block_out_channels"] = config["decoder_block_out_channels"]
        if not config["use_midblock_gn"]:
            del config["use_midblock_gn"]  # which that class does not know
        return {"_class_name": "AutoencoderTiny", **config}

    def published_weights(self) -> dict[str, PublishedWeight]:
        """The weights by the names that diffusers stores them under."""
        return torch_weights(self, _renamed)


def _renamed(name: str) -> str:
    """The name of a weight in diffusers, where layers are numbered together with the activations."""
    for ours, number in _LAYERS.items():
        name = name.replace(ours, number)
    return re.sub(r"\.convs\.(\d)", lambda match: f".conv.{2 * int(match[1])}", name)


# Options say the sizes that inputs have, so functions read them off the inputs.
def _encode(
    model: AutoencoderTiny, keys: Key[Array, " batch"], inputs: dict[str, Array], height: int, width: int
) -> dict[str, Array]:
    return {"mean": model.encode(inputs["x"])}


def _decode(
    model: AutoencoderTiny, keys: Key[Array, " batch"], inputs: dict[str, Array], rows: int, columns: int
) -> dict[str, Array]:
    return {"x": model.decode(inputs["z"])}


def _reconstruct(
    model: AutoencoderTiny, keys: Key[Array, " batch"], inputs: dict[str, Array], height: int, width: int
) -> dict[str, Array]:
    return {"x": model.decode(model.encode(inputs["x"]))}


def _check(arguments: Arguments) -> None:
    """Refuses arguments of which no network can be made."""
    check_integers(arguments, "in_channels", "out_channels", "latent_channels")
    for half in ("encoder", "decoder"):
        blocks = items(arguments, f"num_{half}_blocks")
        length = f"the length of num_{half}_blocks"
        check_integers({length: len(blocks)}, length, maximum=_MAX_LEVELS)
        check_integers(blocks, *blocks, minimum=0, maximum=MAX_LAYERS)
        channels = items(arguments, f"{half}_block_out_channels", len(blocks))
        check_integers(channels, *channels)
        if len(set(channels.values())) > 1:
            raise ConfigError(
                f"{half}_block_out_channels: expected one number for all levels, since no layer changes it; "
                f"got {list(channels.values())}"
            )
    if len(arguments["num_encoder_blocks"]) != len(arguments["num_decoder_blocks"]):
        raise ConfigError("num_decoder_blocks: expected as many levels as num_encoder_blocks has")
    again, channels = arguments["block_out_channels"], arguments["decoder_block_out_channels"]
    if again is not None and list(again) != list(channels):
        raise ConfigError(f"block_out_channels: expected those of the decoder, {channels}; got {again}")
    check_choice(arguments, "act_fn", choices=ACTIVATIONS)
    check_choice(arguments, "upsample_fn", choices=["nearest"])
    if arguments["upsampling_scaling_factor"] != 2:
        given = arguments["upsampling_scaling_factor"]
        raise ConfigError(f"upsampling_scaling_factor: expected 2, got {given!r}")
    check_flags(arguments, "force_upcast", "use_midblock_gn")
    check_numbers(arguments, "latent_magnitude", "scaling_factor")
