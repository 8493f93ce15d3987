"""Trained models behind the Open Inference Protocol."""

from artifex.serving.app import create_app

__all__ = ["create_app"]
