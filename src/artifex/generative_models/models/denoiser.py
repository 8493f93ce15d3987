"""Models that draw samples by removing noise: a network, and the noise that it was trained with.

Diffusion and flow matching are both of this family: what tells them apart is the scheduler's config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax import nnx

from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.models.arguments import check_choice, check_integers
from artifex.generative_models.models.dit import DiT
from artifex.generative_models.models.unet import UNet

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NETWORKS = {"unet": UNet, "dit": DiT}


class Denoiser(nnx.Module):
    """A network and the settings of its noise.

    Args:
        network: `unet` or `dit`.
        arguments: The network's own.
        scheduler: Settings of the schedule that it was trained with, as in diffusers'
            `scheduler_config.json`.
        num_labels: Classes that callers may ask for; the label after the last stands for none of them.
        num_steps: Steps where a caller does not say how many.
        sampler: The sampler where a caller does not say which; None is the scheduler's own.
        guidance_scale: Guidance where a caller does not say how much.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable, or the network does not fit the others.
    """

    def __init__(
        self,
        network: str,
        arguments: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        num_labels: int = 0,
        num_steps: int = 20,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        *,
        rngs: nnx.Rngs,
    ):
        given = {"network": network, "num_labels": num_labels}
        check_choice(given, "network", choices=NETWORKS)
        check_integers(given, "num_labels", minimum=0)
        for name, value in (("arguments", arguments), ("scheduler", scheduler)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: expected settings by name, got {value!r:.100}")
        self._config = json.dumps(
            {
                **given,
                "arguments": dict(arguments),
                "scheduler": dict(scheduler),
                "num_steps": num_steps,
                "sampler": sampler,
                "guidance_scale": guidance_scale,
            }
        )
        try:
            self.network = NETWORKS[network](**arguments, rngs=rngs)
        except TypeError as error:  # an argument that it does not have
            raise ConfigError(f"arguments: {error}") from error
        known = _num_labels(self.network.config)
        if (known == 0) != (num_labels == 0) or known < num_labels:
            wanted = f"from 1 to {known}, since the network has classes" if known else "0"
            raise ConfigError(f"num_labels: expected {wanted}; got {num_labels}")
        _sample_shape(self.network.config)
        _check_channels(self.network.config, scheduler)
        fields = self._fields
        try:  # what holds where callers say nothing
            fields.options(checked_fields("generate", fields.fields, {}, None))
        except InputError as error:
            raise ConfigError(str(error)) from error

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    @property
    def _fields(self) -> Denoising:
        config = self.config
        settings = ("num_steps", "sampler", "num_labels", "guidance_scale")
        return Denoising.of(config["scheduler"], **{name: config[name] for name in settings})

    def endpoints(self) -> Mapping[str, Endpoint]:
        """Those of `denoiser_endpoints`."""
        return denoiser_endpoints(_predict, _sample_shape(self.network.config), self._fields)


def _check_channels(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Refuses a network that does not give what its scheduler reads."""
    given = config["out_channels"] or config["in_channels"]
    channels = config["in_channels"]
    needs_variance = scheduler.get("variance_type") == "learned_range"
    fitting = [2 * channels] if needs_variance else [channels, 2 * channels]
    if given not in fitting:
        raise ConfigError(
            f"arguments: out_channels: expected {' or '.join(map(str, fitting))}, as many as in_channels, or "
            f"twice as many where the variance is learned; got {given}"
        )


def _sample_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    if size is None:
        raise ConfigError("arguments: sample_size: expected the height and width of samples, got None")
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, config["in_channels"]


def _num_labels(config: Mapping[str, Any]) -> int:
    """The classes that a network knows, besides the one that stands for none of them."""
    if "num_embeds_ada_norm" in config:
        return config["num_embeds_ada_norm"]
    return max((config["num_class_embeds"] or 0) - 1, 0)


def _predict(
    model: Denoiser, x: Float[Array, "rows h w c"], time: Array, guidance: Array, inputs: Mapping[str, Array]
) -> Float[Array, "rows h w out"]:
    return model.network(x, time, inputs.get("label"))
