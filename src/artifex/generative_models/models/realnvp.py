r"""Normalizing flow: an invertible network between pictures and noise, with their exact densities.

$\log p(x) = \log \mathcal N(f(x); 0, I) + \log |\det \partial f / \partial x|$. The network f squeezes blocks
of pixels into channels, takes steps of a channelwise scale, an invertible 1×1 convolution and an affine
coupling, and lets half of the channels leave at the end of each level but the last, under a Gaussian that
those which stay tell. The class, where it is told, enters every coupling and every Gaussian.

What pictures of 256 levels are as real numbers, `models/scaling.py` says.

References:
    Dinh, Sohl-Dickstein and Bengio, *Density Estimation Using Real NVP*, 2017.
    https://arxiv.org/abs/1605.08803
    Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1×1 Convolutions*, 2018.
    https://arxiv.org/abs/1807.03039
    Theis, van den Oord and Bethge, *A Note on the Evaluation of Generative Models*, 2016, section 3.1.
    https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.fields import Field, RowNumbers
from artifex.generative_models.core.levels import bits_of_a_cell, dequantized
from artifex.generative_models.core.sampling.labels import label_fields
from artifex.generative_models.core.sampling.rejection import (
    REJECTION_FIELDS,
    REQUIRES,
    UNBOUNDED,
    Rejection,
)
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.models.arguments import (
    MAX_LAYERS,
    check_choice,
    check_integers,
    check_numbers,
    items,
)
from artifex.generative_models.models.bijections import (
    ActNorm,
    AffineCoupling,
    InvertibleConv,
    SplitPrior,
    TopPrior,
    squeezed,
    unsqueezed,
)
from artifex.generative_models.models.scaling import SCALINGS, Scaling

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SIDE = 2**14
_MAX_SQUEEZE = 64


class Step(nnx.Module):
    """A channelwise scale, a 1×1 convolution and a coupling.

    Args:
        channels: How many, from 2.
        features: Channels of the coupling's network.
        num_labels: Classes.
        max_log_scale: Bound of the coupling's log-scale.
        rngs: Random number generators for the weights.
    """

    def __init__(
        self, channels: int, features: int, num_labels: int, max_log_scale: float, *, rngs: nnx.Rngs
    ):
        self.norm = ActNorm(channels)
        self.conv = InvertibleConv(channels, rngs=rngs)
        self.coupling = AffineCoupling(channels, features, num_labels, max_log_scale, rngs=rngs)

    def forward(self, x: Array, label: Array) -> tuple[Array, Array]:
        """All three, and the log-determinant [batch]."""
        x, scaled = self.norm.forward(x)
        x, mixed = self.conv.forward(x)
        x, coupled = self.coupling.forward(x, label)
        return x, scaled + mixed + coupled

    def inverse(self, y: Array, label: Array) -> tuple[Array, Array]:
        """What `forward` gives this of, and the log-determinant [batch] of the way there."""
        y, coupled = self.coupling.inverse(y, label)
        y, mixed = self.conv.inverse(y)
        y, scaled = self.norm.inverse(y)
        return y, scaled + mixed + coupled


class RealNVP(nnx.Module):
    """Multi-scale flow of affine couplings.

    It computes in float32, whatever its weights are stored in, so that both directions are each other's
    inverse. It stores no random number generators.

    Args:
        input_shape: (height, width, channels) of a picture; of vectors (1, 1, size).
        level_squeezes: Of each level, the side of the blocks of pixels that become channels.
        level_steps: Of each level, how many steps it has.
        level_features: Of each level, channels of its couplings' networks.
        num_labels: Classes of pictures; 0 where the model knows none.
        scaling: What is done to numbers first: "logit" and "linear" take pictures in [0, 1] of 256 levels;
            "none" takes any real numbers as they are.
        boundary: Share a of [0, 1] at each end that "logit" leaves out: logit(a + (1 - 2 a) u).
        max_log_scale: Bound of the log-scale of couplings.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is no such number, the lists are of different lengths, a level's sides are no
            multiples of its blocks', or it has fewer than 2 channels.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        level_squeezes: Sequence[int] = (2, 2),
        level_steps: Sequence[int] = (4, 8),
        level_features: Sequence[int] = (64, 128),
        num_labels: int = 0,
        scaling: str = "logit",
        boundary: float = 0.05,
        max_log_scale: float = 2.0,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        sides = items(arguments, "input_shape", 3)
        check_integers(sides, *sides, maximum=_MAX_SIDE)
        squeezes = items(arguments, "level_squeezes")
        check_integers(squeezes, *squeezes, maximum=_MAX_SQUEEZE)
        steps = items(arguments, "level_steps", len(squeezes))
        check_integers(steps, *steps, maximum=MAX_LAYERS)
        features = items(arguments, "level_features", len(squeezes))
        check_integers(features, *features)
        check_integers(arguments, "num_labels", minimum=0)
        check_choice(arguments, "scaling", choices=SCALINGS)
        check_numbers(arguments, "boundary", "max_log_scale")
        if boundary >= 0.5:
            raise ConfigError(f"boundary: expected a number below 0.5, got {boundary}")

        self.input_shape = tuple(input_shape)
        self.level_squeezes = tuple(level_squeezes)
        self.level_steps = tuple(level_steps)
        self.level_features = tuple(level_features)
        self.num_labels = num_labels
        self.scaling = scaling
        self.boundary = boundary
        self.max_log_scale = max_log_scale
        self.levels: nnx.List[nnx.List[Step]] = nnx.List()
        self.priors: nnx.List[SplitPrior | TopPrior] = nnx.List()
        shapes = _level_shapes(self.input_shape, self.level_squeezes)
        for level, (height, width, channels) in enumerate(shapes):
            made = (
                Step(channels, self.level_features[level], num_labels, max_log_scale, rngs=rngs)
                for _ in range(self.level_steps[level])
            )
            self.levels.append(nnx.List(made))
            num_kept = channels // 2
            self.priors.append(
                TopPrior((height, width, channels), num_labels, rngs=rngs)
                if level == len(shapes) - 1
                else SplitPrior(num_kept, channels - num_kept, num_labels, rngs=rngs)
            )

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {
            "input_shape": list(self.input_shape),
            "level_squeezes": list(self.level_squeezes),
            "level_steps": list(self.level_steps),
            "level_features": list(self.level_features),
            "num_labels": self.num_labels,
            "scaling": self.scaling,
            "boundary": self.boundary,
            "max_log_scale": self.max_log_scale,
        }

    @property
    def scaler(self) -> Scaling:
        """What is done to numbers first."""
        return Scaling(self.scaling, self.boundary)

    @property
    def num_dims(self) -> int:
        """Numbers in a sample, and in its latents."""
        return math.prod(self.input_shape)

    def encode(
        self, x: Float[Array, "batch h w c"], label: Int[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch latent"], Float[Array, " batch"]]:
        """Latents of samples, which are noise of deviation 1 where these are the model's own.

        Args:
            x: Samples.
            label: Their classes; `num_labels` is none of them, as for all where it is None.

        Returns:
            The latents, and the log-determinant of the way there.
        """
        label = self._labels(label, len(x))
        x, log_det = self.scaler.forward(x.astype(jnp.float32))
        latents = []
        for level, (steps, prior) in enumerate(zip(self.levels, self.priors, strict=True)):
            x = squeezed(x, self.level_squeezes[level])
            for step in steps:
                x, changed = step.forward(x, label)
                log_det = log_det + changed
            if isinstance(prior, SplitPrior):
                x, leaving = jnp.split(x, [x.shape[-1] // 2], axis=-1)
                z, changed = prior.forward(leaving, x, label)
            else:
                z, changed = prior.forward(x, label)
            latents.append(z.reshape(len(z), -1))
            log_det = log_det + changed
        return jnp.concatenate(latents, axis=-1), log_det

    def decode(
        self, z: Float[Array, "batch latent"], label: Int[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch h w c"], Float[Array, " batch"]]:
        """Samples of latents: the inverse of `encode`.

        Args:
            z: Latents.
            label: Classes, as for `encode`.

        Returns:
            The samples, and the log-determinant of the way there.
        """
        label = self._labels(label, len(z))
        shapes = self._latent_shapes
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        parts = jnp.split(z.astype(jnp.float32), ends[:-1].tolist(), axis=-1)
        x, log_det = jnp.zeros((len(z), 0), jnp.float32), jnp.zeros(len(z), jnp.float32)
        for level in reversed(range(len(parts))):
            prior, part = self.priors[level], parts[level].reshape(-1, *shapes[level])
            if isinstance(prior, SplitPrior):
                leaving, changed = prior.inverse(part, x, label)
                x = jnp.concatenate([x, leaving], axis=-1)
            else:
                x, changed = prior.inverse(part, label)
            log_det = log_det + changed
            for step in reversed(list(self.levels[level])):
                x, changed = step.inverse(x, label)
                log_det = log_det + changed
            x = unsqueezed(x, self.level_squeezes[level])
        x, changed = self.scaler.inverse(x)
        return x, log_det + changed

    def log_prob(
        self, x: Float[Array, "batch h w c"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, " batch"]:
        """The log-density of samples, in nats, over the numbers of x as they are.

        Arguments are those of `encode`.
        """
        z, log_det = self.encode(x, label)
        return _log_normal(z) + log_det

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate`, `log_prob`, `encode` and `decode`."""
        is_picture = self.scaling != "none"
        doc = "pictures in [0, 1]" if is_picture else "samples"
        x = {"x": TensorSpec(self.input_shape, jnp.float32, doc=doc)}
        z = {"z": TensorSpec((self.num_dims,), jnp.float32, doc="latents, noise of deviation 1")}
        labels = label_fields(self.num_labels, knows_none=True)
        unsaid: dict[str, float] = {"label": self.num_labels} if labels else {}
        told = RowNumbers.of(labels, unsaid) if labels else None
        label = {} if told is None else told.inputs
        drawn = RowNumbers.of(
            {
                "temperature": Field(float, 1.0, minimum=0, doc="Standard deviation of the prior's noise."),
                **labels,
                **REJECTION_FIELDS,
            },
            {**unsaid, "min_log_prob": UNBOUNDED},
        )
        dequantize = Option(
            False,
            choices=(False, True),
            doc="Fill the cells of 256 levels with noise first, as for published bits a dimension.",
        )
        return {
            "generate": Endpoint(
                Rejection(_draw, self.input_shape),
                drawn.inputs,
                doc="draw samples, and tell their log-density under the model at temperature 1",
                says=drawn,
                requires=REQUIRES,
            ),
            "log_prob": Endpoint(
                _log_prob,
                {**x, **label},
                {"dequantize": dequantize} if is_picture else {},
                doc="the exact log-density: nats a sample, and bits a dimension"
                + " of 256 levels" * is_picture,
                says=told,
                ahead=False,
            ),
            "encode": Endpoint(_encode, {**x, **label}, doc="the latents of samples", says=told, ahead=False),
            "decode": Endpoint(_decode, {**z, **label}, doc="the samples of latents", says=told, ahead=False),
        }

    @property
    def _latent_shapes(self) -> list[tuple[int, int, int]]:
        """Shape [h, w, c] of what leaves at each level: half of the channels, and at the last one all."""
        *split, last = _level_shapes(self.input_shape, self.level_squeezes)
        return [*((height, width, channels - channels // 2) for height, width, channels in split), last]

    def _labels(self, label: Int[Array, " batch"] | None, num_rows: int) -> Int[Array, " batch"]:
        return jnp.full(num_rows, self.num_labels, jnp.int32) if label is None else label


def _draw(
    model: RealNVP, keys: Key[Array, " rows"], inputs: Mapping[str, Array]
) -> tuple[Float[Array, "rows h w c"], Float[Array, " rows"]]:
    """Samples, and their log-density at temperature 1: noise is multiplied with the temperature.

    For flows whose log-determinants are constant these are draws of p(x)^(1/T^2), normalised (Kingma and
    Dhariwal 2018, section 6); for affine couplings, nearly.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, (model.num_dims,), jnp.float32))(keys)
    z = inputs["temperature"][:, None] * noise
    x, log_det = model.decode(z, inputs.get("label"))
    return x, _log_normal(z) - log_det


def _log_prob(
    model: RealNVP, keys: Key[Array, " rows"], inputs: Mapping[str, Array], *, dequantize: bool = False
) -> dict[str, Array]:
    """Of pictures, bits are those of the cell of a picture of 256 levels, whose volume is 255^-d."""
    x = inputs["x"].astype(jnp.float32)
    if dequantize:
        x = dequantized(x, keys)
    found = model.log_prob(x, inputs.get("label"))
    of_a_cell = 0.0 if model.scaling == "none" else bits_of_a_cell()
    return {"log_prob": found, "bits_per_dim": of_a_cell - found / (model.num_dims * math.log(2))}


def _encode(model: RealNVP, keys: Key[Array, " rows"], inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"z": model.encode(inputs["x"], inputs.get("label"))[0]}


def _decode(model: RealNVP, keys: Key[Array, " rows"], inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"x": model.decode(inputs["z"], inputs.get("label"))[0]}


def _log_normal(z: Float[Array, "batch latent"]) -> Float[Array, " batch"]:
    return -0.5 * jnp.sum(z**2, axis=-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _level_shapes(shape: tuple[int, ...], squeezes: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Shape [h, w, c] that each level works on; half of the channels go on to the next."""
    height, width, channels = shape
    found = []
    for level, factor in enumerate(squeezes):
        if height % factor or width % factor:
            raise ConfigError(
                f"level_squeezes[{level}]: expected a divisor of its sides, {height} and {width}, got "
                f"{factor}"
            )
        height, width, channels = height // factor, width // factor, channels * factor**2
        if channels < 2:
            raise ConfigError(f"level_squeezes[{level}]: its level has 1 channel; a coupling takes 2 or more")
        found.append((height, width, channels))
        channels //= 2
    return found
