"""What callers say to models that denoise, and the tables that it becomes."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field
from artifex.generative_models.core.sampling.labels import label_fields, label_inputs, label_rows
from artifex.generative_models.core.sampling.packing import (
    TABLE_INPUTS,
    TABLE_OPTIONS,
    packed_tables,
    room_for,
    usual_options,
)
from artifex.generative_models.core.sampling.samplers import (
    SAMPLERS,
    check_config,
    default_sampler,
    fitting_samplers,
    table_for,
)
from artifex.generative_models.core.sampling.table import GUIDANCE, LENGTHS, Table
from artifex.generative_models.core.specs import Option, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What guidance takes beside the table.
GUIDANCE_INPUTS = {
    "guidance_rescale": TensorSpec(
        (), np.float32, doc="How far guidance is brought back to its spread, 0 to 1."
    )
}
_GUIDANCE_FIELDS = {
    "guidance_rescale": Field(
        float,
        0.0,
        minimum=0,
        maximum=1,
        doc="Share of the contrast that guidance adds and that is taken back.",
    ),
    "guidance_start": Field(
        float, 0.0, minimum=0, maximum=1, doc="Share of the steps before which there is no guidance."
    ),
    "guidance_stop": Field(
        float, 1.0, minimum=0, maximum=1, doc="Share of the steps after which there is no guidance."
    ),
}


@dataclass(frozen=True)
class Denoising:
    """The fields of a model that denoises.

    With an interval, a step is guided whose middle lies between both shares of the steps (Kynkäänniemi et al.
    2024, https://arxiv.org/abs/2404.07724, who limit guidance to noise levels in the middle).

    Args:
        scheduler: The settings of the schedule that it was trained with, as JSON.
        num_steps: Steps where nobody says how many.
        sampler: The sampler where nobody says which; None is the schedule's own.
        num_labels: Classes that samples may have; 0 where the model knows none.
        guidance_scale: Guidance where nobody says how much.
        knows_none: The label after the last stands for no class, without which there is no guidance.
    """

    scheduler: str
    num_steps: int = 20
    sampler: str | None = None
    num_labels: int = 0
    guidance_scale: float = 1.0
    knows_none: bool = True

    @classmethod
    def of(cls, scheduler: Mapping[str, Any], **others: Any) -> Self:
        """Of the settings as they are in diffusers' `scheduler_config.json`, and the other arguments.

        Raises:
            ConfigError: A setting that is not supported; it is named.
        """
        check_config(scheduler)
        default_sampler(scheduler)
        return cls(json.dumps(dict(scheduler)), **others)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The scheduler's settings."""
        return json.loads(self.scheduler)

    @functools.cached_property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        fitting = fitting_samplers(self.config)
        found = {
            "num_steps": steps_field(self.config, self.num_steps, LENGTHS[-1]),
            "sampler": Field(
                str,
                self.sampler or default_sampler(self.config),
                choices=fitting,
                doc="How noise is removed.",
            ),
        }
        if "ddim" in fitting:
            found["eta"] = Field(
                float, None, minimum=0, maximum=1, doc="Share of DDPM's noise that DDIM adds."
            )
        found |= label_fields(self.num_labels, self.knows_none)
        if self.is_guided:
            found["guidance_scale"] = Field(
                float,
                self.guidance_scale,
                minimum=0,
                doc="How far to push towards the class; 1 is not at all.",
            )
            found |= _GUIDANCE_FIELDS
        return found

    @property
    def is_guided(self) -> bool:
        """Whether samples can be pushed towards their class."""
        return self.num_labels > 0 and self.knows_none

    @property
    def table_options(self) -> dict[str, Option]:
        """`TABLE_OPTIONS` with the room by default that is needed where nobody says anything."""
        return usual_options(self)

    @property
    def provides(self) -> tuple[str, ...]:
        """The table and what belongs to it, the label, and what guidance takes."""
        guidance = GUIDANCE_INPUTS if self.is_guided else ()
        return (*TABLE_INPUTS, *TABLE_OPTIONS, *label_inputs(self.num_labels), *guidance)

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """The room in the table that the longest of the samplers needs.

        Raises:
            InputError: A sampler does not fit the steps or has no such parameter, or guidance stops before it
                starts.
        """
        if self.is_guided:
            start, stop = np.broadcast_arrays(said["guidance_start"], said["guidance_stop"])
            for first, last in zip(start[start > stop], stop[start > stop], strict=True):
                raise InputError(
                    f"guidance_start: expected at most guidance_stop, which is {last:g}, got {first:g}"
                )
        return room_for(self._tables(said, None)[0])

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The tables, and the labels, of so many rows."""
        tables, which = self._tables(said, num_rows)
        found = packed_tables(tables, which, options["max_steps"])
        if self.is_guided:
            steps = np.arange(options["max_steps"], dtype=np.float32)
            middle = (steps + np.float32(0.5)) / found["num_steps"][:, None]
            start, stop, scale, rescale = (
                np.broadcast_to(np.float32(said[f"guidance_{name}"]), (num_rows,))
                for name in ("start", "stop", "scale", "rescale")
            )
            is_guided = (start[:, None] <= middle) & (middle <= stop[:, None])
            found["table"][:, :, GUIDANCE] = np.where(is_guided, scale[:, None], np.float32(1))
            found["guidance_rescale"] = np.ascontiguousarray(rescale)
        return found | label_rows(said, self.num_labels, num_rows)

    def _tables(self, said: Mapping[str, Any], num_rows: int | None) -> tuple[list[Table], NDArray[Any]]:
        """The different tables, and of each row which."""
        count = num_rows or max((np.size(value) for value in said.values()), default=1)
        columns = [np.broadcast_to(said[name], (count,)).tolist() for name in ("num_steps", "sampler")]
        columns.append(np.broadcast_to(said.get("eta", np.nan), (count,)).tolist())
        rows = [
            (steps, sampler, None if eta != eta else eta)
            for steps, sampler, eta in zip(*columns, strict=True)
        ]
        different = {choice: i for i, choice in enumerate(dict.fromkeys(rows))}
        return [_table(self.scheduler, *choice) for choice in different], np.array(
            [different[row] for row in rows]
        )


def steps_field(config: Mapping[str, Any], default: int, most: int) -> Field:
    """The field `num_steps`: as many as training had, and no more than there is room for."""
    total = config.get(
        "num_train_timesteps", SAMPLERS[default_sampler(config)].defaults["num_train_timesteps"]
    )
    return Field(int, default, minimum=1, maximum=min(total, most), doc="Steps of the sampler.")


@functools.lru_cache(maxsize=256)
def _table(scheduler: str, num_steps: int, sampler: str, eta: float | None) -> Table:
    parameters = {} if eta is None else {"eta": eta}
    return table_for(json.loads(scheduler), num_steps, sampler, **parameters)
