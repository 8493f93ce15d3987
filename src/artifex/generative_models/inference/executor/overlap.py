"""Several pieces under way at once, their outputs in order.

XLA's CPU backend leaves cores idle, so there several executions are in flight, each from a thread of one
pool shared by all executors of the process; elsewhere dispatch is asynchronous, and the next piece is
dispatched while results of the last are copied back.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from artifex.generative_models.inference.executor.jobs import Piece


def on_threads(
    pieces: Iterator[Piece], complete: Callable[[Iterable[Piece]], None], in_flight: int
) -> Iterator[Piece]:
    """Runs pieces on threads, and yields each when it is done, in order.

    Args:
        pieces: What to run.
        complete: Runs some of them to their end, one after another.
        in_flight: Threads.
    """
    submit = _pool(in_flight).submit
    started = ((group, submit(complete, group)) for group in _groups(pieces, in_flight))
    return _in_order(started, depth=2 * in_flight)


def dispatched(pieces: Iterator[Piece], dispatch: Callable[[Piece], Any], in_flight: int) -> Iterator[Piece]:
    """Runs pieces on a backend that runs asynchronously, and yields each when it is done, in order.

    Args:
        pieces: What to run.
        dispatch: Starts one, and gives what waits for it by `result()` and drops it by `cancel()`.
        in_flight: How many are under way.
    """
    started = (([piece], dispatch(piece)) for piece in pieces)
    return _in_order(started, depth=in_flight - 1)


def _in_order(started: Iterator[tuple[list[Piece], Any]], depth: int) -> Iterator[Piece]:
    window: deque[tuple[list[Piece], Any]] = deque()
    try:
        for item in started:
            window.append(item)
            if len(window) > depth:
                yield from _finished(window)
        while window:
            yield from _finished(window)
    finally:
        for _, waiting in window:
            waiting.cancel()


def _finished(window: deque[tuple[list[Piece], Any]]) -> list[Piece]:
    pieces, under_way = window.popleft()
    under_way.result()
    return pieces


def _groups(pieces: Iterator[Piece], in_flight: int) -> Iterator[list[Piece]]:
    """Pieces for one thread to run in a row: few at first, so that all start, then enough to pay a hop."""
    for size in itertools.chain(*([n] * in_flight for n in (1, 2, 4)), itertools.repeat(8)):
        group = list(itertools.islice(pieces, size))
        if not group:
            return
        yield group


@functools.cache
def _pool(in_flight: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(in_flight, thread_name_prefix="artifex")
