"""A call's rows as they are computed, with previews of those that take steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import numpy as np

from artifex.generative_models.inference.batching.previews import Preview, Seen
from artifex.generative_models.inference.batching.queue import Outputs
from artifex.serving.plane.dataplane import Call
from artifex.serving.plane.requests import InferResponse


class StreamedRows(NamedTuple):
    """Some rows of a call.

    Args:
        rows: Their numbers within the call, ascending.
        steps: Steps that each has taken; None where they are done.
        outputs: What they give, or would give by now, arrays [rows, ...] by name.
    """

    rows: Sequence[int]
    steps: Sequence[int] | None
    outputs: Outputs


async def rows_and_previews(call: Call, bounds: Sequence[int]) -> AsyncGenerator[StreamedRows]:
    """Runs a call in parts, one ahead of the one that is waited for.

    Whoever is slow to read gets the newest preview of a row, and none of a row that is done. Leaving the
    iterator drops what is not done.

    Args:
        call: The call; with `every`, previews come too.
        bounds: The first row of each part, and the number of rows.

    Raises:
        ArtifexError: As for `Batcher.submit_async`.
    """
    newest: dict[int, Seen] = {}
    news = asyncio.Event()
    parts: dict[int, asyncio.Future[Outputs]] = {}  # by the number of the first row

    def told(part: asyncio.Future[Outputs]) -> None:
        news.set()
        if not part.cancelled():
            part.exception()  # nobody may be left who looks

    def submit(i: int) -> None:
        if i + 1 < len(bounds):
            start = bounds[i]

            def show(preview: Preview) -> None:
                newest.update({start + row: seen for row, seen in preview.seen()})
                news.set()

            parts[start] = call.submit(start, bounds[i + 1], None if call.every is None else show)
            parts[start].add_done_callback(told)

    with call.loaded.in_use():
        try:
            submit(0)
            for i, start in enumerate(bounds[:-1]):
                if call.job.program.takes_steps:  # else its rows would keep the first from being done
                    submit(i + 1)
                while not parts[start].done():
                    await news.wait()
                    news.clear()
                    for first, part in parts.items():
                        if part.done():
                            _drop(newest, first, bounds[bounds.index(first) + 1])
                    if newest:
                        preview = Preview.of(newest)
                        newest.clear()
                        yield StreamedRows(preview.rows.tolist(), preview.steps.tolist(), preview.outputs)
                outputs = parts.pop(start).result()
                _drop(newest, start, bounds[i + 1])
                if not call.job.program.takes_steps:
                    submit(i + 1)
                yield StreamedRows(range(start, bounds[i + 1]), None, outputs)
        finally:
            for part in parts.values():
                part.cancel()


def response_of(call: Call, part: StreamedRows) -> InferResponse:
    """The response with some rows; one of a preview has their numbers and steps as outputs, too."""
    if part.steps is None:
        return call.response(part.outputs)
    seen = {"index": np.array(part.rows, np.int64), "step": np.array(part.steps, np.int64)}
    return call.response(part.outputs, seen)


def _drop(newest: dict[int, Seen], start: int, stop: int) -> None:
    for row in range(start, stop):
        newest.pop(row, None)
