"""Small networks of the kinds that generative models are made of, one evaluation an endpoint."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.models.vae import VAE


def sinusoidal(time: jax.Array, features: int) -> jax.Array:
    frequencies = jnp.exp(-np.log(1e4) * jnp.arange(features // 2) / (features // 2))
    angles = time[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class Denoiser(nnx.Module):
    """A network of pictures or vectors and a time a row."""

    shape: tuple[int, ...]

    def endpoints(self) -> dict[str, Endpoint]:
        """One evaluation."""

        def evaluate(model: Denoiser, keys, inputs):
            return {"x": model(inputs["x"], inputs["time"])}

        return {
            "evaluate": Endpoint(
                evaluate, {"x": TensorSpec(self.shape, np.float32), "time": TensorSpec((), np.float32)}
            )
        }


class TransformerBlock(nnx.Module):
    """Attention and an MLP, each shifted, scaled and gated by a condition."""

    def __init__(self, features: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.modulation = nnx.Linear(features, 6 * features, rngs=rngs)
        self.norms = nnx.List(
            [nnx.LayerNorm(features, use_scale=False, use_bias=False, rngs=rngs) for _ in range(2)]
        )
        self.qkv = nnx.Linear(features, 3 * features, rngs=rngs)
        self.out = nnx.Linear(features, features, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x, condition):
        """Arrays [rows, ...] and a condition a row, to arrays of the same size."""
        shift, scale, gate, shift2, scale2, gate2 = jnp.split(
            self.modulation(nnx.silu(condition))[:, None], 6, axis=-1
        )
        batch, tokens, features = x.shape
        y = self.norms[0](x) * (1 + scale) + shift
        q, k, v = jnp.moveaxis(self.qkv(y).reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        x = x + gate * self.out(jax.nn.dot_product_attention(q, k, v).reshape(batch, tokens, features))
        y = self.norms[1](x) * (1 + scale2) + shift2
        return x + gate2 * self.down(nnx.gelu(self.up(y)))


class DiT(Denoiser):
    """A transformer of patches with adaptive layer norms (Peebles and Xie 2023)."""

    def __init__(self, side=32, channels=4, patch=4, features=128, depth=4, *, rngs: nnx.Rngs):
        self.shape = (side, side, channels)
        self.patch, self.features = patch, features
        self.embed = nnx.Conv(channels, features, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        self.place = nnx.Param(jax.random.normal(rngs.params(), (1, (side // patch) ** 2, features)) * 0.02)
        self.time = nnx.Linear(features, features, rngs=rngs)
        self.blocks = nnx.List([TransformerBlock(features, 4, rngs) for _ in range(depth)])
        self.out = nnx.Linear(features, patch * patch * channels, rngs=rngs)

    def __call__(self, x, time):
        """Arrays [rows, ...] and a time a row, to arrays of the same size."""
        batch, side, _, channels = x.shape
        grid, patch = side // self.patch, self.patch
        y = self.embed(x).reshape(batch, grid * grid, -1) + self.place[...]
        condition = self.time(sinusoidal(time, self.features))
        for block in self.blocks:
            y = block(y, condition)
        y = self.out(y).reshape(batch, grid, grid, patch, patch, channels)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


class ResidualBlock(nnx.Module):
    """Two convolutions with a time between them."""

    def __init__(self, inputs: int, outputs: int, time: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.GroupNorm(n, num_groups=8, rngs=rngs) for n in (inputs, outputs)])
        self.first = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), rngs=rngs)
        self.time = nnx.Linear(time, outputs, rngs=rngs)
        self.skip = nnx.Conv(inputs, outputs, (1, 1), rngs=rngs)

    def __call__(self, x, condition):
        """Arrays [rows, ...] and a condition a row, to arrays of the same size."""
        y = self.first(nnx.silu(self.norms[0](x)))
        y = y + self.time(nnx.silu(condition))[:, None, None]
        return self.skip(x) + self.second(nnx.silu(self.norms[1](y)))


class UNet(Denoiser):
    """Residual blocks at two resolutions, strided down, and up by repeating (Ho et al. 2020)."""

    def __init__(self, side=32, channels=3, features=32, *, rngs: nnx.Rngs):
        self.shape = (side, side, channels)
        self.features = features
        self.stem = nnx.Conv(channels, features, (3, 3), rngs=rngs)
        self.time = nnx.Linear(features, features, rngs=rngs)
        self.before = ResidualBlock(features, features, features, rngs)
        self.down = nnx.Conv(features, 2 * features, (3, 3), strides=2, rngs=rngs)
        self.middle = nnx.List([ResidualBlock(2 * features, 2 * features, features, rngs) for _ in range(2)])
        self.up = nnx.Conv(2 * features, features, (3, 3), rngs=rngs)
        self.after = ResidualBlock(2 * features, features, features, rngs)
        self.out = nnx.Conv(features, channels, (3, 3), rngs=rngs)

    def __call__(self, x, time):
        """Arrays [rows, ...] and a time a row, to arrays of the same size."""
        condition = self.time(sinusoidal(time, self.features))
        skip = self.before(self.stem(x), condition)
        y = self.down(skip)
        for block in self.middle:
            y = block(y, condition)
        y = self.up(jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2))
        y = self.after(jnp.concatenate([y, skip], axis=-1), condition)
        return self.out(nnx.silu(y))


class MLPFlow(Denoiser):
    """A velocity field of vectors (Lipman et al. 2023)."""

    def __init__(self, size=64, hidden=512, depth=4, *, rngs: nnx.Rngs):
        self.shape = (size,)
        self.hidden = hidden
        widths = [size + 64, *[hidden] * depth, size]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x, time):
        """Arrays [rows, ...] and a time a row, to arrays of the same size."""
        y = jnp.concatenate([x, sinusoidal(time, 64)], axis=-1)
        for layer in self.layers[:-1]:
            y = nnx.silu(layer(y))
        return self.layers[-1](y)


def networks() -> dict[str, nnx.Module]:
    """The networks, and a VAE of colour pictures beside them."""
    return {
        "DiT": DiT(rngs=nnx.Rngs(0)),
        "U-Net": UNet(rngs=nnx.Rngs(0)),
        "MLP flow": MLPFlow(rngs=nnx.Rngs(0)),
        "VAE 32x32x3": VAE((32, 32, 3), 64, [32, 64], [64, 32], rngs=nnx.Rngs(0)),
    }
