"""Previews on their way to whoever asked for them, who may be slow: the newest are what counts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from artifex.generative_models.core.errors import InputError

Seen = tuple[int, dict[str, np.ndarray]]  # of a row, the steps that it has taken and its outputs

_log = logging.getLogger("artifex")


class Preview(NamedTuple):
    """How far some rows of a request have come.

    Args:
        rows: Their numbers within the request, ascending, int [rows].
        steps: Steps that each of them has taken, int [rows].
        outputs: What they give by now, arrays [rows, ...] by name.
    """

    rows: np.ndarray
    steps: np.ndarray
    outputs: dict[str, np.ndarray]

    @classmethod
    def of(cls, seen: Mapping[int, Seen]) -> Preview:
        """What was seen of rows, by their numbers."""
        rows = sorted(seen)
        names = seen[rows[0]][1]
        outputs = {name: np.stack([seen[row][1][name] for row in rows]) for name in names}
        return cls(np.array(rows), np.array([seen[row][0] for row in rows]), outputs)

    def seen(self) -> Iterator[tuple[int, Seen]]:
        """Each row's number, and what was seen of it."""
        for i, (row, steps) in enumerate(zip(self.rows.tolist(), self.steps.tolist(), strict=True)):
            yield row, (steps, {name: rows[i] for name, rows in self.outputs.items()})


class Previews:
    """Hands previews to a callback: of each row the newest, one call at a time, none after the end.

    Args:
        every: Steps of a row between two previews of it.
        on_preview: Called with each, in the event loop or else in a thread of its own.
        loop: The event loop.

    Raises:
        InputError: `every` below 1.
    """

    def __init__(
        self,
        every: int,
        on_preview: Callable[[Preview], object],
        loop: asyncio.AbstractEventLoop | None = None,
    ):
        if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1:
            raise InputError(f"every: expected a number of steps from 1, got {every!r}")
        self.every = int(every)
        self._on_preview = on_preview
        self._loop = loop
        self._lock = threading.Lock()
        self._newest: dict[int, Seen] = {}  # by row
        self._is_called = False  # or about to be
        self._ended = False

    def put(self, rows: Mapping[int, Seen]) -> None:
        """Takes what was seen of rows, in place of what nobody was shown yet."""
        with self._lock:
            if self._ended:
                return
            self._newest.update(rows)
            if self._is_called:
                return
            self._is_called = True
        if self._loop is None:
            threading.Thread(target=self._call, name="artifex-previews", daemon=True).start()
            return
        try:
            self._loop.call_soon_threadsafe(self._call)
        except RuntimeError:
            if not self._loop.is_closed():  # a loop that is closed has nobody left who looks
                raise

    def forget(self, row: int) -> None:
        """Drops what was seen of a row that is done, so that no more is held than is under way."""
        with self._lock:
            self._newest.pop(row, None)

    def end(self) -> None:
        """Has no further call begin."""
        with self._lock:
            self._ended = True
            self._newest.clear()

    def _call(self) -> None:
        while True:
            with self._lock:
                newest, self._newest = self._newest, {}
                if not newest:
                    self._is_called = False
                    return
            try:
                self._on_preview(Preview.of(newest))
            except Exception:  # of whoever looks: the sample is drawn all the same
                _log.exception("a callback for previews failed, and gets no more")
                self.end()
