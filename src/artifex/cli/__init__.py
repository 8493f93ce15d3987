"""The `artifex` command."""

from artifex.cli.main import app, main

__all__ = ["app", "main"]
