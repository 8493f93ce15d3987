"""Which job an unfinished output belongs to, and how much of it is on disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from artifex.generative_models.core.errors import OutputError

if sys.platform != "win32":
    import fcntl

Done = TypeVar("Done")

_MAX_WORDS = 200  # characters of a fact in an error


class Journal:
    """A JSON file beside an unfinished output, replaced in one step each time it is written.

    Args:
        path: The file.
        output: The output that it is about, for errors.
        job: Everything the output depends on, as JSON takes it.
    """

    def __init__(self, path: Path, output: Path, job: Mapping[str, Any]):
        self.path = path
        self._output = output
        self._job: dict[str, Any] = json.loads(json.dumps(job))

    def write(self, rows_done: Any) -> None:
        """Notes how much is on disk, as JSON takes it."""
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        with temporary.open("w") as file:
            json.dump({"rows_done": rows_done, "job": self._job}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def read(self, parse: Callable[[Any], Done], is_done: Callable[[int, int], bool]) -> Done:
        """How much of this very job is on disk.

        Args:
            parse: Makes it of what was written; raises ValueError or TypeError where it cannot be.
            is_done: Whether any of some rows [start, stop) is among that.

        Raises:
            OutputError: It belongs to another job, or is damaged.
        """
        try:
            noted = json.loads(self.path.read_bytes())
            job, rows_done = dict(noted["job"]), parse(noted["rows_done"])
        except (ValueError, KeyError, TypeError) as error:
            raise self.cannot_resume(f"{self.path} is damaged") from error
        changed = sorted(
            name
            for name in job.keys() | self._job.keys()
            if not _is_same(job.get(name), self._job.get(name), is_done)
        )
        if changed:
            changes = (
                f"{name} was {_short(job.get(name))} and is {_short(self._job.get(name))} now"
                for name in changed
            )
            raise self.cannot_resume("; ".join(changes))
        return rows_done

    def cannot_resume(self, reason: str) -> OutputError:
        """The error that says so."""
        return OutputError(f"cannot resume {self._output}: {reason}; start it over without resuming")


def _is_same(noted: Any, given: Any, is_done: Callable[[int, int], bool]) -> bool:
    """Whether a fact is as it was, for all rows that are done: files of others may have changed."""
    if not (
        isinstance(noted, dict) and isinstance(given, dict) and "changes" in noted and "changes" in given
    ):
        return bool(noted == given)
    if {**noted, "changes": None} != {**given, "changes": None}:
        return False
    rows = given["rows_a_change"]
    differing = (i for i, (a, b) in enumerate(zip(noted["changes"], given["changes"], strict=True)) if a != b)
    return not any(is_done(i * rows, (i + 1) * rows) for i in differing)


def _short(fact: Any) -> str:
    text = str(fact)
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}…"


def open_locked(path: Path) -> BinaryIO:
    """Opens a file for this process alone, and makes it where there is none.

    Raises:
        OutputError: Another process has it.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(f"{path} is being written by another process") from error
    return file
