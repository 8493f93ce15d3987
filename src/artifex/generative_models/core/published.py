"""Architectures whose weights others publish: what config and weights are called there."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable


class PublishedWeight(NamedTuple):
    """What becomes of a weight as it is published.

    Args:
        path: Its place in the state of our model.
        axes: The order in which to take the published axes; None for that which they have.
    """

    path: tuple[Any, ...]
    axes: tuple[int, ...] | None = None


@runtime_checkable
class PublishedWeights(Protocol):
    """A model of such an architecture; shapes without values are enough."""

    def published_weights(self) -> dict[str, PublishedWeight]:
        """All weights by their published names."""
        ...


@runtime_checkable
class Published(PublishedWeights, Protocol):
    """A model of an architecture of diffusers."""

    def published_config(self) -> dict[str, Any]:
        """The config as it is published, with the architecture's name as `_class_name`."""
        ...
