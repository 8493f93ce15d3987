"""The samplers by name, and their settings as schedulers of other libraries have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.sampling.schedules import NOISE_DEFAULTS, Config
from artifex.generative_models.core.sampling.solvers import (
    consistency,
    ddim,
    ddpm,
    dpm,
    euler,
    flow,
    heun,
    lcm,
    unipc,
)
from artifex.generative_models.core.sampling.table import LENGTHS, Table


@dataclass(frozen=True)
class Sampler:
    """A way to draw samples.

    Args:
        table: Its function from settings, steps and its own parameters to a table.
        scheduler: The class of diffusers that does the same.
        defaults: The settings that it reads.
        predictions: What the network may predict.
        parameters: Its own parameters, and their least and greatest values.
    """

    table: Callable[..., Table]
    scheduler: str
    defaults: Mapping[str, Any]
    predictions: tuple[str, ...]
    parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)


SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": Sampler(ddpm.ddpm, "DDPMScheduler", ddpm.DEFAULTS, ddpm.PREDICTIONS),
    "ddim": Sampler(ddim.ddim, "DDIMScheduler", ddim.DEFAULTS, ddim.PREDICTIONS, {"eta": (0.0, 1.0)}),
    "euler": Sampler(euler.euler, "EulerDiscreteScheduler", euler.DEFAULTS, euler.PREDICTIONS),
    "euler_a": Sampler(
        euler.euler_ancestral,
        "EulerAncestralDiscreteScheduler",
        euler.ANCESTRAL_DEFAULTS,
        euler.PREDICTIONS,
    ),
    "heun": Sampler(heun.heun, "HeunDiscreteScheduler", heun.DEFAULTS, heun.PREDICTIONS),
    "dpm++2m": Sampler(dpm.dpm_solver, "DPMSolverMultistepScheduler", dpm.DEFAULTS, dpm.PREDICTIONS),
    "dpm++2m_sde": Sampler(dpm.dpm_solver_sde, "DPMSolverMultistepScheduler", dpm.DEFAULTS, dpm.PREDICTIONS),
    "unipc": Sampler(unipc.unipc, "UniPCMultistepScheduler", unipc.DEFAULTS, unipc.PREDICTIONS),
    "flow_euler": Sampler(
        flow.flow_euler, "FlowMatchEulerDiscreteScheduler", flow.DEFAULTS, flow.PREDICTIONS
    ),
    "lcm": Sampler(lcm.lcm, "LCMScheduler", lcm.DEFAULTS, lcm.PREDICTIONS),
    "consistency": Sampler(
        consistency.consistency,
        "CMStochasticIterativeScheduler",
        consistency.DEFAULTS,
        consistency.PREDICTIONS,
    ),
}
# Of samplers that go from a sample to its noise as well, the tables that do.
_INVERSES = {"ddim": ddim.ddim_inverse, "flow_euler": flow.flow_euler_inverse}
# Settings that change nothing here, or that may only be as they are.
_FIXED: Mapping[str, Any] = {
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "lambda_min_clipped": float("-inf"),
    "solver_p": None,
    "disable_corrector": [],
}
_UNREAD = {"skip_prk_steps", "variance_type", "algorithm_type"}
_KNOWN: dict[str, Any] = {key: value for one in SAMPLERS.values() for key, value in one.defaults.items()}
_NULLABLE = _UNREAD | {key for one in SAMPLERS.values() for key in one.defaults if one.defaults[key] is None}
_PREDICTIONS = sorted({prediction for one in SAMPLERS.values() for prediction in one.predictions})


def default_sampler(config: Config) -> str:
    """The sampler that a scheduler's config stands for.

    Raises:
        ConfigError: None of those here.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if config.get("algorithm_type") == "sde-dpmsolver++":
        return "dpm++2m_sde"
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler == kind:
            return name
    known = sorted({sampler.scheduler for sampler in SAMPLERS.values()})
    raise ConfigError(f"scheduler config: _class_name: expected one of {', '.join(known)}, got {kind!r}")


def prediction_of(config: Config) -> str:
    """What a network that was trained under a scheduler's config predicts."""
    return config.get("prediction_type") or SAMPLERS[default_sampler(config)].defaults["prediction_type"]


def noise_settings(config: Config) -> dict[str, Any]:
    """The settings of the noise that a network was trained with."""
    trained = SAMPLERS[default_sampler(config)].defaults
    known = {key: value for key, value in trained.items() if key in NOISE_DEFAULTS}
    return {**known, **{key: config[key] for key in known if key in config}}


def fitting_samplers(config: Config) -> tuple[str, ...]:
    """Names of those that fit a network that was trained under a scheduler's config.

    The times of consistency models are others than those of diffusion, so either has samplers of its own.
    """
    if default_sampler(config) == "consistency":
        return ("consistency",)
    prediction = prediction_of(config)
    return tuple(
        name
        for name, sampler in SAMPLERS.items()
        if prediction in sampler.predictions and name != "consistency"
    )


def inverted_sampler(config: Config) -> str | None:
    """The sampler that also goes from samples to their noise; None where none that fits does."""
    return next((name for name in fitting_samplers(config) if name in _INVERSES), None)


def inverse_table_for(config: Config, num_steps: int) -> Table:
    """The table from samples to the noise that `inverted_sampler` draws them from.

    Arguments and errors are those of `table_for`.
    """
    name = inverted_sampler(config)
    if name is None:
        raise InputError(f"samples of {config.get('_class_name')} cannot be turned into noise again")
    return _INVERSES[name](_settings(config, num_steps, name), num_steps)


def table_for(config: Config, num_steps: int, sampler: str | None = None, **parameters: float) -> Table:
    """The table of a sampler for a network that was trained under a scheduler's config.

    Args:
        config: The settings, as diffusers writes them to `scheduler_config.json`.
        num_steps: How many steps.
        sampler: One of `SAMPLERS`; None is the config's own.
        **parameters: The sampler's own.

    Raises:
        ConfigError: A setting that is not known, or that is not supported.
        InputError: An unknown sampler or parameter, too many steps, or a sampler that does not fit what the
            network predicts.
    """
    name = default_sampler(config) if sampler is None else sampler
    settings = _settings(config, num_steps, name)
    chosen = SAMPLERS[name]
    for key, value in parameters.items():
        if key not in chosen.parameters:
            raise InputError(f"{key}: the sampler {name} takes {', '.join(chosen.parameters) or 'none'}")
        low, high = chosen.parameters[key]
        if not low <= value <= high:
            raise InputError(f"{key}: expected {low:g} to {high:g}, got {value}")
    return chosen.table(settings, num_steps, **parameters)


def _settings(config: Config, num_steps: int, name: str) -> dict[str, Any]:
    """What a sampler reads, once it is known to fit; arguments and errors are those of `table_for`."""
    check_config(config)
    if name not in SAMPLERS:
        raise InputError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
    fitting = fitting_samplers(config)
    if name not in fitting:
        kind = config.get("_class_name", "DDPMScheduler")
        raise InputError(
            f"sampler: expected one of {', '.join(fitting)}, which fit a network of {kind} that predicts "
            f"{prediction_of(config)}; got {name!r}"
        )
    chosen = SAMPLERS[name].defaults
    noise = noise_settings(config)
    settings = {key: config.get(key, noise.get(key, default)) for key, default in chosen.items()}
    if prediction_of(config) == "flow_prediction":
        shift = config.get("shift", config.get("flow_shift", 1.0))  # its name in one scheduler and in others
        flow = {"use_flow_sigmas": True, "flow_shift": shift, "shift": shift}
        settings |= {key: value for key, value in flow.items() if key in chosen and key not in config}
    most = min(settings["num_train_timesteps"], LENGTHS[-1])
    if not 1 <= num_steps <= most:
        raise InputError(f"num_steps: expected 1 to {most}, got {num_steps}")
    return settings


def check_config(config: Config) -> None:
    """Looks whether all of a scheduler's settings are known, and of which types they are.

    Raises:
        ConfigError: One is not known, or has a value that is not supported.
    """
    for key, value in config.items():
        if key in _FIXED:
            if value not in (None, _FIXED[key]):
                raise ConfigError(f"scheduler config: {key}: expected {_FIXED[key]!r}, got {value!r}")
        elif key in _KNOWN:
            _check_setting(key, value)
        elif key not in _UNREAD and not key.startswith("_"):
            raise ConfigError(
                f"scheduler config: unknown setting {key!r}; known are {', '.join(sorted(_KNOWN))}"
            )


def _check_setting(key: str, value: Any) -> None:
    """Refuses a setting of another type than its default, or that is not finite."""
    default = _KNOWN[key]
    if value is None and key in _NULLABLE:
        return
    if key == "trained_betas":
        if not (isinstance(value, list | tuple) and value and all(map(_is_number, value))):
            raise ConfigError(f"scheduler config: {key}: expected a list of numbers, got {value!r:.100}")
    elif key == "prediction_type":
        if value not in _PREDICTIONS:
            expected = ", ".join(_PREDICTIONS)
            raise ConfigError(f"scheduler config: {key}: expected one of {expected}, got {value!r}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"scheduler config: {key}: expected true or false, got {value!r}")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(f"scheduler config: {key}: expected a string, got {value!r}")
    elif isinstance(default, int) and (type(value) is not int or value < 0):
        raise ConfigError(f"scheduler config: {key}: expected an integer from 0, got {value!r}")
    elif not _is_number(value):
        raise ConfigError(f"scheduler config: {key}: expected a finite number, got {value!r}")
    if key == "num_train_timesteps" and value < 1:
        raise ConfigError(f"scheduler config: {key}: expected an integer from 1, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
