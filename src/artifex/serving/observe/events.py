"""What the server says on stderr: a line for each event of its life, and for each request if asked for."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

import orjson

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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    for name, level in LEVELS.items():
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False


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
