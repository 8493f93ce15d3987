"""HTTP bodies: read within limits, compressed and decompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.serving.errors import TooLargeError, TooSlowError, UnsupportedError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Mapping[bytes, bytes]  # names in lower case

MIN_COMPRESSED_BYTES = 1024  # less is not worth it
_THREAD_BYTES = 1 << 16  # what takes longer than a thread's wake-up
_GZIP_OR_ZLIB = 15 + 32  # of zlib: tells them apart itself
_WBITS = {"gzip": 15 + 16, "deflate": 15}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(headers: Headers, receive: Receive, max_bytes: int, seconds: float) -> bytes:
    """Reads a request's body.

    Args:
        headers: The request's.
        receive: Of ASGI.
        max_bytes: Size of the body, and of what it decompresses to.
        seconds: Time for it to arrive.

    Raises:
        InputError: It cannot be decompressed.
        TooLargeError: It is too large; one that says so beforehand is not read at all.
        TooSlowError: It does not arrive in time.
        UnsupportedError: An encoding other than gzip and deflate.
        ClientGoneError: The client left.
    """
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    try:
        async with asyncio.timeout(seconds):
            body = await _received(receive, max_bytes)
    except TimeoutError as error:
        raise TooSlowError(f"the body did not arrive within {seconds:g} s") from error
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WBITS:
        raise UnsupportedError(f"Content-Encoding: expected gzip or deflate, got {encoding[:40]!r}")
    if len(body) < _THREAD_BYTES:
        return decompress(body, max_bytes)
    return await asyncio.to_thread(decompress, body, max_bytes)


def decompress(data: bytes, max_bytes: int) -> bytes:
    """The contents of gzip or zlib data.

    Args:
        data: The data.
        max_bytes: Of the contents; no more is ever decompressed.

    Raises:
        InputError: It is neither, or damaged.
        TooLargeError: The contents are larger.
    """
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        content = decompressor.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body cannot be decompressed: {error}") from error
    if len(content) > max_bytes:
        raise TooLargeError(f"the body is larger than {max_bytes:,} bytes once decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise InputError("the body cannot be decompressed: it is cut off, or something follows it")
    return content


async def compressed(body: bytes, headers: Headers) -> tuple[bytes, str | None]:
    """A response's body as the client accepts it.

    Args:
        body: The body.
        headers: The request's.

    Returns:
        The body, and its encoding; None if it is as it was.
    """
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


async def _received(receive: Receive, max_bytes: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(len(body), max_bytes)
        return body
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts += message.get("body", b"")
        if len(parts) > max_bytes:
            raise _too_large(len(parts), max_bytes)
        if not message.get("more_body"):
            return bytes(parts)
        message = await receive()


def _too_large(size: int, max_bytes: int) -> TooLargeError:
    return TooLargeError(f"a body of {size:,} bytes; this server takes {max_bytes:,}")


def _compress(body: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(1, wbits=_WBITS[encoding])
    return compressor.compress(body) + compressor.flush()
