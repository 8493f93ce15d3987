"""Where the models of a server come from: a directory, which may change, or memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from artifex.generative_models.core.errors import ArtifexError
from artifex.generative_models.inference.formats.fingerprint import stat_of, stats_under
from artifex.generative_models.inference.formats.loading import find_directory, find_model, latest_step
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline
from artifex.serving.plane.statuses import UnloadableError

_MAX_ATTEMPTS = 5  # to read an export that is replaced at the same time


class Source(Protocol):
    """Where a model comes from."""

    def identity(self) -> Any:
        """Something that differs when there is something new to load."""
        ...

    def open(self) -> tuple[InferencePipeline, str]:
        """The model and its version."""
        ...


@dataclass(frozen=True)
class ExportSource:
    """A model in a directory, or a bundled one; of an export the latest step of its checkpoints.

    Args:
        path: The directory, or the bundled model's name.
        batch_size: The largest batch; None is what `tune` found, or 64.
        dtype: Dtype of the computation.
    """

    path: Path
    batch_size: int | None = None
    dtype: str | None = None

    def identity(self) -> Any:
        """The looks of all files."""
        path = find_model(self.path)
        # Where a directory in it is a link, what it leads to is told by its steps alone.
        return stats_under(path) or [stat_of(path / "metadata.json"), latest_step(path)]

    def open(self) -> tuple[InferencePipeline, str]:
        """Restores the model; again, if it is replaced at the same time."""
        for attempt in range(_MAX_ATTEMPTS):
            before = self.identity()
            try:
                opened = self._open()
            except (ArtifexError, OSError):
                if self.identity() == before or attempt == _MAX_ATTEMPTS - 1:
                    raise
            else:
                if self.identity() == before:
                    return opened
        raise UnloadableError(f"{self.path} changes all the time")

    def _open(self) -> tuple[InferencePipeline, str]:
        found = find_directory(self.path)
        named, latest = found.metadata.get("step", 1), latest_step(found.path)
        step = None if latest == named else latest
        pipeline = load_pipeline(found.path, batch_size=self.batch_size, dtype=self.dtype, step=step)
        return pipeline, str(named if step is None else step)


@dataclass(frozen=True)
class PipelineSource:
    """A model that is in memory already."""

    pipeline: InferencePipeline

    def identity(self) -> Any:
        """There is never anything new."""
        return id(self.pipeline)

    def open(self) -> tuple[InferencePipeline, str]:
        """The pipeline; its version is its metadata's step, or 1."""
        return self.pipeline, str(self.pipeline.metadata.get("step", 1))
