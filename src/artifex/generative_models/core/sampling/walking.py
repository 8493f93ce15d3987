"""What callers say to models that give an energy, and the rows that it becomes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.sampling.labels import label_fields, label_inputs, label_rows
from artifex.generative_models.core.sampling.langevin import ANNEALED, LANGEVIN_INPUTS, METHODS
from artifex.generative_models.core.specs import TensorSpec

MAX_STEPS = 1000
# Where nobody says any. At 0.2 `mala` takes three of four proposals of 784 independent Gaussians.
_STEP_SIZES = {"ula": 0.3, "mala": 0.2, "annealed": 1.0}


# What energies that know classes take beside the label.
GUIDANCE_INPUT = {
    "guidance_scale": TensorSpec((), np.float32, doc="how far to push towards the class; 1 is not at all")
}


@dataclass(frozen=True)
class Walking:
    """The fields of a chain, whose energy knows noise of levels from sigma_min to sigma_max.

    Args:
        sigma_min: The least noise level: where annealed chains end if nobody says otherwise.
        sigma_max: The highest: where they start.
        sigma: The noise level of other chains if nobody says otherwise.
        num_steps: Steps where nobody says how many.
        method: The method where nobody says which.
        num_labels: Classes that samples may have; 0 where the model knows none.
        guidance_scale: Guidance where nobody says how much.
    """

    sigma_min: float
    sigma_max: float
    sigma: float
    num_steps: int = 100
    method: str = "annealed"
    num_labels: int = 0
    guidance_scale: float = 1.0

    @property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        guidance = {
            "guidance_scale": Field(
                float,
                self.guidance_scale,
                minimum=0,
                doc="How far to push towards the class; 1 is not at all.",
            )
        }
        sizes = ", ".join(f"{size:g} for {method}" for method, size in _STEP_SIZES.items())
        return {
            "num_steps": Field(int, self.num_steps, minimum=1, maximum=MAX_STEPS, doc="Steps of the chain."),
            "method": Field(str, self.method, choices=METHODS, doc="How a step is taken."),
            "step_size": Field(
                float,
                above=0,
                maximum=4,
                doc=f"Size of a step, relative to the noise level squared; if not said {sizes}.",
            ),
            "temperature": Field(
                float, 1.0, minimum=0, doc="What energies are divided by; at 0 a chain only descends."
            ),
            "sigma": Field(
                float,
                minimum=self.sigma_min,
                maximum=self.sigma_max,
                doc=f"Noise level of the chain, of annealed ones at their end; if not said {self.sigma:g}, "
                f"and {self.sigma_min:g} for annealed.",
            ),
            **label_fields(self.num_labels, knows_none=True),
            **(guidance if self.num_labels else {}),
        }

    @property
    def provides(self) -> tuple[str, ...]:
        """What the loop reads, the label, and its guidance."""
        return (*self._specs, *label_inputs(self.num_labels))

    @property
    def _specs(self) -> Mapping[str, TensorSpec]:
        return LANGEVIN_INPUTS | (GUIDANCE_INPUT if self.num_labels else {})

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """None."""
        return {}

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the loop reads of so many rows, and their labels."""
        method = np.array([METHODS.index(one) for one in np.ravel(said["method"])]).reshape(
            np.shape(said["method"])
        )
        ends = np.where(method == ANNEALED, self.sigma_min, self.sigma)
        sigma = said.get("sigma", ends)
        found = {
            "num_steps": said["num_steps"],
            "step_size": said.get("step_size", np.array(list(_STEP_SIZES.values()))[method]),
            "temperature": said["temperature"],
            "method": method,
            "sigma_start": np.where(method == ANNEALED, self.sigma_max, sigma),
            "sigma_end": sigma,
            "guidance_scale": said.get("guidance_scale"),
        }
        return {
            name: np.ascontiguousarray(np.broadcast_to(found[name], (num_rows,)).astype(spec.dtype))
            for name, spec in self._specs.items()
        } | label_rows(said, self.num_labels, num_rows)
