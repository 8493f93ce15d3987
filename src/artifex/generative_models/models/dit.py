"""Diffusion transformer: one over the patches of a picture, told the time and a class by adaLN-Zero.

The configs of diffusers' `DiTTransformer2DModel` are its arguments, and the attributes have the names that
weights have there.

References:
    Peebles and Xie, *Scalable Diffusion Models with Transformers*, 2022, section 3.2.
    https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.nn import (
    Attention,
    FeedForward,
    LabelEmbedding,
    LayerNorm,
    TimeEmbedding,
    layer_norm,
    position_sinusoids,
    time_sinusoids,
)
from artifex.generative_models.core.nn.feedforward import FEED_FORWARDS
from artifex.generative_models.core.published import PublishedWeight
from artifex.generative_models.models.arguments import (
    MAX_LAYERS,
    Arguments,
    check_choice,
    check_divides,
    check_flags,
    check_integers,
    check_numbers,
)
from artifex.generative_models.models.names import torch_weights

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_WAVES = 256  # of the time
_EPSILON = 1e-6  # of the normalisations that never have weights
_ZEROS = nnx.initializers.zeros_init()  # training begins with blocks that change nothing


class Conditioning(nnx.Module):
    """The vector of the time plus that of the class.

    Args:
        classes: How many there are; that number itself, as a label, means none of them.
        features: Size of the vector.
        rngs: Random number generators for the weights.
    """

    def __init__(self, classes: int, features: int, *, rngs: nnx.Rngs):
        self.timestep_embedder = TimeEmbedding(_WAVES, features, rngs=rngs)
        self.class_embedder = LabelEmbedding(classes, features, rngs=rngs)

    def __call__(self, time: Float[Array, " batch"], label: Array) -> Float[Array, "batch features"]:
        """In the dtype of the weights."""
        waves = time_sinusoids(time, _WAVES, cos_first=True, freq_shift=1)
        told = self.timestep_embedder(waves)
        return told + self.class_embedder(label).astype(told.dtype)


class Modulation(nnx.Module):
    """What shifts, scales and gates the two halves of a block, from the time and the class.

    Args:
        classes: As in `Conditioning`.
        features: Of a token.
        rngs: Random number generators for the weights.
    """

    def __init__(self, classes: int, features: int, *, rngs: nnx.Rngs):
        self.emb = Conditioning(classes, features, rngs=rngs)
        self.linear = nnx.Linear(features, 6 * features, kernel_init=_ZEROS, rngs=rngs)

    def __call__(self, time: Float[Array, " batch"], label: Array) -> list[Float[Array, "batch 1 features"]]:
        """Shift, scale and gate of the attention, then those of the layers after it."""
        return jnp.split(self.linear(nnx.silu(self.emb(time, label)))[:, None], 6, -1)


class Block(nnx.Module):
    """Attention, then two layers for each token, both shifted, scaled and gated.

    Every block embeds the time and the class for itself.

    Args:
        heads: Of the attention.
        head_features: Of each of them.
        classes: As in `Conditioning`.
        use_bias: Whether queries, keys and values have biases.
        activation: Of the layers after the attention.
        affine: Whether the second normalisation has weights.
        epsilon: Of the second normalisation.
        rngs: Random number generators for the weights.
    """

    def __init__(
        self,
        heads: int,
        head_features: int,
        classes: int,
        *,
        use_bias: bool,
        activation: str,
        affine: bool,
        epsilon: float,
        rngs: nnx.Rngs,
    ):
        features = heads * head_features
        self.epsilon = epsilon
        self.norm1 = Modulation(classes, features, rngs=rngs)
        self.attn1 = Attention(features, heads, head_features, use_bias=use_bias, rngs=rngs)
        self.norm3 = LayerNorm(features, epsilon, rngs=rngs) if affine else None
        self.ff = FeedForward(features, activation, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens features"], time: Float[Array, " batch"], label: Array
    ) -> Float[Array, "batch tokens features"]:
        """Tokens, with the time and the class of each row."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1(time, label)
        x = x + gate * self.attn1(layer_norm(x, _EPSILON) * (1 + scale) + shift)
        normalised = layer_norm(x, self.epsilon) if self.norm3 is None else self.norm3(x)
        return x + ff_gate * self.ff(normalised * (1 + ff_scale) + ff_shift)


class Patches(nnx.Module):
    """A token for each patch, with its place added to it.

    Args:
        in_features: Channels of a picture.
        features: Of a token.
        patch_size: Side of a patch.
        base_size: Patches a side of the pictures of training; those of other pictures lie as far apart in
            total.
        rngs: Random number generators for the weights.
    """

    def __init__(self, in_features: int, features: int, patch_size: int, base_size: int, *, rngs: nnx.Rngs):
        self.base_size = base_size
        self.proj = nnx.Conv(
            in_features, features, (patch_size, patch_size), strides=patch_size, padding="VALID", rngs=rngs
        )

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch rows columns features"]:
        """In the dtype of the weights."""
        x = self.proj(x.astype(self.proj.kernel.dtype))
        _, rows, columns, features = x.shape
        places = position_sinusoids(rows, columns, features, self.base_size / rows, self.base_size / columns)
        return (x.astype(jnp.float32) + places[None]).astype(x.dtype)


class DiT(nnx.Module):
    """Transformer of diffusers' `DiTTransformer2DModel`, with its arguments by their names and its defaults.

    The model computes in the dtype of its weights, normalisations and waves of the time in float32. It stores
    no random number generators.

    Args:
        num_attention_heads: Heads.
        attention_head_dim: Features of a head; a token has as many as all heads together.
        in_channels: Channels of a picture.
        out_channels: Channels of what the network gives; None for as many. Networks that predict variances
            have twice as many.
        num_layers: Blocks.
        dropout: Of training; not used here.
        norm_num_groups: Not used: no normalisation has groups.
        attention_bias: Queries, keys and values have biases.
        sample_size: Height and width of the pictures it was trained on; it takes others.
        patch_size: Height and width of a patch.
        activation_fn: `gelu-approximate`, `gelu`, `geglu`, `swiglu` or `linear-silu`.
        num_embeds_ada_norm: How many classes; that number itself, as a label, means none of them.
        upcast_attention: Not used: the softmax and what goes into it are float32 always.
        norm_type: `ada_norm_zero`.
        norm_elementwise_affine: The normalisation after the attention has weights.
        norm_eps: Epsilon of that normalisation.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is none that the network can be made of; names it.
    """

    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        _check(arguments)
        self._config = json.dumps(arguments)
        self.patch_size = patch_size
        features = num_attention_heads * attention_head_dim
        self.pos_embed = Patches(in_channels, features, patch_size, sample_size // patch_size, rngs=rngs)
        self.transformer_blocks = nnx.List(
            Block(
                num_attention_heads,
                attention_head_dim,
                num_embeds_ada_norm,
                use_bias=attention_bias,
                activation=activation_fn,
                affine=norm_elementwise_affine,
                epsilon=norm_eps,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        out_features = patch_size**2 * (out_channels or in_channels)
        self.proj_out_1 = nnx.Linear(features, 2 * features, kernel_init=_ZEROS, rngs=rngs)
        self.proj_out_2 = nnx.Linear(features, out_features, kernel_init=_ZEROS, rngs=rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    def published_config(self) -> dict[str, Any]:
        """The config, as diffusers has it."""
        return {"_class_name": "DiTTransformer2DModel", **self.config}

    def published_weights(self) -> dict[str, PublishedWeight]:
        """The weights by the names that diffusers stores them under."""
        return torch_weights(self)

    def __call__(
        self, x: Float[Array, "batch h w in"], time: Float[Array, " batch"], label: Array
    ) -> Float[Array, "batch h w out"]:
        """What the network predicts for noisy pictures.

        Args:
            x: Pictures, or latents; height and width are multiples of `patch_size`.
            time: As in training, of any dtype.
            label: Classes, int32 [batch], from 0 to `num_embeds_ada_norm`, which is none.

        Returns:
            In the dtype of `x`.

        Raises:
            InputError: The pictures cannot be cut into patches.
        """
        side = self.patch_size
        if x.shape[1] % side or x.shape[2] % side:
            raise InputError(f"x: expected a height and width in multiples of {side}, got {x.shape[1:3]}")
        patches = self.pos_embed(x)
        batch, rows, columns, features = patches.shape
        tokens = patches.reshape(batch, rows * columns, features)
        for block in self.transformer_blocks:
            tokens = block(tokens, time, label)
        told = self.transformer_blocks[0].norm1.emb(time, label)
        shift, scale = jnp.split(self.proj_out_1(nnx.silu(told))[:, None], 2, -1)
        tokens = self.proj_out_2(layer_norm(tokens, _EPSILON) * (1 + scale) + shift)
        blocks = tokens.reshape(batch, rows, columns, side, side, -1).swapaxes(2, 3)
        return blocks.reshape(batch, rows * side, columns * side, -1).astype(x.dtype)


def _check(arguments: Arguments) -> None:
    """Refuses arguments of which no network can be made."""
    check_integers(arguments, "num_attention_heads", "attention_head_dim", "in_channels", "sample_size")
    check_integers(arguments, "out_channels", optional=True)
    check_integers(arguments, "num_layers", maximum=MAX_LAYERS)
    check_integers(arguments, "patch_size", maximum=arguments["sample_size"])
    check_integers(arguments, "num_embeds_ada_norm", maximum=2**24)
    check_flags(arguments, "attention_bias", "norm_elementwise_affine")
    check_numbers(arguments, "norm_eps")
    check_choice(arguments, "activation_fn", choices=FEED_FORWARDS)
    check_choice(arguments, "norm_type", choices=["ada_norm_zero"])
    heads = "num_attention_heads times attention_head_dim"
    features = arguments["num_attention_heads"] * arguments["attention_head_dim"]
    check_divides(4, "sines and cosines of two axes", {heads: features})
