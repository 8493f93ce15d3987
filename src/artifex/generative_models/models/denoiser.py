"""Models that draw samples by removing noise: a network, and the noise that it was trained with.

Diffusion and flow matching are both of this family: what tells them apart is the scheduler's config.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax import nnx

from artifex.generative_models.core.denoisers import denoiser_endpoints, evaluation
from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.fields import checked_fields
from artifex.generative_models.core.published import PublishedWeight
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
            `scheduler_config.json`. None where they are not known: the network can then be evaluated, and no
            samples be drawn.
        num_labels: Classes that callers may ask for. Where the network has more, the label after the last
            stands for none of them; guidance needs that one.
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
        scheduler: Mapping[str, Any] | None = None,
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
        settings = {"arguments": arguments} | ({} if scheduler is None else {"scheduler": scheduler})
        for name, value in settings.items():
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: expected settings by name, got {value!r:.100}")
        self._config = json.dumps(
            {
                **given,
                "arguments": dict(arguments),
                "scheduler": None if scheduler is None else dict(scheduler),
                "num_steps": num_steps,
                "sampler": sampler,
                "guidance_scale": guidance_scale,
            }
        )
        cls: Any = NETWORKS[network]
        known = inspect.signature(cls.__init__).parameters.keys() - {"self", "rngs"}
        if unknown := sorted(map(str, arguments.keys() - known)):
            raise ConfigError(f"arguments: {cls.__name__} knows no {', '.join(unknown)}")
        self.network = cls(**arguments, rngs=rngs)
        most, _ = _labels(self.network.config)
        if (most == 0) != (num_labels == 0) or most < num_labels:
            wanted = f"from 1 to {most}, since the network has classes" if most else "0"
            raise ConfigError(f"num_labels: expected {wanted}; got {num_labels}")
        _sample_shape(self.network.config)
        _check_channels(self.network.config, scheduler)
        if scheduler is None:
            return
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
        others = {name: config[name] for name in settings} | {"knows_none": self._knows_none}
        return Denoising.of(config["scheduler"], **others)

    @property
    def _knows_none(self) -> bool:
        return self.config["num_labels"] < _labels(self.network.config)[1]

    def endpoints(self) -> Mapping[str, Endpoint]:
        """Those of `denoiser_endpoints`; without a scheduler, `denoise` alone."""
        config, shape = self.config, _sample_shape(self.network.config)
        if config["scheduler"] is None:
            return {"denoise": evaluation(_predict, shape, config["num_labels"], self._knows_none)}
        return denoiser_endpoints(_predict, shape, self._fields)

    def published_config(self) -> dict[str, Any]:
        """The network's, as diffusers has it."""
        return self.network.published_config()

    def published_weights(self) -> dict[str, PublishedWeight]:
        """The network's, by the names that diffusers stores them under."""
        return {
            name: weight._replace(path=("network", *weight.path))
            for name, weight in self.network.published_weights().items()
        }


def _check_channels(config: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> None:
    """Refuses a network that does not give what its scheduler reads."""
    given = config["out_channels"] or config["in_channels"]
    channels = config["in_channels"]
    needs_variance = (scheduler or {}).get("variance_type") == "learned_range"
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


def _labels(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many classes a network may have, and how many labels it knows.

    Raises:
        ConfigError: What it is told is no number of a class.
    """
    if "num_embeds_ada_norm" in config:
        classes = config["num_embeds_ada_norm"]
        return classes, classes + 1
    if config["class_embed_type"] is not None:
        raise ConfigError(
            f"arguments: class_embed_type: expected null, for numbers of classes; got "
            f"{config['class_embed_type']!r}"
        )
    classes = config["num_class_embeds"] or 0
    return classes, classes


def _predict(
    model: Denoiser, x: Float[Array, "rows h w c"], time: Array, guidance: Array, inputs: Mapping[str, Array]
) -> Float[Array, "rows h w out"]:
    return model.network(x, time, inputs.get("label"))
