"""Style-based generator of pictures: a mapping of latents to styles, and convolutions that styles modulate.

The mapping turns z into w. A learned picture goes through 3×3 convolutions, of which each has its input
channels scaled by what it makes of w and its output channels scaled back to variance 1, gets noise that is
its own for each pixel, and doubles height and width or keeps them. The last doubling gives the picture
itself, where the papers have two more layers of its size: those take most of the time on a CPU, for what
neighbouring pixels of features can say. Pictures are in [0, 1] by the logistic function, where the papers'
have no bounds.

Scaling the inputs and the outputs is the same as scaling the kernel, row by row, and shares one kernel among
the rows: products of large matrices in place of a convolution for each row.

References:
    Karras et al., *A Style-Based Generator Architecture for Generative Adversarial Networks*, 2019.
    https://arxiv.org/abs/1812.04948
    Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, 2020.
    https://arxiv.org/abs/1912.04958
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.nn import Conv3x3, SubpixelConv
from artifex.generative_models.models.arguments import check_integers
from artifex.generative_models.models.gan import (
    EPSILON,
    WEIGHT,
    check_generator,
    chosen_labels,
    latent_spec,
    noise,
    numbers,
    pixel_norm,
    prior,
    truncation_field,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

    Noise = Sequence[Float[Array, "batch h w 1"]]

_SLOPE, _GAIN = 0.2, 2**0.5  # of the leaky ReLU, and what keeps its variance
_MAX_LAYERS = 64


class Mapper(nnx.Module):
    """z, and a label where there are classes, to w.

    References:
        Karras et al. 2019, section 2; Karras et al., *Training Generative Adversarial Networks with Limited
        Data*, 2020, for the label. https://arxiv.org/abs/2006.06676
    """

    def __init__(self, latent_dim: int, num_labels: int, num_layers: int, *, rngs: nnx.Rngs):
        self.embed = nnx.data(nnx.Embed(num_labels, latent_dim, rngs=rngs) if num_labels else None)
        widths = [latent_dim * (2 if num_labels else 1), *[latent_dim] * num_layers]
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=nnx.initializers.he_normal(), rngs=rngs) for a, b in pairwise(widths)
        )

    def __call__(
        self, z: Float[Array, "batch latent"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch latent"]:
        """The style of each row."""
        x = pixel_norm(z.astype(self.layers[0].kernel.dtype))
        if self.embed is not None:
            assert label is not None  # as every endpoint has it
            x = jnp.concatenate([x, pixel_norm(self.embed(label).astype(x.dtype))], -1)
        for layer in self.layers:
            x = nnx.leaky_relu(layer(x), _SLOPE)
        return x


class ModulatedConv(nnx.Module):
    r"""A convolution whose kernel each row's style scales.

    With the style $s = A w + b$ the kernel of a row is
    $$w'_{kio} = s_i w_{kio}, \quad w''_{kio} = w'_{kio} \Big/ \sqrt{\sum_{ki} w'^2_{kio} + \epsilon}$$
    for taps k, channels in i and channels out o. Where pixels are doubled, each meets a quarter of the taps,
    and the sum is divided by 4.

    Args:
        in_features: Channels in.
        features: Channels out.
        latent_dim: Size of w.
        doubles: Whether height and width are doubled, by a transposed 4×4 convolution of stride 2.
        demodulates: Whether the kernel is divided; if not, it is w' alone.
        rngs: Random number generators for the weights.

    References:
        Karras et al. 2020, section 2.2, equations 1 and 3.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        latent_dim: int,
        *,
        doubles: bool = False,
        demodulates: bool = True,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.demodulates = demodulates
        self.style = nnx.Linear(latent_dim, in_features, bias_init=nnx.initializers.ones, rngs=rngs)
        self.conv = (
            SubpixelConv(in_features, features, 2, use_bias=False, rngs=rngs)
            if doubles
            else Conv3x3(in_features, features, use_bias=False, rngs=rngs)
        )

    def __call__(
        self, x: Float[Array, "batch h w in"], w: Float[Array, "batch latent"]
    ) -> Float[Array, "batch out_h out_w out"]:
        """Pictures that are as large, or twice as large."""
        style = self.style(w)
        x = self.conv(x * style[:, None, None])
        if not self.demodulates:
            return x
        kernel = (self.conv.conv if isinstance(self.conv, SubpixelConv) else self.conv).kernel[...]
        kernel, style = kernel.astype(jnp.float32), style.astype(jnp.float32)  # float16 holds no such squares
        power = jnp.square(kernel).sum((0, 1)).reshape(len(style.T), -1, self.features).mean(1)
        scale = jax.lax.rsqrt(jnp.square(style) @ power + jnp.float32(EPSILON))
        return x * scale[:, None, None].astype(x.dtype)


class StyledLayer(nnx.Module):
    """A modulated convolution, noise, a bias and a leaky ReLU.

    The arguments are those of `ModulatedConv`.

    References:
        Karras et al. 2020, section 2.1 and figure 2c.
    """

    def __init__(
        self, in_features: int, features: int, latent_dim: int, *, doubles: bool = False, rngs: nnx.Rngs
    ):
        self.conv = ModulatedConv(in_features, features, latent_dim, doubles=doubles, rngs=rngs)
        self.noise_strength = nnx.Param(jnp.zeros(1))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(
        self,
        x: Float[Array, "batch h w in"],
        w: Float[Array, "batch latent"],
        noise: Float[Array, "batch out_h out_w 1"] | None,
    ) -> Float[Array, "batch out_h out_w out"]:
        """Pictures that are as large, or twice as large; without noise where it is None."""
        x = self.conv(x, w)
        if noise is not None:
            x = x + self.noise_strength[...].reshape(1, 1, 1, 1) * noise.astype(x.dtype)
        x = x + self.bias[...].reshape(1, 1, 1, -1)
        return nnx.leaky_relu(x, _SLOPE) * jnp.asarray(_GAIN, x.dtype)


class StyleGAN(nnx.Module):
    """Generator of a style-based GAN.

    Pictures are in [0, 1]. The model computes in the dtype of its weights, and gives float32. It stores no
    random number generators. `mean_w` is the mean of w, of each class where there are classes; it is no
    weight that training finds, but measured when that is done.

    Args:
        output_shape: (height, width, channels) of a picture; two to the number of `features` divides both
            sides.
        latent_dim: Size of z, and of w.
        features: Channels before each doubling, from the smallest picture.
        num_labels: Classes that callers may ask for; 0 where there are none.
        mapping_layers: Layers from z to w.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable.
    """

    def __init__(
        self,
        output_shape: Sequence[int],
        latent_dim: int = 64,
        features: Sequence[int] = (96, 48),
        num_labels: int = 0,
        mapping_layers: int = 4,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name != "self"}
        check_generator(arguments)
        check_integers(arguments, "mapping_layers", maximum=_MAX_LAYERS)
        self.output_shape = tuple(output_shape)
        self.latent_dim = latent_dim
        self.features = tuple(features)
        self.num_labels = num_labels
        self.mapping_layers = mapping_layers
        height, width, channels = self.output_shape
        start = height >> len(self.features), width >> len(self.features)
        sides = [start]
        self.mapper = Mapper(latent_dim, num_labels, mapping_layers, rngs=rngs)
        self.mean_w = nnx.Param(jnp.zeros((max(num_labels, 1), latent_dim)))
        self.constant = nnx.Param(jax.random.normal(rngs.params(), (*start, self.features[0]), jnp.float32))
        layers = [StyledLayer(self.features[0], self.features[0], latent_dim, rngs=rngs)]
        for c_in, c_out in pairwise(self.features):
            layers.append(StyledLayer(c_in, c_out, latent_dim, doubles=True, rngs=rngs))
            layers.append(StyledLayer(c_out, c_out, latent_dim, rngs=rngs))
            sides += [(2 * sides[-1][0], 2 * sides[-1][1])] * 2
        self.sides = tuple(sides)
        self.layers = nnx.List(layers)
        self.to_picture = ModulatedConv(
            self.features[-1], channels, latent_dim, doubles=True, demodulates=False, rngs=rngs
        )
        self.bias = nnx.Param(jnp.zeros(channels))

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return {
            "output_shape": list(self.output_shape),
            "latent_dim": self.latent_dim,
            "features": list(self.features),
            "num_labels": self.num_labels,
            "mapping_layers": self.mapping_layers,
        }

    @property
    def num_styles(self) -> int:
        """How many layers read a style: those with noise, and the last, which makes the picture."""
        return len(self.layers) + 1

    def styles(
        self,
        z: Float[Array, "batch latent"],
        label: Int[Array, " batch"] | None = None,
        truncation: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch latent"]:
        """Styles w of latents, drawn to its mean: `(1 - truncation) mean_w + truncation w`.

        Args:
            z: Latents.
            label: Classes, where there are any.
            truncation: 1, or None, leaves w as it is, and 0 gives the mean, both to the bit.

        References:
            Karras et al. 2019, appendix B, with one mean for all classes.
        """
        w = self.mapper(z, label)
        if truncation is None:
            return w
        kept = truncation.astype(w.dtype)[:, None]
        mean = self.mean_w[...][jnp.zeros(len(z), jnp.int32) if label is None else label]
        return (1 - kept) * mean + kept * w

    def synthesis(
        self, styles: Sequence[Float[Array, "batch latent"]], noises: Noise | None = None
    ) -> Float[Array, "batch h w c"]:
        """Pictures in [0, 1], float32.

        Args:
            styles: w of each layer that reads one.
            noises: What is added in each layer but the last; None adds nothing.
        """
        constant = self.constant[...]
        x = jnp.broadcast_to(constant[None], (len(styles[0]), *constant.shape))
        for i, layer in enumerate(self.layers):
            x = layer(x, styles[i], None if noises is None else noises[i])
        x = self.to_picture(x, styles[-1]) + self.bias[...].reshape(1, 1, 1, -1)
        return nnx.sigmoid(x.astype(jnp.float32))

    def noises(self, keys: Key[Array, " batch"]) -> list[Float[Array, "batch h w 1"]]:
        """Standard normal noise for each layer but the last, of each row's key."""
        return [noise(keys, layer, side) for layer, side in enumerate(self.sides)]

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate`, `decode` and `interpolate`."""
        most = self.num_styles
        truncation = {
            "truncation": truncation_field("How far w is from its mean: 1 is a plain sample, 0 the mean.")
        }
        fields = {
            **truncation,
            "noise_scale": Field(
                float, 1.0, minimum=0, maximum=1, doc="Deviation of the noise in each layer."
            ),
            "mixing_layer": Field(
                int,
                most,
                minimum=0,
                maximum=most,
                doc=f"Layers from this one on take the style of another draw; {most} is none of them.",
            ),
        }
        generate = numbers(self.num_labels, fields, knows_none=True)
        decode = numbers(self.num_labels, truncation, knows_none=False)
        between = numbers(self.num_labels, {"weight": WEIGHT, **truncation}, knows_none=False)
        z = latent_spec(self.latent_dim, "latent vectors")
        ends = {"z": z, "z_end": latent_spec(self.latent_dim, "other latent vectors")}
        return {
            "generate": Endpoint(
                _generate, generate.inputs, doc="the picture of a draw from the prior", says=generate
            ),
            "decode": Endpoint(
                _decode, {"z": z, **decode.inputs}, doc="pictures of latents, without noise", says=decode
            ),
            "interpolate": Endpoint(
                _interpolate,
                {**ends, **between.inputs},
                doc="pictures between latents, on the line from one's w to the other's, without noise",
                says=between,
                ahead=False,
            ),
        }


def _generate(model: StyleGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    """Styles of two draws are mixed as in Karras et al. 2019, section 3.1."""
    label = chosen_labels(keys, inputs, model.num_labels)
    w, other = (
        model.styles(prior(keys, model.latent_dim, other=which), label, inputs["truncation"])
        for which in (False, True)
    )
    own = inputs["mixing_layer"]
    styles = [jnp.where((layer < own)[:, None], w, other) for layer in range(model.num_styles)]
    scale = inputs["noise_scale"][:, None, None, None]
    return {"x": model.synthesis(styles, [scale * drawn for drawn in model.noises(keys)])}


def _decode(model: StyleGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    w = model.styles(inputs["z"], inputs.get("label"), inputs["truncation"])
    return {"x": model.synthesis([w] * model.num_styles)}


def _interpolate(model: StyleGAN, keys: Key[Array, " batch"], inputs: dict[str, Array]) -> dict[str, Array]:
    start, end = (
        model.styles(inputs[name], inputs.get("label"), inputs["truncation"]) for name in ("z", "z_end")
    )
    weight = inputs["weight"].astype(start.dtype)[:, None]
    return {"x": model.synthesis([(1 - weight) * start + weight * end] * model.num_styles)}
