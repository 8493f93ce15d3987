"""Long JSON, taken apart and put together in a process of its own.

Parsing holds the interpreter's lock from the first byte to the last: 30 MB of numbers would keep the event
loop from everybody else for a second, in whatever thread it is done.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import orjson

from artifex.generative_models.core.errors import InputError
from artifex.serving.http import json_worker
from artifex.serving.http.json_worker import DUMP, MARK, PARSE, REFUSED

LARGE_BYTES = 1 << 17  # of JSON, from which it is worth the way

T = TypeVar("T")


class JsonProcess:
    """Takes JSON apart and puts it together elsewhere, in a process that starts when it is first needed.

    `loads` and `dumps` wait for that process: they, and what calls them, belong in `run`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "artifex-json")
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function in the thread that waits for the process."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def loads(self, body: bytes) -> Any:
        """`orjson.loads`, but that large arrays come as NumPy arrays of booleans, integers or float64.

        Raises:
            InputError: It is not JSON, or has very many values that are no such arrays.
        """
        kind, *parts = self._asked(PARSE, [body])
        if kind == REFUSED:
            raise InputError(parts[0].decode())
        return json_worker.filled(orjson.loads(parts[0]), json_worker.unpacked(parts[1:]))

    def dumps(self, content: Any) -> bytes:
        """JSON of what holds NumPy arrays, of dtypes that NumPy counts as its own."""
        arrays: list[np.ndarray] = []

        def mark(array: np.ndarray) -> dict[str, int]:
            arrays.append(array)
            return {MARK: len(arrays) - 1}

        marked = orjson.dumps(content, default=mark)
        return self._asked(DUMP, [marked, *json_worker.packed(arrays)])[1]

    async def close(self) -> None:
        """Ends the process, if there is one."""
        await self.run(self._end)

    def _asked(self, what: bytes, parts: list[Any]) -> list[bytes]:
        """The answer to a message, which is sent again if the process has ended, as when memory is short."""
        try:
            return self._exchange([what, *parts])
        except (BrokenPipeError, EOFError):
            self._end()
            return self._exchange([what, *parts])

    def _exchange(self, message: list[Any]) -> list[bytes]:
        if self._process is None:
            # In a session of its own, for Ctrl-C at the terminal is for the server.
            self._process = subprocess.Popen(
                [sys.executable, "-P", json_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        json_worker.write_message(process.stdin, message)
        return json_worker.read_message(process.stdout)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
