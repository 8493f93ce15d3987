"""Samples one at a time, from blocks that are drawn ahead of the consumer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.batching.batcher import Batcher, batcher_for
from artifex.generative_models.inference.batching.futures import OutputsFuture
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.offline.sampling import sampling

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float

_BLOCK_BYTES = 64 << 20  # of the rows that are drawn together
_GROWTH = 4  # of a block over the one before: 1, 4, 16, ... rows


class StreamingGenerator:
    """An endless stream of samples, for `for` and for `async for`.

    Sample i is sample i of `batch_generate_samples` with `nnx.Rngs(seed)`, wherever the stream starts. The
    first is drawn alone; blocks then grow until they fill the device. One block is drawn ahead of the one
    that is read, and no more: a stream that nobody reads computes nothing. Streams over one model share a
    `Batcher`. One consumer reads a stream; several want a stream each, or a lock. A failure ends the stream.

    Close it when done, use it in a `with` block, or drop it: its work ends.

    Args:
        model: A model with a `generate` endpoint, an executor of one, or a `Batcher`.
        seed: Seed of the stream, as of `nnx.Rngs`.
        start: Number of the first sample, from 0: where an earlier stream stopped.
        num_samples: How many; None is without end.
        temperature: Standard deviation of the prior's noise, from 0; 1 is the model's own.
        **given: More inputs of the endpoint, such as a label, for all samples; and options.

    Raises:
        InputError: A negative start or number of samples, or something that the model does not take.
        InputTypeError: A seed that is not an integer.
    """

    def __init__(
        self,
        model: Model | Executor | Batcher,
        seed: int = 42,
        *,
        start: int = 0,
        num_samples: int | None = None,
        temperature: float = 1.0,
        **given: Any,
    ):
        if start < 0:
            raise InputError(f"start: expected a row number from 0, got {start}")
        if num_samples is not None and num_samples < 0:
            raise InputError(f"num_samples: expected a number from 0, got {num_samples}")
        batcher = model if isinstance(model, Batcher) else batcher_for(model)
        self._how = sampling(batcher.executor, None, temperature, given)
        if not isinstance(seed, int):
            raise InputTypeError(f"seed: expected an integer, got {seed!r}")
        self._batcher: Batcher | None = batcher
        self._seed = seed
        self._next_row = start  # of the next block
        self._end = None if num_samples is None else start + num_samples
        self._block_rows = 1
        executor = batcher.executor
        block_bytes = min(_BLOCK_BYTES, batcher.max_queued_bytes // 2)  # two may wait at the same time
        self._max_block_rows = max(
            1,
            min(
                executor.batch_sizes[-1] * executor.parallel_executions,
                batcher.max_queued_rows // 2,
                block_bytes // executor.row_bytes("generate"),
            ),
        )
        self._blocks: deque[OutputsFuture] = deque()
        self._samples: deque[Float[np.ndarray, "h w c"]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Float[np.ndarray, "h w c"]:
        try:
            if not self._samples and not self._draw_first():
                self._read(self._wanted(StopIteration).result())
            return self._samples.popleft()
        except CancelledError:  # closed from another thread
            raise StopIteration from None
        except Exception:  # the end, or a failure: either way nobody reads what is drawn ahead
            self.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Float[np.ndarray, "h w c"]:
        try:
            if not self._samples:
                block = self._wanted(StopAsyncIteration)
                # shielded, so that a consumer that is cancelled here may come back for the same sample
                outputs = await asyncio.shield(asyncio.wrap_future(block))
                self._read(outputs)
            return self._samples.popleft()
        except asyncio.CancelledError:
            if self._batcher is None:  # closed meanwhile
                raise StopAsyncIteration from None
            raise
        except Exception:  # the end, or a failure: either way nobody reads what is drawn ahead
            self.close()
            raise

    def close(self) -> None:
        """Drops what is drawn ahead and ends the stream; a second call does nothing."""
        self._batcher = None  # the last stream that lets go of a shared one ends it
        self._samples.clear()
        while self._blocks:
            self._blocks.pop().cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def _draw_first(self) -> bool:
        """Draws the first sample here, sooner than through the queue, and has the next block drawn.

        One that takes steps joins the batches of the others.
        """
        if self._blocks or self._block_rows > 1 or not self._batcher or self._next_row == self._end:
            return False
        if self._batcher.executor.takes_steps("generate", **self._how.options):
            return False
        executor = self._batcher.executor
        job = executor.check("generate", self._how.rows(0, 1), **self._call(1))
        self._next_row += 1
        self._grow()
        self._draw(1)
        outputs = executor.run(job)
        self._samples.append(outputs["x"][0].copy())
        return True

    def _call(self, rows: int) -> dict[str, Any]:
        return {"seed": self._seed, "num_rows": rows, "first_row": self._next_row, **self._how.options}

    def _wanted(self, end: type[Exception]) -> OutputsFuture:
        """The block to wait for, from the second on with the next under way too; raises `end` at the end."""
        self._draw(1 if self._block_rows == 1 else 2)
        if not self._blocks:
            raise end
        return self._blocks[0]

    def _read(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Opens the block that was waited for, and has one drawn ahead."""
        self._blocks.popleft()
        self._grow()
        self._draw(1)
        self._samples.extend(sample.copy() for sample in outputs["x"])  # so that one kept keeps no block

    def _grow(self) -> None:
        self._block_rows = min(_GROWTH * self._block_rows, self._max_block_rows)

    def _draw(self, num_blocks: int) -> None:
        """Has so many blocks under way, unless the stream ends before."""
        while self._batcher and len(self._blocks) < num_blocks and self._next_row != self._end:
            rows = (
                self._block_rows if self._end is None else min(self._block_rows, self._end - self._next_row)
            )
            block = self._batcher.submit("generate", self._how.rows(0, rows), **self._call(rows))
            self._blocks.append(block)
            self._next_row += rows


def stream_samples(
    model: Model | Executor | Batcher,
    num_samples: int = 100,
    *,
    seed: int = 42,
    start: int = 0,
    temperature: float = 1.0,
    **given: Any,
) -> StreamingGenerator:
    """A stream of so many samples, for `for` and for `async for`.

    Arguments and errors are those of `StreamingGenerator`.
    """
    settings: dict[str, Any] = {"start": start, "num_samples": num_samples, "temperature": temperature}
    return StreamingGenerator(model, seed, **settings, **given)
