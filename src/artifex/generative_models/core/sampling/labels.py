"""The class of a sample, as callers say it and as networks are told it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.fields import Field


@dataclass(frozen=True)
class Labelled:
    """The one field of an endpoint that is told the class.

    Args:
        num_labels: Classes that there are.
        knows_none: The number after the last stands for none of them.
    """

    num_labels: int
    knows_none: bool = True

    @property
    def fields(self) -> Mapping[str, Field]:
        """What may be said."""
        return label_fields(self.num_labels, self.knows_none)

    @property
    def provides(self) -> tuple[str, ...]:
        """The label."""
        return label_inputs(self.num_labels)

    def options(self, said: Mapping[str, Any]) -> dict[str, Hashable]:
        """None."""
        return {}

    def rows(self, said: Mapping[str, Any], num_rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The labels of so many rows."""
        return label_rows(said, self.num_labels, num_rows)


def label_fields(num_labels: int, knows_none: bool) -> dict[str, Field]:
    """The field `label`, where there are classes; it need be said only where none of them is one too."""
    if not num_labels:
        return {}
    default, doc = (None, "The class; any if not said.") if knows_none else (0, "The class.")
    return {"label": Field(int, default, minimum=0, maximum=num_labels - 1, doc=doc)}


def label_inputs(num_labels: int) -> tuple[str, ...]:
    """Names of the inputs that `label_rows` makes."""
    return ("label",) if num_labels else ()


def label_rows(said: Mapping[str, Any], num_labels: int, num_rows: int) -> dict[str, Any]:
    """The input `label`, int32 [rows], where there are classes."""
    if not num_labels:
        return {}
    label = said.get("label", num_labels)
    return {"label": np.ascontiguousarray(np.broadcast_to(label, (num_rows,)).astype(np.int32))}
