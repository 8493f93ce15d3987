"""Requests and responses of the Open Inference Protocol V2, whatever protocol they come by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.statuses import UnsupportedError
from artifex.serving.plane.tensors import short

Parameters = dict[str, bool | int | float | str]

NO_EFFECT = ("content_type", "headers")  # parameters of MLServer's clients, which mean nothing here
MAX_NAMED = 1024  # tensors or parameters in one place: each takes time in which nobody else is answered


@dataclass(slots=True)
class InferRequest:
    """A request to run a model, whatever protocol it came by.

    Args:
        version: The version asked for; "" is the one that is loaded.
        id: Comes back with the response.
        outputs: Names of the outputs asked for; None is all.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    outputs: list[str] | None = None


@dataclass(slots=True)
class InferResponse:
    """What a version of a model gave; its id is that of the request."""

    model: str
    version: str
    id: str
    parameters: Parameters
    outputs: Mapping[str, np.ndarray]


def present(content: Mapping[str, Any]) -> dict[str, Any]:
    """What has a value: many clients send null for what they leave out."""
    return {name: value for name, value in content.items() if value is not None}


def refuse_unknown(of: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises `InputError` for a name that the protocol does not have at this place."""
    for name in entry:
        if name not in known:
            raise InputError(f"{of}: unknown {short(name)}; it takes {', '.join(known) or 'nothing else'}")


def refuse_many(of: str, named: Sized) -> None:
    """Raises `InputError` for more tensors or parameters than any model takes."""
    if len(named) > MAX_NAMED:
        raise InputError(f"{of}: expected at most {MAX_NAMED}, got {len(named)}")


def refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    """Raises `UnsupportedError` for tensors that are not in the request."""
    if any(name.startswith("shared_memory_") for name in parameters):
        raise UnsupportedError("shared memory is not supported; send tensors as binary data")
