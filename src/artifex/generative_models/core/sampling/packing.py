"""Tables as the inputs of executables: one a row, of one length, which few executables share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Preparation, checked_fields
from artifex.generative_models.core.sampling.table import LENGTHS, NUM_COLUMNS, Table
from artifex.generative_models.core.specs import Option, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What the executable of a LinearSampler takes, beside what its network reads.
TABLE_INPUTS = {
    "table": TensorSpec(
        ("max_steps", NUM_COLUMNS), np.float32, doc="The sampler's coefficients, a step a row."
    ),
    "num_steps": TensorSpec((), np.int32, doc="Evaluations of the network."),
    "noise_scale": TensorSpec((), np.float32, doc="Standard deviation of the noise that it starts from."),
}
TABLE_OPTIONS = {
    "max_steps": Option(LENGTHS[0], choices=LENGTHS, doc="Evaluations that the table has room for.")
}


def room_for(tables: Sequence[Table]) -> dict[str, Hashable]:
    """The option that has room for the longest of the tables.

    Raises:
        InputError: None has.
    """
    longest = max(len(table) for table in tables)
    fitting = next((length for length in LENGTHS if length >= longest), None)
    if fitting is None:
        raise InputError(
            f"num_steps: expected at most {LENGTHS[-1]} evaluations of the network, got {longest}"
        )
    return {"max_steps": fitting}


def usual_options(says: Preparation) -> dict[str, Option]:
    """`TABLE_OPTIONS` with the room by default that is needed where nobody says anything."""
    usual = says.options(checked_fields("", says.fields, {}, None))["max_steps"]
    return {"max_steps": replace(TABLE_OPTIONS["max_steps"], default=usual)}


def packed_tables(tables: Sequence[Table], which: NDArray[Any], max_steps: int) -> dict[str, Any]:
    """The inputs `TABLE_INPUTS` of rows.

    Args:
        tables: Different ones.
        which: Number of each row's, [rows].
        max_steps: Steps that they have room for.
    """
    padded = np.zeros((len(tables), max_steps, NUM_COLUMNS), np.float32)
    for i, table in enumerate(tables):
        padded[i, : len(table)] = table.rows
    return {
        "table": padded[which],
        "num_steps": np.array([len(table) for table in tables], np.int32)[which],
        "noise_scale": np.array([table.scale for table in tables], np.float32)[which],
    }
