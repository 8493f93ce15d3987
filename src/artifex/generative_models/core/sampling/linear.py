"""The loop of everything that denoises: its sampler is a table that each row carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sampling import table as columns

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

# fn(model, x, time, guidance, inputs) -> what the network predicts, of the shape of x, with twice its
# channels where the variance is learned; time and guidance are float32 [rows].
Denoiser = Callable[..., Any]

_START = 2**31 - 1  # the number of the step that draws the noise that it starts from


class LinearState(NamedTuple):
    """Where a row is.

    Args:
        x: The noisy sample.
        y: A sample that the solver keeps.
        m1: The last estimate of the sample without noise.
        m2: The one before.
        step: Steps that were done.
    """

    x: Float[Array, "rows ..."]
    y: Float[Array, "rows ..."]
    m1: Float[Array, "rows ..."]
    m2: Float[Array, "rows ..."]
    step: Int[Array, " rows"]


@dataclass(frozen=True)
class LinearSampler:
    """Draws samples with a network that denoises, each row with its own sampler, steps and guidance.

    Besides what the network reads, the inputs are `table` float32 [rows, max_steps, NUM_COLUMNS], `num_steps`
    int32 [rows] and `noise_scale` float32 [rows].

    Args:
        fn: The network.
        shape: Shape of a sample.
        finish: Turns samples [rows, ...] into what the endpoint gives; None gives them as `x`.
        start: The input [rows, ...] that it starts from, as noise of deviation 1; None draws the noise.
        adds_noise: Whether samplers may add noise on the way. Where none does, and it starts from an input,
            no keys are read.
        thresholds: Whether tables may ask for dynamic thresholding, which takes a sort of all pixels.

    Raises:
        InputError: What the network gives has another shape than x, with its channels or twice as many.
    """

    fn: Denoiser
    shape: tuple[int, ...]
    finish: Callable[[Any, Float[Array, "rows ..."]], dict[str, Array]] | None = None
    start: str | None = None
    adds_noise: bool = True
    thresholds: bool = True

    def init(self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]) -> LinearState:
        """Noise, of the standard deviation that the sampler starts from."""
        if self.start is None:
            noise = drawn_noise(keys, jnp.full(len(keys), _START, jnp.int32), self.shape)
        else:
            noise = inputs[self.start]
        start = noise.astype(jnp.float32) * wide(inputs["noise_scale"], noise)
        nothing = jnp.zeros_like(start)
        return LinearState(start, nothing, nothing, nothing, jnp.zeros(len(keys), jnp.int32))

    def step(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any], state: LinearState
    ) -> LinearState:
        """One evaluation, and the linear update that the table has for it."""
        x, y, m1, m2, step = state
        row = table_row(inputs["table"], step)

        def column(index: int) -> Array:
            return wide(row[:, index], x)

        o = self.fn(model, column(columns.INPUT) * x, row[:, columns.TIME], row[:, columns.GUIDANCE], inputs)
        if o.shape not in (x.shape, (*x.shape[:-1], 2 * x.shape[-1])):
            raise InputError(
                f"the network: expected {list(x.shape)} for x of that shape, or twice the channels where it "
                f"chooses the variance too; got {list(o.shape)}"
            )
        noise = jnp.zeros_like(x)
        if self.adds_noise:
            noise = _noise_if(jnp.any(row[:, columns.STEP.stop - 1] != 0), keys, step, x)
        if o.shape[-1] == 2 * x.shape[-1]:
            o, chosen = jnp.split(o, 2, axis=-1)
            noise = noise * _learned_std(chosen, row)
        m = column(columns.X_TO_M) * x + column(columns.O_TO_M) * o
        if self.thresholds:
            m = jax.lax.cond(jnp.any(row[:, columns.QUANTILE] > 0), _thresholded, lambda m, _: m, m, row)
        m = jnp.clip(m, -column(columns.BOUND), column(columns.BOUND))
        y = _combined(row[:, columns.KEEP], (x, y, m, m1, m2, o))
        x = _combined(row[:, columns.STEP], (x, y, m, m1, m2, o, noise))
        return LinearState(x, y, m, m1, step + 1)

    def value(self, model: Any, inputs: Mapping[str, Any], state: LinearState) -> dict[str, Array]:
        """The sample where it is done, else the estimate of it."""
        x = jnp.where(wide(self.done(inputs, state), state.x), state.x, state.m1)
        return {"x": x} if self.finish is None else self.finish(model, x)

    def done(self, inputs: Mapping[str, Any], state: LinearState) -> Bool[Array, " rows"]:
        """Which rows have no noise left to remove."""
        return state.step >= inputs["num_steps"]


def table_row(table: Float[Array, "rows max_steps columns"], step: Int[Array, " rows"]) -> Array:
    """Of each row's table the row of its step, [rows, columns]; the last where it has no more."""
    at = jnp.minimum(step, table.shape[1] - 1)
    return jnp.take_along_axis(table, at[:, None, None], axis=1)[:, 0]


def wide(values: Array, like: Array) -> Array:
    """One value a row, to be multiplied with rows of a shape."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def drawn_noise(
    keys: Key[Array, " rows"], step: Int[Array, " rows"], shape: tuple[int, ...]
) -> Float[Array, "rows ..."]:
    """The noise of deviation 1 of each row's step."""

    def draw(key: Key[Array, ""], number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)

    return jax.vmap(draw)(keys, step)


def _noise_if(wanted: Array, keys: Key[Array, " rows"], step: Int[Array, " rows"], like: Array) -> Array:
    """The noise of each row's step, and zeros or noise where it is not wanted.

    On the CPU drawing it takes long. An accelerator draws faster than it waits for the host to branch.
    """

    def draw() -> Array:
        return drawn_noise(keys, step, like.shape[1:])

    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(wanted, draw, lambda: jnp.zeros_like(like)), default=draw
    )


def _combined(weights: Array, terms: tuple[Array, ...]) -> Array:
    """A sum of arrays [rows, ...] with weights [rows, terms]; a weight of 0 leaves out what is infinite."""
    total = jnp.zeros_like(terms[0])
    for i, term in enumerate(terms):
        weight = wide(weights[:, i], term)
        total = total + jnp.where(weight == 0, jnp.zeros_like(term), weight * term)
    return total


def _thresholded(m: Array, row: Array) -> Array:
    """Rows cut at a quantile of their own absolute values and divided by it, where that is over 1."""
    absolute = jnp.sort(jnp.abs(m.reshape(len(m), -1)), axis=1)
    place = row[:, columns.QUANTILE] * (absolute.shape[1] - 1)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, absolute.shape[1] - 1)
    lower, upper = (jnp.take_along_axis(absolute, i[:, None], axis=1)[:, 0] for i in (low, high))
    quantile = lower + (place - low.astype(place.dtype)) * (upper - lower)
    limit = wide(jnp.clip(quantile, 1.0, row[:, columns.QUANTILE_MAX]), m)
    return jnp.where(wide(row[:, columns.QUANTILE], m) > 0, jnp.clip(m, -limit, limit) / limit, m)


def _learned_std(chosen: Array, row: Array) -> Array:
    """The standard deviation between the least and the most that the network has chosen, from -1 to 1."""
    share = (chosen + 1) / 2
    least, most = (wide(row[:, columns.LOG_VARIANCE.start + i], chosen) for i in (0, 1))
    std = jnp.exp(0.5 * (share * most + (1 - share) * least))
    return jnp.where(wide(row[:, columns.IS_LEARNED], chosen) > 0, std, jnp.ones_like(std))
