"""What takes long JSON apart and puts it together in a process of its own, which runs this file as a script.

It has NumPy and orjson and nothing else. A message is some parts, each a length and so many bytes: JSON, in
which each large array and long text is a marker, then those as they are in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import struct
import sys
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import orjson

PARSE, DUMP = b"parse", b"dump"
DONE, REFUSED = b"done", b"refused"
MARK = "\0array"
_TEXT = "\0text"

_LARGE_ARRAY = 1024  # elements
_LONG_TEXT = 1 << 16  # characters
_MAX_VALUES = 1 << 16  # that are in no array: whoever asked parses them once more
_MAX_DEPTH = 64
_LENGTH = struct.Struct("<Q")


def write_message(file: IO[bytes], parts: list[Any]) -> None:
    """Sends the parts of a message."""
    file.write(_LENGTH.pack(len(parts)))
    for part in parts:
        file.write(_LENGTH.pack(len(part)))
        file.write(part)
    file.flush()


def read_message(file: IO[bytes]) -> list[bytes]:
    """The parts of the next message.

    Raises:
        EOFError: The other end has closed.
    """
    return [_exactly(file, _number(file)) for _ in range(_number(file))]


def packed(arrays: list[np.ndarray]) -> list[Any]:
    """Arrays as parts of a message."""
    facts = orjson.dumps([[array.dtype.str, array.shape] for array in arrays])
    return [facts, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays)]


def unpacked(parts: list[Any]) -> list[np.ndarray]:
    """Arrays from parts of a message."""
    facts = orjson.loads(parts[0])
    forms = zip(facts, parts[1:], strict=True)
    return [np.frombuffer(data, dtype).reshape(shape) for (dtype, shape), data in forms]


def filled(content: Any, arrays: list[np.ndarray]) -> Any:
    """Parsed JSON with the arrays where their markers are."""
    if isinstance(content, dict):
        if MARK in content:
            return arrays[content[MARK]]
        if _TEXT in content:
            return arrays[content[_TEXT]].tobytes().decode()
        return {name: filled(value, arrays) for name, value in content.items()}
    return [filled(value, arrays) for value in content] if isinstance(content, list) else content


class _RefusedError(Exception):
    """It is not JSON, or is of a kind that no request has."""


def _marked(content: Any, arrays: list[np.ndarray], values: Iterator[int], depth: int = 0) -> Any:
    """Parsed JSON with markers in place of the lists that become arrays, and of long texts."""
    if next(values) > _MAX_VALUES:
        raise _RefusedError(f"the body has more than {_MAX_VALUES:,} values that are in no array of numbers")
    if depth > _MAX_DEPTH:
        raise _RefusedError(f"the body has lists in lists over more than {_MAX_DEPTH} levels")
    if isinstance(content, dict):
        inner = {name: value for name, value in content.items() if name not in (MARK, _TEXT)}
        return {name: _marked(value, arrays, values, depth + 1) for name, value in inner.items()}
    if isinstance(content, str) and len(content) >= _LONG_TEXT:
        arrays.append(np.frombuffer(content.encode(), np.uint8))
        return {_TEXT: len(arrays) - 1}
    if not isinstance(content, list):
        return content
    array = _numbers(content)
    if array is None:
        return [_marked(value, arrays, values, depth + 1) for value in content]
    arrays.append(array)
    return {MARK: len(arrays) - 1}


def _numbers(elements: list[Any]) -> np.ndarray | None:
    """A large array of numbers, or of true and false, in lists of equal lengths; None of anything else."""
    shape = [len(elements)]
    while elements and type(elements[0]) is list:
        if set(map(type, elements)) != {list} or len(set(map(len, elements))) != 1:
            return None
        shape.append(len(elements[0]))
        elements = list(itertools.chain.from_iterable(elements))
        if len(shape) > _MAX_DEPTH // 2:
            return None
    kinds = set(map(type, elements))
    if len(elements) < _LARGE_ARRAY or not kinds <= {int, float, bool}:
        return None
    dtype = np.dtype(bool if kinds == {bool} else float)
    if int in kinds and float not in kinds:  # in as few bytes as hold them all
        dtype = np.result_type(*(np.min_scalar_type(int(limit)) for limit in (min(elements), max(elements))))
    return np.array(elements, dtype).reshape(shape)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _number(file: IO[bytes]) -> int:
    number: int
    (number,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
    return number


def _parse(body: bytes) -> list[Any]:
    arrays: list[np.ndarray] = []
    try:
        content = _marked(orjson.loads(body), arrays, itertools.count())
    except orjson.JSONDecodeError as error:
        return [REFUSED, f"the body is not JSON: {error}".encode()]
    except _RefusedError as error:
        return [REFUSED, str(error).encode()]
    return [DONE, orjson.dumps(content), *packed(arrays)]


def _dump(marked: bytes, parts: list[Any]) -> list[bytes]:
    content = filled(orjson.loads(marked), unpacked(parts))
    return [DONE, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)]


def _serve() -> None:
    """Answers messages until the other end closes; signals are for that end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            what, *parts = read_message(sys.stdin.buffer)
            answer = _parse(parts[0]) if what == PARSE else _dump(parts[0], parts[1:])
            write_message(sys.stdout.buffer, answer)


if __name__ == "__main__":
    _serve()
