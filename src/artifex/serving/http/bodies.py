"""HTTP bodies: read within limits, compressed and decompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.statuses import TooLargeError, TooSlowError, UnsupportedError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Mapping[bytes, bytes]  # names in lower case

MIN_COMPRESSED_BYTES = 1024  # less is not worth it
_THREAD_BYTES = 1 << 16  # what takes longer than a thread's wake-up
_PART_BYTES = 1 << 18  # done at a time, or else beside the event loop
_GZIP_OR_ZLIB = 15 + 32  # of zlib: tells them apart itself
_WBITS = {"gzip": 15 + 16, "deflate": 15}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


class BodyReader:
    """Reads the bodies of requests, within limits.

    One timer looks after all that are being read: a timeout for each, most of which are there at once, would
    cost as much as the reading.

    Args:
        max_bytes: Size of a body, and of what it decompresses to.
        seconds: Time for a body to arrive; one that does not may be noticed a little later.
    """

    def __init__(self, max_bytes: int, seconds: float):
        self.max_bytes = max_bytes
        self._seconds = seconds
        self._began: dict[asyncio.Task[Any], float] = {}  # when each reading began
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """Reads a request's body.

        Raises:
            InputError: It cannot be decompressed.
            TooLargeError: It is too large; one that says so beforehand is not read at all.
            TooSlowError: It does not arrive in time.
            UnsupportedError: An encoding other than gzip and deflate.
            ClientGoneError: The client left.
        """
        declared = headers.get(b"content-length")
        if declared is not None and int(declared) > self.max_bytes:
            raise _too_large(int(declared), self.max_bytes)
        body = await self._received(receive)
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding == "identity":
            return body
        if encoding not in _WBITS:
            raise UnsupportedError(f"Content-Encoding: expected gzip or deflate, got {encoding[:40]!r}")
        # However short it is, it may become long.
        return await asyncio.to_thread(decompress, body, self.max_bytes)

    async def _received(self, receive: Receive) -> bytes:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._began[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds / 4, self._look)
        try:
            message = await receive()
            body = message.get("body", b"")
            if message.get("more_body") or message["type"] == "http.disconnect":
                body = await self._rest(message, receive)
            if len(body) > self.max_bytes:
                raise _too_large(len(body), self.max_bytes)
            return body
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel():
                raise
            raise TooSlowError(f"the body did not arrive within {self._seconds:g} s") from None
        finally:
            del self._began[task]
            self._late.discard(task)

    async def _rest(self, message: MutableMapping[str, Any], receive: Receive) -> bytes:
        """A body of several parts, from the message that has the first on; no more of it than is taken."""
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body") or size > self.max_bytes:
                return await joined(parts)
            message = await receive()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for task, began in self._began.items():
            if task not in self._late and loop.time() >= began + self._seconds:
                self._late.add(task)
                task.cancel()
        self._timer = loop.call_later(self._seconds / 4, self._look) if self._began else None


def decompress(data: bytes, max_bytes: int) -> bytes:
    """The contents of gzip or zlib data; never more than `max_bytes` of them.

    Raises:
        InputError: It is neither, or damaged.
        TooLargeError: The contents are larger.
    """
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    parts: list[bytes] = []  # short: zlib holds the interpreter's lock while it joins its own
    size, left = 0, memoryview(data)
    try:
        while left and size <= max_bytes and not decompressor.eof:
            given = left[:_PART_BYTES]
            parts.append(decompressor.decompress(given, min(_PART_BYTES, max_bytes + 1 - size)))
            size += len(parts[-1])
            left = left[len(given) - len(decompressor.unconsumed_tail) :]
    except zlib.error as error:
        raise InputError(f"the body cannot be decompressed: {error}") from error
    if size > max_bytes:
        raise TooLargeError(f"the body is larger than {max_bytes:,} bytes once decompressed")
    if not decompressor.eof or decompressor.unused_data or left:
        raise InputError("the body cannot be decompressed: it is cut off, or something follows it")
    return b"".join(parts)


async def joined(parts: list[bytes]) -> bytes:
    """Parts in one; if that is long, beside the event loop."""
    if sum(map(len, parts)) < _PART_BYTES:
        return b"".join(parts)
    return await asyncio.to_thread(b"".join, parts)


async def compressed(body: bytes, headers: Headers) -> tuple[bytes, str | None]:
    """A response's body as the request's headers accept it, and its encoding; None if it is as it was."""
    accepted = headers.get(b"accept-encoding")
    if accepted is None or len(body) < MIN_COMPRESSED_BYTES:
        return body, None
    codings = [coding.strip().lower() for coding in accepted.decode("latin-1").split(",")]
    encoding = next((name for name in ("gzip", "deflate") if name in codings), None)
    if encoding is None:
        return body, None
    if len(body) < _THREAD_BYTES:
        return _compress(body, encoding), encoding
    return await asyncio.to_thread(_compress, body, encoding), encoding


def _too_large(size: int, max_bytes: int) -> TooLargeError:
    return TooLargeError(f"a body of {size:,} bytes; this server takes {max_bytes:,}")


def _compress(body: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(1, wbits=_WBITS[encoding])
    return compressor.compress(body) + compressor.flush()
