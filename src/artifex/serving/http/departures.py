"""Work is dropped when the client that asked for it has gone."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from artifex.serving.http.bodies import ClientGoneError, Receive

T = TypeVar("T")

_SECONDS = 0.05


class Departures:
    """Waits for results on behalf of clients that may leave.

    To listen for a client's departure takes a task of its own, which a request that is answered at once is
    not worth: only those that have waited for a while get one.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future, Receive] = {}
        self._seen: set[asyncio.Future] = set()  # that waited at the last look
        self._listeners: dict[asyncio.Future, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def result(self, future: asyncio.Future[T], receive: Receive) -> T:
        """Waits for a future, and cancels it when the client leaves; its whole body has been read.

        Raises:
            ClientGoneError: The client left.
        """
        self._waiting[future] = receive
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._look)
        try:
            return await future
        except asyncio.CancelledError:
            listener = self._listeners.get(future)
            if listener is not None and listener.done():
                raise ClientGoneError from None
            raise
        finally:
            del self._waiting[future]
            listener = self._listeners.pop(future, None)
            if listener is not None:
                listener.cancel()

    def _look(self) -> None:
        for future, receive in self._waiting.items():
            if future in self._seen and future not in self._listeners:
                self._listeners[future] = asyncio.ensure_future(_cancel_on_departure(future, receive))
        self._seen = set(self._waiting)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SECONDS, self._look) if self._waiting else None


async def _cancel_on_departure(future: asyncio.Future, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    future.cancel()
