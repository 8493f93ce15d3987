"""Connections of uvicorn, with bounds for clients that send or read too slowly or too much."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_SECONDS = 20.0
READ_SECONDS = 30.0
MAX_HEAD_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = 75
_JOINED_BYTES = 1 << 18


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request's head is late or large, or a response is not read.

    A client may read slowly; one that has read nothing for a while is taken to be gone.
    """

    parser: Any  # a _Parser
    _writes: _JoinedWrites
    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0  # when the timer was set

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for the first request."""
        self.parser = _Parser(self)
        self._writes = _JoinedWrites(cast("asyncio.Transport", transport))
        super().connection_made(cast("asyncio.Transport", self._writes))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go."""
        super().connection_lost(exc)
        self._head_arrived()
        self._stop_reading_timer()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; a head that they do not complete is watched."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, "the request's headers are too large")
            else:
                self._watch_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """A head ends."""
        self._in_head = False
        self._head_arrived()
        if not self.parser.comes_again:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A body ends."""
        if not self.parser.comes_again:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """A response ends."""
        self._writes.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, in the protocol's form."""
        self._refuse(400, "invalid HTTP request")

    def pause_writing(self) -> None:
        """More is written than the client reads."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """The client has read almost all."""
        super().resume_writing()
        self._stop_reading_timer()

    def look_at_reading(self) -> None:
        """Closes a connection whose client has read nothing since the last look."""
        self._stop_reading_timer()
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._watch_reading()
        else:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection; one whose client still reads its last response is not."""
        if self._read_timer is not None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                HEAD_SECONDS, self._refuse, 408, "no request came in time"
            )

    def _watch_reading(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.look_at_reading)

    def _stop_reading_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = orjson.dumps({"error": message})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


class _Parser:
    """httptools' parser, to which an offer of another protocol, such as h2c, means nothing.

    httptools itself ends at the head that has one, and a body would be lost. So the head is parsed again
    without the offer, and what follows it after that.
    """

    def __init__(self, connection: Connection):
        self._connection = connection
        self._renew()

    def _renew(self) -> None:
        self._parser = parser = httptools.HttpRequestParser(self._connection)
        self.get_method, self.get_http_version = parser.get_method, parser.get_http_version
        self.should_keep_alive = parser.should_keep_alive

    @property
    def comes_again(self) -> bool:
        """Whether the head that has just been parsed had such an offer."""
        return self._parser.should_upgrade() and self.get_method() != b"CONNECT"

    def should_upgrade(self) -> bool:
        """Whether to go over to another protocol."""
        return False

    def feed_data(self, data: bytes) -> None:
        """Parses what has come."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if not self.comes_again:
                    raise
                data = self._head() + data[offer.args[0] :]
                self._renew()
            else:
                return

    def _head(self) -> bytes:
        """The head that has just been parsed, without the offer."""
        first = self.get_method(), self._connection.url, self.get_http_version().encode()
        lines = [b"%s: %s\r\n" % header for header in self._connection.headers if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (*first, b"".join(lines))


class _JoinedWrites:
    """A transport that sends a response's head with the first part of its body.

    Each write is a call of the system, for which the interpreter's lock is given up: to get it back from the
    threads that run batches takes longer than all else that a response does.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Sends bytes, or holds them if they are a response's head."""
        if data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and data[9:10] != b"1":
            self._head += data
        else:
            held, self._head = self._head, b""
            if len(data) < _JOINED_BYTES:
                data = held + data
            else:  # a copy would take longer than another call
                self._transport.write(held)
            self._transport.write(data)

    def flush(self) -> None:
        """Sends what is held."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Sends what is held, then closes."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
