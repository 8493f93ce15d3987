"""A cache of their own and short rounds, for all that tunes."""

import pytest
from brief import measure_briefly


@pytest.fixture(autouse=True)
def _own_cache_and_short_rounds(monkeypatch, tmp_path):
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    measure_briefly(monkeypatch.setattr)
