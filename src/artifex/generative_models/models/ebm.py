r"""Energy-based model: a convolutional network that says how unlikely a picture is, at each level of noise.

The energy $E(x, \sigma, y)$ is the negative log-density, but for a constant, of pictures of class y to which
Gaussian noise of deviation σ was added. Its gradient takes the noise away: the mean of the pictures that x
may have been is $x - \sigma^2 \nabla E$, by which it is trained. Langevin dynamics draws samples of it.

References:
    Song and Ermon, *Generative Modeling by Estimating Gradients of the Data Distribution*, 2019.
    https://arxiv.org/abs/1907.05600
    Saremi and Hyvärinen, *Neural Empirical Bayes*, 2019. https://arxiv.org/abs/1903.02334
    Salimans and Ho, *Should EBMs model the energy or the score?*, 2021.
    https://openreview.net/forum?id=9AS-TF2jRNb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import Field, RowNumbers
from artifex.generative_models.core.nn import FourierFeatures, LabelEmbedding, TimeEmbedding
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.sampling.langevin import (
    LANGEVIN_INPUTS,
    LangevinLoop,
    energy_and_gradient,
)
from artifex.generative_models.core.sampling.linear import wide
from artifex.generative_models.core.sampling.walking import GUIDANCE_INPUT, MAX_STEPS, Walking
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.models.arguments import check_integers, check_numbers, items

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SIDE = 2**14
_MAX_LEVELS = 14
_WAVES = 16  # frequencies that the noise level is told by
_WAVE_STD = 0.25
_READOUT_STD = 0.1  # of weights at first, so that the gradient of the energy is of the size of noise


class ProductConv(nnx.Module):
    """A 3×3 convolution with one zero on each side, as one matrix product of all neighbourhoods.

    Chains take the gradient of it in a loop, where XLA's own convolutions take almost three times as long
    on a CPU.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        draw = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(draw(rngs.params(), (3, 3, features, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """A picture of as many pixels and features."""
        _, height, width, features = x.shape
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        near = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        found = jnp.concatenate(near, axis=-1) @ self.kernel[...].reshape(-1, features)
        return found + self.bias[...].reshape(1, 1, 1, -1)


class Level(nnx.Module):
    """One resolution of the network: half of the pixels of the one before, then convolutions beside it.

    Each layer's outcome is scaled and moved by what the noise level and the class say (Perez et al., *FiLM*,
    2018, https://arxiv.org/abs/1709.07871).
    """

    def __init__(self, in_features: int, features: int, embed_dim: int, num_convs: int, *, rngs: nnx.Rngs):
        self.patches = nnx.Linear(4 * in_features, features, rngs=rngs)
        self.convs = nnx.List(ProductConv(features, rngs=rngs) for _ in range(num_convs))
        self.films = nnx.List(nnx.Linear(embed_dim, 2 * features, rngs=rngs) for _ in range(num_convs + 1))

    def __call__(
        self, x: Float[Array, "batch h w c"], told: Float[Array, "batch embed"]
    ) -> Float[Array, "batch half_h half_w features"]:
        """Of a picture and an embedding; odd sides are lengthened by zeros."""
        x = _swish_film(self.patches(_as_patches(x)), self.films[0](told))
        for conv, film in zip(self.convs, self.films[1:], strict=True):
            x = x + _swish_film(conv(x), film(told))
        return x


class EBM(nnx.Module):
    r"""Energy of pictures with noise, which may have classes.

    With $u = (x - m) / \sqrt{\sigma^2 + s^2}$ it is
    $$E(x, \sigma, y) = \frac{|x - m|^2}{2 (\sigma^2 + s^2)} + \frac{s}{\sigma} h(u, \sigma, y),$$
    where m and s are mean and std, and the network h adds to the energy of a Gaussian of that mean and
    deviation what real pictures have beside it. So the target of $-\nabla_u h$ in training has deviation 1 at
    each noise level: the preconditioning of Karras et al., of an energy.

    Pictures are in [-1, 1]; with noise they go beyond it. Energies of different classes or noise levels are
    not comparable, since each has a constant of its own. The model computes in the dtype of its weights, and
    gives float32. It stores no random number generators.

    Args:
        input_shape: (height, width, channels) of a picture; any sizes.
        num_labels: Classes that pictures have; 0 for none.
        level_features: Channels of each level, of which each halves the picture.
        level_convs: 3×3 convolutions of each level.
        num_features: Size of the layer after the last level.
        embed_dim: Size of the vector that noise level and class become.
        mean: m, mean of all pixels of the pictures of training.
        std: s, their standard deviation.
        sigma_min: The least noise level of training.
        sigma_max: The highest.
        sigma_walk: The noise level of chains that stay at one, if nobody says otherwise.
        num_steps: Steps of a chain, if nobody says otherwise.
        guidance_scale: How far samples are pushed towards their class, if nobody says otherwise; 1 is not at
            all.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument that is out of its range.

    References:
        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, 2022, table 1.
        https://arxiv.org/abs/2206.00364
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_labels: int = 0,
        level_features: Sequence[int] = (32, 64),
        level_convs: Sequence[int] = (1, 2),
        num_features: int = 128,
        embed_dim: int = 96,
        mean: float = 0.0,
        std: float = 0.5,
        sigma_min: float = 0.02,
        sigma_max: float = 10.0,
        sigma_walk: float = 0.5,
        num_steps: int = 100,
        guidance_scale: float = 1.0,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        sides = items(arguments, "input_shape", 3)
        check_integers(sides, *sides, maximum=_MAX_SIDE)
        channels = items(arguments, "level_features")
        check_integers(channels, *channels)
        if len(channels) > _MAX_LEVELS:
            raise ConfigError(f"level_features: expected 1 to {_MAX_LEVELS} integers, got {len(channels)}")
        convs = items(arguments, "level_convs", len(channels))
        check_integers(convs, *convs, minimum=0, maximum=1024)
        check_integers(arguments, "num_labels", minimum=0)
        check_integers(arguments, "num_features", "embed_dim")
        check_integers(arguments, "num_steps", maximum=MAX_STEPS)
        if type(mean) not in (int, float) or not np.isfinite(mean):
            raise ConfigError(f"mean: expected a finite number, got {mean!r}")
        check_numbers(arguments, "std", "sigma_min", "sigma_max", "sigma_walk", "guidance_scale")
        if not sigma_min <= sigma_walk <= sigma_max:
            raise ConfigError(
                f"sigma_walk: expected a number from sigma_min, {sigma_min:g}, to sigma_max, {sigma_max:g}; "
                f"got {sigma_walk:g}"
            )

        self._config = tuple(
            (name, tuple(value) if name in ("input_shape", "level_features", "level_convs") else value)
            for name, value in arguments.items()
        )
        self.embed_noise = FourierFeatures(_WAVES, _WAVE_STD, rngs=rngs)
        self.embed = TimeEmbedding(2 * _WAVES, embed_dim, rngs=rngs)
        self.embed_label = nnx.data(LabelEmbedding(num_labels, embed_dim, rngs=rngs) if num_labels else None)
        height, width, first = input_shape
        levels: list[Level] = []
        readouts: list[nnx.Linear] = []
        for (c_in, c_out), num_convs in zip(pairwise((first, *level_features)), level_convs, strict=True):
            height, width = -(-height // 2), -(-width // 2)
            levels.append(Level(c_in, c_out, embed_dim, num_convs, rngs=rngs))
            readouts.append(_readout(height * width * c_out, rngs))
        self.levels, self.readouts = nnx.List(levels), nnx.List(readouts)
        self.last = nnx.Linear(height * width * level_features[-1], num_features, rngs=rngs)
        self.last_film = nnx.Linear(embed_dim, 2 * num_features, rngs=rngs)
        self.last_readout = _readout(num_features, rngs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._config}

    def energy(
        self,
        x: Float[Array, "batch h w c"],
        sigma: Float[Array, " batch"],
        label: Int[Array, " batch"] | None = None,
    ) -> Float[Array, " batch"]:
        """The energy in nats, float32: the negative log-density but for a constant.

        Args:
            x: Pictures with noise.
            sigma: The standard deviation of the noise, above 0.
            label: Classes, of which num_labels stands for any; None only where there are none.
        """
        mean, std = (jnp.float32(self.config[name]) for name in ("mean", "std"))
        variance = sigma**2 + std**2
        u = (x - mean) / wide(jnp.sqrt(variance), x)
        gaussian = 0.5 * jnp.sum(u.reshape(len(u), -1) ** 2, axis=1)
        return gaussian + std / sigma * self._network(u, sigma, label)

    def _network(
        self,
        u: Float[Array, "batch h w c"],
        sigma: Float[Array, " batch"],
        label: Int[Array, " batch"] | None,
    ) -> Float[Array, " batch"]:
        """What real pictures have beside a Gaussian: h, float32."""
        dtype = self.last.kernel.dtype
        told = self.embed(self.embed_noise(sigma))
        if self.embed_label is not None:
            assert label is not None
            told = told + self.embed_label(label)
        told, x, total = nnx.swish(told), u.astype(dtype), jnp.zeros(len(u), jnp.float32)
        for level, readout in zip(self.levels, self.readouts, strict=True):
            x = level(x, told)
            total = total + readout(x.reshape(len(x), -1)).astype(jnp.float32)[:, 0]
        x = _swish_film(self.last(x.reshape(len(x), -1)), self.last_film(told))
        return total + self.last_readout(x).astype(jnp.float32)[:, 0]

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate`, `energy` and `denoise`."""
        config = self.config
        num_labels, least, most = (config[name] for name in ("num_labels", "sigma_min", "sigma_max"))
        shape = tuple(config["input_shape"])
        label = {"label": TensorSpec((), np.int32, doc="the class"), **GUIDANCE_INPUT} if num_labels else {}
        walking = Walking(
            least,
            most,
            config["sigma_walk"],
            config["num_steps"],
            num_labels=num_labels,
            guidance_scale=config["guidance_scale"],
        )
        loop = LangevinLoop(
            _guided_energy if num_labels else _energy,
            shape,
            float(config["mean"]),
            float(config["std"]),
            denoises=True,
        )

        def told(default: float) -> RowNumbers:
            doc = "Standard deviation of the noise in x."
            sigma = Field(float, default, minimum=least, maximum=most, doc=doc)
            return RowNumbers.of(
                {"sigma": sigma, **label_fields(num_labels, knows_none=True)}, unsaid={"label": num_labels}
            )

        clean, noisy = told(least), told(config["sigma_walk"])
        return {
            "generate": Endpoint(loop, {**LANGEVIN_INPUTS, **label}, doc="draw samples", says=walking),
            "energy": Endpoint(
                _evaluate,
                {"x": TensorSpec(shape, np.float32, doc="pictures in [-1, 1]"), **clean.inputs},
                doc="negative log-density but for a constant, nats",
                says=clean,
            ),
            "denoise": Endpoint(
                _denoise,
                {"x": TensorSpec(shape, np.float32, doc="pictures with noise"), **noisy.inputs},
                doc="the mean of the pictures that may have become these",
                says=noisy,
                ahead=False,
            ),
        }


def _energy(
    model: EBM, x: Float[Array, "rows h w c"], sigma: Float[Array, " rows"], inputs: Mapping[str, Array]
) -> Float[Array, " rows"]:
    return model.energy(x, sigma, inputs.get("label"))


def _guided_energy(
    model: EBM, x: Float[Array, "rows h w c"], sigma: Float[Array, " rows"], inputs: Mapping[str, Array]
) -> Float[Array, " rows"]:
    r"""An energy of which the class has another weight, both parts in one evaluation.

    $$E_w(x, y) = E(x) + w (E(x, y) - E(x)),$$
    the density $p(x) p(y | x)^w$ but for a constant. It is an energy too, so adjusted chains are exact.

    References:
        Du, Li and Mordatch, *Compositional Visual Generation with Energy Based Models*, 2020, section 3.
        https://arxiv.org/abs/2004.06030
        Ho and Salimans, *Classifier-Free Diffusion Guidance*, 2022. https://arxiv.org/abs/2207.12598
    """
    label = inputs["label"]
    labels = jnp.concatenate([label, jnp.full_like(label, model.config["num_labels"])])
    energies = model.energy(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma]), labels)
    told, any_class = jnp.split(energies, 2)
    return any_class + inputs["guidance_scale"] * (told - any_class)


def _evaluate(model: EBM, keys: Key[Array, " rows"], inputs: dict[str, Array]) -> dict[str, Array]:
    return {"energy": _energy(model, inputs["x"], inputs["sigma"], inputs)}


def _denoise(model: EBM, keys: Key[Array, " rows"], inputs: dict[str, Array]) -> dict[str, Array]:
    """The estimate of Tweedie and of Miyasawa: x - sigma² times the gradient of the energy."""
    x, sigma = inputs["x"], inputs["sigma"]
    return {"x": x - wide(sigma**2, x) * energy_and_gradient(_energy, model, x, sigma, inputs)[1]}


def _readout(in_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    """The sum of features with weights."""
    draw = nnx.initializers.normal(_READOUT_STD)
    return nnx.Linear(in_features, 1, use_bias=False, kernel_init=draw, rngs=rngs)


def _as_patches(x: Float[Array, "batch h w c"]) -> Float[Array, "batch half_h half_w four_c"]:
    """The four pixels of each 2×2 patch as features of one; zeros lengthen odd sides."""
    batch, height, width, features = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, features)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, x.shape[1], x.shape[3], 4 * features)


def _swish_film(
    x: Float[Array, "batch ... c"], film: Float[Array, "batch two_c"]
) -> Float[Array, "batch ... c"]:
    """Swish of features, scaled and moved by numbers of their own a row."""
    scale, shift = jnp.split(film.reshape(len(film), *[1] * (x.ndim - 2), -1), 2, axis=-1)
    return nnx.swish((1 + scale) * x + shift)
