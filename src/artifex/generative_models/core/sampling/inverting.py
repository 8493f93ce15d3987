"""What callers say where samples are turned into noise, and the tables that it becomes."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.sampling.denoising import steps_field
from artifex.generative_models.core.sampling.labels import label_fields, label_inputs, label_rows
from artifex.generative_models.core.sampling.packing import (
    TABLE_INPUTS,
    TABLE_OPTIONS,
    packed_tables,
    room_for,
    usual_options,
)
from artifex.generative_models.core.sampling.samplers import (
    inverse_table_for,
    inverted_sampler,
    table_for,
)
from artifex.generative_models.core.sampling.table import LENGTHS, Table
from artifex.generative_models.core.specs import Option


@dataclass(frozen=True)
class Inverting:
    """The fields of an endpoint that goes from samples to noise, and with `returns` from noise back.

    Args:
        scheduler: The settings of the schedule that the network was trained with, as JSON; one of those that
            `inverted_sampler` has a sampler for.
        num_steps: Steps each way where nobody says how many.
        num_labels: Classes that samples may have; 0 where the model knows none.
        returns: Whether it goes back, to a sample between two others.
        knows_none: The label after the last stands for no class.
    """

    scheduler: str
    num_steps: int = 50
    num_labels: int = 0
    returns: bool = False
    knows_none: bool = True

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        most = LENGTHS[-1] // 2 if self.returns else LENGTHS[-1]
        found = {"num_steps": steps_field(json.loads(self.scheduler), self.num_steps, most)}
        if self.returns:
            found["weight"] = Field(float, 0.5, minimum=0, maximum=1, doc="How far from x to y.")
            found["mode"] = Field(
                str, "spherical", choices=("spherical",), doc="On the arc between their noises."
            )
        return found | label_fields(self.num_labels, self.knows_none)

    @property
    def table_options(self) -> dict[str, Option]:
        """`TABLE_OPTIONS` with the room by default that is needed where nobody says anything."""
        return usual_options(self)

    @property
    def provides(self) -> tuple[str, ...]:
        """The table and what belongs to it, the weight and the label."""
        weight = ["weight"] if self.returns else []
        return (*TABLE_INPUTS, *TABLE_OPTIONS, *weight, *label_inputs(self.num_labels))

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """The room in the table that the most steps need."""
        return room_for([self._table(int(np.max(said["num_steps"])))])

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The tables, the weights and the labels of so many rows."""
        steps, which = np.unique(np.broadcast_to(said["num_steps"], (num_rows,)), return_inverse=True)
        found = packed_tables([self._table(int(count)) for count in steps], which, options["max_steps"])
        if self.returns:
            weight = np.broadcast_to(np.float32(said["weight"]), (num_rows,))
            found["weight"] = np.ascontiguousarray(weight)
        return found | label_rows(said, self.num_labels, num_rows)

    def _table(self, num_steps: int) -> Table:
        return _inverse(self.scheduler, num_steps, self.returns)


@functools.lru_cache(maxsize=256)
def _inverse(scheduler: str, num_steps: int, returns: bool) -> Table:
    config = json.loads(scheduler)
    there = inverse_table_for(config, num_steps)
    if not returns:
        return there
    back = table_for(config, num_steps, inverted_sampler(config))
    return Table(np.concatenate([there.rows, back.rows]), back.scale)
