"""Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from artifex.generative_models.core.sampling.linear import Denoiser, wide
from artifex.generative_models.core.sampling.packing import TABLE_INPUTS

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclass(frozen=True)
class Guided:
    """A network pushed away from what it says without its condition: o0 + scale (o - o0).

    Both are evaluated in one batch of twice the rows; where no row of a batch has another scale than 1, the
    network is evaluated once. So a row of scale 1 beside guided ones agrees to the tolerance of other batch
    sizes, not to the bit. The scale is one a row and step, in the sampler's table.

    Args:
        fn: The network.
        null: What inputs are for "no condition", by name: one value, which all rows get.
        num_channels: Channels of the output that are guided; others, such as a learned variance, stay as they
            are with the condition; None is all.
    """

    fn: Denoiser
    null: tuple[tuple[str, Any], ...]
    num_channels: int | None = None

    def __call__(
        self, model: Any, x: Float[Array, "rows ..."], time: Array, scale: Array, inputs: Mapping[str, Any]
    ) -> Float[Array, "rows ..."]:
        """What the network predicts, with guidance."""

        def both(x: Array, time: Array, scale: Array) -> Array:
            without = {**inputs, **{name: jnp.full_like(inputs[name], value) for name, value in self.null}}
            names = [name for name in inputs if name not in TABLE_INPUTS]
            twice = {name: jnp.concatenate([inputs[name], without[name]]) for name in names}
            found = self.fn(
                model,
                jnp.concatenate([x, x]),
                jnp.concatenate([time, time]),
                jnp.concatenate([scale, scale]),
                twice,
            )
            given, null = jnp.split(found, 2)
            kept = self.num_channels or given.shape[-1]
            rest, given, null = given[..., kept:], given[..., :kept], null[..., :kept]
            guided = rescaled(null + wide(scale, x) * (given - null), given, inputs.get("guidance_rescale"))
            guided = jnp.where(wide(scale, x) == 1, given, guided)
            return jnp.concatenate([guided, rest], axis=-1) if rest.shape[-1] else guided

        def once(x: Array, time: Array, scale: Array) -> Array:
            return self.fn(model, x, time, scale, inputs)

        return jax.lax.cond(jnp.any(scale != 1), both, once, x, time, scale)


def rescaled(
    guided: Float[Array, "rows ..."], given: Float[Array, "rows ..."], share: Float[Array, " rows"] | None
) -> Float[Array, "rows ..."]:
    """Guidance makes pictures garish; this brings what it gives back towards its spread without guidance.

    guided (share std(given) / std(guided) + 1 - share), row by row.

    Args:
        guided: What the network predicts with guidance.
        given: With the condition, but no guidance.
        share: From 0, no change, to 1, the spread of `given`; None is 0.

    References:
        Lin et al., *Common diffusion noise schedules and sample steps are flawed*, 2023, section 3.4,
        equations 15 and 16. https://arxiv.org/abs/2305.08891
    """
    if share is None:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread = guided.std(axes)
    ratio = given.std(axes) / jnp.where(spread > 0, spread, jnp.ones_like(spread))
    factor = jnp.where((share > 0) & (spread > 0), share * ratio + 1 - share, jnp.ones_like(share))
    return guided * wide(factor, guided)
