"""Trained models behind the Open Inference Protocol."""

from artifex.generative_models.inference.serving.app import create_app

__all__ = ["create_app"]
