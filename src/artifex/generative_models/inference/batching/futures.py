"""The futures that hand the outputs of requests to threads and to coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any

from artifex.generative_models.inference.batching.queue import Answer, Outputs, Request
from artifex.generative_models.inference.batching.scheduler import Scheduler


class OutputsFuture(Future[Outputs]):
    """The outputs of a request to come: arrays [rows, ...] by name, on the host.

    A `concurrent.futures.Future` that coroutines can await. Until it is done it can be cancelled: rows
    that are not under way by then are never computed.
    """

    def __init__(self, scheduler: Scheduler, request: Request):
        super().__init__()
        self._scheduler = scheduler
        self._request = request

    def cancel(self) -> bool:
        """Drops the request; False if it is done."""
        if not self._scheduler.give_up(self._request):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()
        return True

    def __await__(self) -> Generator[Any, None, Outputs]:
        return asyncio.wrap_future(self).__await__()


class LoopFuture(asyncio.Future[Outputs]):
    """The same in one event loop: without locks, and woken together with the others of its batch."""

    scheduler: Scheduler
    request: Request

    def cancel(self, msg: Any | None = None) -> bool:
        """Drops the request; False if this is done."""
        self.scheduler.give_up(self.request)
        return super().cancel(msg)


def deliver(answers: Iterable[Answer]) -> None:
    """Sets the futures of requests that ended: those of an event loop all at once, in its own thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[LoopFuture, Outputs | Exception]]] = {}
    for request, answer in answers:
        future, request.future = request.future, None  # no cycle, so no garbage collection
        if isinstance(future, LoopFuture):
            by_loop.setdefault(future.get_loop(), []).append((future, answer))
        elif isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
    for loop, results in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set, results)
        except RuntimeError:
            if not loop.is_closed():  # a loop that is closed has nobody left who waits
                raise


def _set(results: Iterable[tuple[LoopFuture, Outputs | Exception]]) -> None:
    for future, answer in results:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
