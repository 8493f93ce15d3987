"""The browser that tests of pages drive, where the machine has one."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LEFT_OUT = "no chromium: browser tests are left out"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says so where there is none, since skipped tests are otherwise but a letter."""
    if CHROMIUM is None:
        terminalreporter.write_line(LEFT_OUT)
