"""What the server says on stderr: a line for each event of its life, and for each request if asked for."""

from __future__ import annotations

import atexit
import datetime
import json
import logging
import queue
import sys
import threading
import time
import weakref
from typing import Any

import orjson

_MAX_WAITING = 10_000  # lines
_FLUSH_SECONDS = 1.0

_log = logging.getLogger("artifex.serving")
# What is shown, by logger; the warnings of others are of what clients send.
LEVELS = {
    "artifex.serving": logging.INFO,
    "uvicorn.error": logging.ERROR,
    "asyncio": logging.ERROR,
    "python_multipart": logging.ERROR,
}


def log_event(event: str, error: BaseException | None = None, **facts: Any) -> None:
    """Says that something happened.

    Args:
        event: What, in a word or two.
        error: Its traceback goes with it.
        **facts: Names and values, as JSON takes them.
    """
    level = logging.ERROR if error is not None else logging.INFO
    _log.log(level, event, exc_info=error, extra={"facts": facts})


def show_events(as_json: bool) -> None:
    """Has events appear on stderr: each as a JSON object, for machines, or else as a line for people."""
    handler = _Unblocked()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    for name, level in LEVELS.items():
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False


def flush_events() -> None:
    """Waits until what was said has been read, but not for long: for a process that is about to end."""
    for handler in _unblocked:
        handler.flush()


_unblocked: weakref.WeakSet[_Unblocked] = weakref.WeakSet()


class _Unblocked(logging.Handler):
    """Writes to stderr on a thread of its own, so that nobody waits for who reads it.

    Where nobody does, what is said beyond `_MAX_WAITING` lines is dropped, and then counted in a line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(_MAX_WAITING)
        self._num_dropped = 0
        threading.Thread(target=self._write, name="artifex-log", daemon=True).start()
        _unblocked.add(self)
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record) + "\n")
        except queue.Full:
            self._num_dropped += 1

    def flush(self) -> None:
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.001)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            dropped, self._num_dropped = self._num_dropped, 0
            if dropped:
                lost = logging.LogRecord("artifex.serving", logging.ERROR, "", 0, "lines dropped", None, None)
                lost.__dict__["facts"] = {"number": dropped}
                line = f"{self.format(lost)}\n{line}"
            try:
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):  # whoever read it has gone
                pass
            finally:
                self._lines.task_done()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "event": record.getMessage(), **_facts(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={_quoted(str(value))}" for name, value in _facts(record).items())
        line = f"{_time(record)} {record.getMessage()} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _quoted(text: str) -> str:
    """Text as it is where nothing in it could be taken for the next fact or line."""
    plain = text.isprintable() and not set(text) & set(' ="')
    return text if plain else json.dumps(text)


def _time(record: logging.LogRecord) -> str:
    time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "facts", {})
