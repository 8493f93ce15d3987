"""Trained models behind the Open Inference Protocol."""

from typing import TYPE_CHECKING, Any

from artifex.serving.app import create_app

if TYPE_CHECKING:
    from artifex.serving.lifecycle import Tls, run_server

__all__ = ["Tls", "create_app", "run_server"]


def __getattr__(name: str) -> Any:
    """Names whose module imports gRPC and uvicorn, which an application mounted in another does not need."""
    if name not in ("Tls", "run_server"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from artifex.serving import lifecycle

    return getattr(lifecycle, name)
