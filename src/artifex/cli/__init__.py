"""The `artifex` command."""

from artifex.cli.app import app, main

__all__ = ["app", "main"]
