"""What a directory of some format turned out to hold: a model that can be restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax

from artifex.generative_models.core.sharding import WeightLayout

if TYPE_CHECKING:
    from jax.typing import DTypeLike


class Restore(Protocol):
    """Reads the weights."""

    def __call__(
        self, *, dtype: DTypeLike | None, sharding: jax.sharding.Sharding | WeightLayout | None
    ) -> Any:
        """The model, with weights in a dtype and where they go, as for `load_exported_model`.

        Raises:
            CheckpointError: They are missing, damaged, or do not fit the config.
        """
        ...


@dataclass(frozen=True)
class Found:
    """A model in a directory, before its weights are read.

    Args:
        path: The directory.
        model_type: Name of its family.
        config: The family's arguments.
        metadata: What else is known of it. `image_range` is the range of its pixel values, or None where it
            makes something else than pictures.
        restore: Reads the weights.
    """

    path: Path
    model_type: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    restore: Restore

    def load(
        self,
        dtype: DTypeLike | None = None,
        sharding: jax.sharding.Sharding | WeightLayout | None = None,
    ) -> Any:
        """Reads the weights; without a dtype, in that which the metadata says it computes in, if it does."""
        return self.restore(
            dtype=self.metadata.get("compute_dtype") if dtype is None else dtype, sharding=sharding
        )
