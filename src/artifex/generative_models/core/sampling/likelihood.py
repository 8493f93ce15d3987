"""How likely samples are under a model that denoises: the probability-flow ODE from a sample to its noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.levels import bits_of_a_cell, dequantized
from artifex.generative_models.core.sampling.linear import Denoiser
from artifex.generative_models.core.sampling.samplers import noise_settings, prediction_of
from artifex.generative_models.core.sampling.schedules import alphas_squared, sigmas_of
from artifex.generative_models.core.specs import Option

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

EXACT_UP_TO = 256  # numbers in a sample, from which the divergence is estimated unless callers say otherwise
_FIRST_STEP = 0.01  # of the way; those that follow are chosen by the error
_MAX_STEPS = 4096
_AT_ONCE = 16  # derivatives along axes
_PROBES = 0  # the number of the step that draws what the divergence is estimated with
_CELLS = 1  # and of that which draws what fills cells
_RANGE = (-1.0, 1.0)  # of pictures with cells


class Path(NamedTuple):
    """The way from a sample to noise of deviation 1, as an ODE in a variable u.

    Args:
        start: The value of u at the sample.
        stop: The value at the noise.
        scale: What a sample is multiplied with to be the state at the start.
        time: What the network is told at u.
        velocity: du/dstate of a state, from what the network gives there, and u.
    """

    start: float
    stop: float
    scale: float
    time: Callable[[Array], Array]
    velocity: Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class LogDensity:
    """The function of an endpoint that tells the log-density of samples.

    d log p / du = -div(dx/du) along the ODE, which an adaptive Runge-Kutta method solves for each row by
    itself; at its end x is noise of a known density. For diffusion, the density is that of samples with the
    least noise of training; for flow matching, that of samples.

    The input is `x` [rows, ...], beside what the network reads.

    Args:
        fn: The network.
        shape: Shape of a sample.
        scheduler: The settings of the schedule that it was trained with, as JSON; not of consistency models.

    References:
        Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
        section 4.3 and appendix D.2. https://arxiv.org/abs/2011.13456
        Lipman et al., *Flow matching for generative modeling*, 2022, appendix C.
        https://arxiv.org/abs/2210.02747
        Tsitouras, *Runge-Kutta pairs of order 5(4)*, 2011. https://doi.org/10.1016/j.camwa.2011.06.002
    """

    fn: Denoiser
    shape: tuple[int, ...]
    scheduler: str

    @property
    def options(self) -> dict[str, Option]:
        """The options that it takes."""
        is_small = math.prod(self.shape) <= EXACT_UP_TO
        return {
            "divergence": Option(
                "exact" if is_small else "estimate",
                choices=("exact", "estimate"),
                doc="exact evaluates the network once for each number of a sample; estimate for each probe.",
            ),
            "probes": Option(1, minimum=1, maximum=1024, doc="Random directions of the estimate."),
            "tolerance": Option(
                1e-5, minimum=1e-7, maximum=0.1, doc="Of the solver, absolute and relative to the state."
            ),
            "dequantize": Option(
                False,
                choices=(False, True),
                doc="Take samples for pictures of 256 levels in -1 to 1: fill their cells with noise, and "
                "tell the bits of a cell, as for published bits a dimension.",
            ),
        }

    def __call__(
        self,
        model: Any,
        keys: Key[Array, " rows"],
        inputs: Mapping[str, Any],
        *,
        divergence: str,
        probes: int,
        tolerance: float,
        dequantize: bool = False,
    ) -> dict[str, Float[Array, " rows"]]:
        """`log_prob` in nats a sample, and `bits_per_dim` = -log2(p) / numbers in a sample.

        Both are of the density over the model's range of values; with `dequantize`, bits are those of the
        cell of a picture of 256 levels. Rows that the solver does not bring to the end are NaN.

        Raises:
            InputError: diffrax is not installed.
        """
        try:
            import diffrax  # an extra
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed: pip install 'artifex[ode]'") from error
        path = path_of(json.loads(self.scheduler))

        def log_prob(key: Key[Array, ""], x: Array, inputs: Mapping[str, Any]) -> Array:
            def velocity(x: Array, u: Array) -> Array:
                row = {name: value[None] for name, value in inputs.items()}
                one = jnp.ones(1, jnp.float32)
                o = self.fn(model, x[None], path.time(u)[None], one, row)[0, ..., : x.shape[-1]]
                return path.velocity(u, x, o.astype(jnp.float32))

            directions = None
            if divergence == "estimate":
                drawn = jax.random.fold_in(key, _PROBES)
                directions = jax.random.rademacher(drawn, (probes, *x.shape), jnp.float32)

            @jax.jit  # traced once, where the solver calls it at many places
            def field(u: Any, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
                found, derivative = jax.linearize(lambda x: velocity(x, u), state[0])
                return found, _trace(derivative, x, directions)

            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Tsit5(),
                jnp.float32(path.start),
                jnp.float32(path.stop),
                dt0=jnp.float32((path.stop - path.start) * _FIRST_STEP),
                y0=(jnp.float32(path.scale) * x.astype(jnp.float32), jnp.zeros((), jnp.float32)),
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                max_steps=_MAX_STEPS,
                adjoint=diffrax.ForwardMode(),
                throw=False,
            )
            noise, grown = (values[-1] for values in solution.ys)
            of_noise = -0.5 * jnp.sum(noise**2) - 0.5 * noise.size * math.log(2 * math.pi)
            found = of_noise + grown + noise.size * math.log(path.scale)
            return jnp.where(diffrax.is_successful(solution.result), found, jnp.nan)

        others = {name: value for name, value in inputs.items() if name != "x"}
        x, of_a_cell = inputs["x"], 0.0
        if dequantize:
            filling = jax.vmap(jax.random.fold_in, (0, None))(keys, _CELLS)
            x, of_a_cell = dequantized(x, filling, _RANGE), bits_of_a_cell(_RANGE)
        found = jax.vmap(log_prob)(keys, x, others)
        return {
            "log_prob": found,
            "bits_per_dim": of_a_cell - found / (math.prod(self.shape) * math.log(2)),
        }


def path_of(config: Mapping[str, Any]) -> Path:
    """The ODE of the noise that a network was trained with.

    For flow matching u is the share of noise, and the velocity what the network gives. For diffusion, with
    the state alpha sample + sigma noise, u = log(sigma / alpha) and e the network's estimate of the noise,
    dx/du = sigma (e - sigma x), which is equation 14 of Song et al. 2020 (https://arxiv.org/abs/2010.02502)
    in these terms. Between the times of training, u is linear.
    """
    settings = noise_settings(config)
    total = settings["num_train_timesteps"]
    if prediction_of(config) == "flow_prediction":
        return Path(0.0, 1.0, 1.0, lambda u: u * total, lambda u, x, o: o)
    levels = np.log(sigmas_of(alphas_squared(settings, ends_at_zero=False))).astype(np.float32)
    prediction = prediction_of(config)

    def time(u: Array) -> Array:
        return jnp.interp(u, jnp.asarray(levels), jnp.arange(total, dtype=jnp.float32))

    def velocity(u: Array, x: Array, o: Array) -> Array:
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-2 * u)), jnp.sqrt(jax.nn.sigmoid(2 * u))
        if prediction == "epsilon":
            noise = o
        elif prediction == "sample":
            noise = (x - alpha * o) / sigma
        else:
            noise = sigma * x + alpha * o
        return sigma * (noise - sigma * x)

    scale = 1 / math.sqrt(1 + math.exp(2 * float(levels[0])))
    return Path(float(levels[0]), float(levels[-1]), scale, time, velocity)


def _trace(
    derivative: Callable[[Array], Array], like: Array, directions: Float[Array, "probes ..."] | None
) -> Float[Array, ""]:
    """The trace of a linear map: of all axes, or its mean along random directions.

    References:
        Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1990.
        https://doi.org/10.1080/03610919008812866
    """

    def along(direction: Array) -> Array:
        return jnp.sum(direction * derivative(direction))

    def along_axis(number: Array) -> Array:
        return along(jax.nn.one_hot(number, like.size, dtype=jnp.float32).reshape(like.shape))

    if directions is None:
        return jnp.sum(jax.lax.map(along_axis, jnp.arange(like.size), batch_size=_AT_ONCE))
    return jnp.mean(jax.lax.map(along, directions, batch_size=_AT_ONCE))
