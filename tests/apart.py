"""Tests that need what a process has from its start run in another, in one for those of a file.

Tests marked `eight_devices` run where there are so many; those marked `optimized` run what XLA compiles for
users, where other tests have it optimize less, which takes it half the time.
"""

import json
import os
import tempfile
from pathlib import Path

import forked
import pytest

# Variables that `conftest.py` reads, by the mark of the tests.
APART = {"eight_devices": {"ARTIFEX_TESTS_DEVICES": "8"}, "optimized": {"ARTIFEX_TESTS_OPTIMIZED": "1"}}
_REPORTS = "ARTIFEX_TESTS_REPORTS"  # the variable that names the file into which it reports


class There:
    """What such a process does beside running its tests: it writes the reports down."""

    def __init__(self, config: pytest.Config, path: Path):
        self._config = config
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a") as file:
            file.write(json.dumps(said) + "\n")


class Here:
    """What every other process does: it reports what was reported there."""

    def __init__(self) -> None:
        self._reports: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        mark = _mark(item)
        if mark is None:
            return None
        if item.nodeid not in self._reports:
            self._run(item, mark)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports.pop(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(nextitem)  # what the test before it left for this one
        return True

    def _run(self, item: pytest.Item, mark: str) -> None:
        """Runs the tests of an item's file that have its mark."""
        items = [other for other in item.session.items if other.path == item.path and _mark(other) == mark]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reports")
            path.touch()
            env = APART[mark] | {_REPORTS: str(path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            command = ["-m", "pytest", "-p", "no:cacheprovider", *(other.nodeid for other in items)]
            there = forked.run(command, env=os.environ | env, cwd=item.config.rootpath)
            for line in path.read_text().splitlines():
                told = item.config.hook.pytest_report_from_serializable(
                    config=item.config, data=json.loads(line)
                )
                self._reports.setdefault(told.nodeid, []).append(told)
        for other in items:
            reports = self._reports.setdefault(other.nodeid, [])
            if not reports or reports[-1].when != "teardown":
                said = f"ended with {there.returncode} before its tests:\n{there.stdout}{there.stderr}"
                reports.append(pytest.TestReport(other.nodeid, other.location, {}, "failed", said, "call"))


def _mark(item: pytest.Item) -> str | None:
    """Where a test is to run; None is in this process."""
    return next((mark for mark in APART if item.get_closest_marker(mark)), None)


def plugin(config: pytest.Config) -> Here | There:
    """What this process is."""
    reports = os.environ.get(_REPORTS)
    return There(config, Path(reports)) if reports else Here()
