"""A cache of their own and short rounds, for all that tunes."""

import pytest

from artifex.generative_models.inference.tuning import optimize


@pytest.fixture(autouse=True)
def _own_cache_and_short_rounds(monkeypatch, tmp_path):
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(optimize, "_GLANCE_SECONDS", 1e-3)
    monkeypatch.setattr(optimize, "_TURN_SECONDS", 1e-3)
