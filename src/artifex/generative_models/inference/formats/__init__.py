"""Directories that models are loaded from and exported to."""
