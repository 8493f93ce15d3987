"""The endpoints of a network that removes noise, whoever's it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.sampling.denoising import GUIDANCE_INPUTS, Denoising
from artifex.generative_models.core.sampling.guidance import Guided
from artifex.generative_models.core.sampling.inpainting import Inpainting
from artifex.generative_models.core.sampling.interpolating import Interpolating
from artifex.generative_models.core.sampling.inversion import Inversion
from artifex.generative_models.core.sampling.inverting import Inverting
from artifex.generative_models.core.sampling.labels import Labelled
from artifex.generative_models.core.sampling.likelihood import LogDensity
from artifex.generative_models.core.sampling.linear import Denoiser, LinearSampler
from artifex.generative_models.core.sampling.packing import TABLE_INPUTS
from artifex.generative_models.core.sampling.samplers import inverted_sampler, noise_settings
from artifex.generative_models.core.specs import TensorSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

_INVERSION_STEPS = 50  # inverting takes more of them than drawing


@dataclass(frozen=True)
class Evaluation:
    """The function of an endpoint that evaluates a network once.

    Args:
        fn: The network.
    """

    fn: Denoiser

    def __call__(
        self, model: Any, keys: Key[Array, " rows"], inputs: Mapping[str, Any]
    ) -> dict[str, Float[Array, "rows ..."]]:
        """What it predicts of `x` at `time`, without guidance."""
        x, time = inputs["x"], inputs["time"]
        return {"x": self.fn(model, x, time, jnp.ones_like(time), inputs)}


def evaluation(fn: Denoiser, shape: tuple[int, ...], num_labels: int, knows_none: bool) -> Endpoint:
    """The endpoint that evaluates a network once.

    Args:
        fn: The network; where there are labels, it reads the input `label`.
        shape: Shape [h, w, c] of a sample.
        num_labels: Classes that samples may have.
        knows_none: The label after the last stands for no class.
    """
    inputs = {
        "x": TensorSpec(shape, np.float32, doc="noisy samples"),
        "time": TensorSpec((), np.float32, doc="the time of training, which says how much noise there is"),
        **_label_input(num_labels),
    }
    says = Labelled(num_labels, knows_none) if num_labels else None
    doc = "what the network predicts: one evaluation"
    return Endpoint(Evaluation(fn), inputs, doc=doc, says=says, ahead=False)


def denoiser_endpoints(fn: Denoiser, shape: tuple[int, ...], fields: Denoising) -> dict[str, Endpoint]:
    """All that can be done with a network that removes noise from pictures.

    `generate` draws samples, `from_noise` makes them of given noise, `inpaint` makes the missing parts of
    samples, and `denoise` evaluates the network once. Except for consistency models, `invert` gives the noise
    of samples, `interpolate` samples between others, and `log_prob` their log-densities, where the extra
    `ode` is installed.

    Args:
        fn: The network; where `fields` have labels, it reads the input `label`.
        shape: Shape [h, w, c] of a sample.
        fields: What callers may say, and the settings of the noise that it was trained with.
    """
    num_labels, knows_none = fields.num_labels, fields.knows_none
    label = _label_input(num_labels)
    tables = {**TABLE_INPUTS, **label}
    guided = Guided(fn, (("label", num_labels),), shape[-1]) if fields.is_guided else fn
    sampler = LinearSampler(guided, shape, thresholds=bool(fields.config.get("thresholding")))
    drawn = {**tables, **(GUIDANCE_INPUTS if fields.is_guided else {})}
    mask = TensorSpec(
        (*shape[:-1], 1), np.float32, doc="0 keeps a pixel, else it is made", image_range=(0.0, 1.0)
    )

    def picture(doc: str) -> TensorSpec:
        return TensorSpec(shape, np.float32, doc=doc)

    options = fields.table_options
    found = {
        "generate": Endpoint(sampler, drawn, options, doc="draw samples", says=fields),
        "from_noise": Endpoint(
            replace(sampler, start="noise"),
            {"noise": picture("noise of deviation 1"), **drawn},
            options,
            doc="the samples that noise becomes",
            says=fields,
            ahead=False,
        ),
        "inpaint": Endpoint(
            Inpainting(sampler),
            {"x": picture("samples of which a part is known"), "mask": mask, **drawn},
            options,
            doc="make the missing parts of samples",
            says=fields,
            ahead=False,
        ),
        "denoise": evaluation(fn, shape, num_labels, knows_none),
    }
    if inverted_sampler(fields.config) is None:
        return found
    steps = min(_INVERSION_STEPS, noise_settings(fields.config)["num_train_timesteps"])
    inverse = replace(sampler, fn=fn, start="x", adds_noise=False)
    there = Inverting(fields.scheduler, steps, num_labels, knows_none=knows_none)
    between = replace(there, returns=True)
    weight = TensorSpec((), np.float32, doc="how far from x to y, 0 to 1")
    found |= {
        "invert": Endpoint(
            Inversion(inverse),
            {"x": picture("samples"), **tables},
            there.table_options,
            doc="the noise of samples, of which from_noise makes them again by ddim or flow_euler",
            says=there,
            ahead=False,
        ),
        "interpolate": Endpoint(
            Interpolating(inverse),
            {"x": picture("samples"), "y": picture("other samples"), "weight": weight, **tables},
            between.table_options,
            doc="samples between others",
            says=between,
            ahead=False,
        ),
    }
    if find_spec("diffrax") is not None:
        density = LogDensity(fn, shape, fields.scheduler)
        found["log_prob"] = Endpoint(
            density,
            {"x": picture("samples"), **label},
            density.options,
            doc="how likely samples are: nats a sample, and bits a dimension",
            says=Labelled(num_labels, knows_none) if num_labels else None,
            ahead=False,
        )
    return found


def _label_input(num_labels: int) -> dict[str, TensorSpec]:
    return {"label": TensorSpec((), np.int32, doc="the class")} if num_labels else {}
