"""Offline jobs on Ray Data, and replicas on Ray Serve.

Ray, and what else a name needs, is imported when the name is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifex.ray.datasets import encode_dataset, generate_dataset
    from artifex.ray.replicas import deployment, run_on_ray

__all__ = ["deployment", "encode_dataset", "generate_dataset", "run_on_ray"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "datasets" if name.endswith("_dataset") else "replicas"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
