"""Compilation for a batcher, in a thread of its own, so that it holds up nothing that is compiled already."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable

from artifex.generative_models.inference.executor.program import Program

_log = logging.getLogger("artifex")


class CompileLane:
    """Has batch sizes of programs compiled, one after another.

    Args:
        lock: Held by whoever asks.

    Attributes:
        waiting: Told when something that was asked for is there.
    """

    def __init__(self, lock: threading.RLock):
        self._lock = lock
        self.waiting: list[threading.Condition] = []
        self._asked: weakref.WeakKeyDictionary[Program, dict[int, bool]] = weakref.WeakKeyDictionary()
        self._queue: deque[tuple[Program, int, Callable[[], object]]] = deque()
        self._thread: threading.Thread | None = None

    def is_done(self, program: Program, size: int) -> bool:
        """Whether a size was compiled, or failed to: whoever runs it then finds out why."""
        return self._asked.get(program, {}).get(size, False)

    def ask(self, program: Program, size: int, compile_it: Callable[[], object]) -> None:
        """Has a size compiled, unless that was asked for before."""
        asked = self._asked.setdefault(program, {})
        if size in asked:
            return
        asked[size] = False
        self._queue.append((program, size, compile_it))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="artifex-compiling", daemon=True)
            self._thread.start()

    def mark(self, program: Program, size: int) -> None:
        """Notes that a size was compiled elsewhere."""
        self._asked.setdefault(program, {})[size] = True

    def drop(self) -> None:
        """Compiles nothing more of what was asked for; called with the lock."""
        self._queue.clear()

    def join(self) -> None:
        """Waits until nothing is compiled."""
        thread = self._thread
        if thread not in (None, threading.current_thread()):
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                program, size, compile_it = self._queue.popleft()
            try:
                compile_it()
            except Exception as error:  # which running it raises too, for the requests that it belongs to
                _log.debug("%s: %d rows: %s", program.name, size, error)
            with self._lock:
                self._asked[program][size] = True
                for condition in self.waiting:
                    condition.notify_all()
            del program, compile_it
