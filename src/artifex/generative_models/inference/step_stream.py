"""How samples come out of noise: what they look like between the steps of a model that takes some."""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference.batching.batcher import Batcher, batcher_for
from artifex.generative_models.inference.batching.futures import OutputsFuture
from artifex.generative_models.inference.batching.previews import Preview, Seen
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.offline.sampling import sampling

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Step:
    """A sample on its way.

    Args:
        index: Its number within the stream.
        step: Steps that it has taken; None where it is done.
        sample: What it would be by now, or is.
    """

    index: int
    step: int | None
    sample: Float[np.ndarray, "h w c"]


class StepStream:
    """A few samples of a model that takes steps, with previews of them, for `for` and for `async for`.

    Nothing is drawn before the first is asked for. All samples are under way together; whoever is slow is
    given the newest preview of each. In the end every sample comes once with `step` None.

    Close it when done, use it in a `with` block, or drop it: samples that are not done leave their batch.

    Args:
        model: A model with a `generate` endpoint that takes steps, an executor of one, or a `Batcher`.
        num_samples: How many, from 1.
        seed: Seed, as of `nnx.Rngs`: sample i is sample i of `batch_generate_samples` with it.
        start: Number of the first sample, from 0.
        every: Steps of a sample between two previews of it, from 1.
        **given: Inputs and fields of the endpoint, such as a label, for all samples or one a sample; and
            options.

    Raises:
        InputError: A negative start, `every` below 1, a model that takes no steps, or something that it does
            not take.
        InputTypeError: A seed that is not an integer.
    """

    def __init__(
        self,
        model: Model | Executor | Batcher,
        num_samples: int = 1,
        *,
        seed: int = 42,
        start: int = 0,
        every: int = 1,
        **given: Any,
    ):
        if start < 0:
            raise InputError(f"start: expected a row number from 0, got {start}")
        if not isinstance(seed, int):
            raise InputTypeError(f"seed: expected an integer, got {seed!r}")
        batcher = model if isinstance(model, Batcher) else batcher_for(model)
        how = sampling(batcher.executor, num_samples, 1.0, given)
        if not batcher.executor.takes_steps("generate", **how.options):
            raise InputError("generate: it takes no steps, so it has no previews; stream_samples has samples")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"every: expected a number of steps from 1, got {every!r}")
        self._batcher: Batcher | None = batcher
        self._rows = functools.partial(how.rows, 0, num_samples)
        identity: dict[str, Any] = {"seed": seed, "num_rows": num_samples, "first_row": start}
        self._call = {**identity, "every": every, **how.options}
        self._news = _News()
        self._start = start
        self._outputs: OutputsFuture | None = None
        self._steps: deque[Step] = deque()
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        while not self._steps:
            if self._ended:
                raise StopIteration
            self._begun().result()
            self._read()
        return self._steps.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Step:
        while not self._steps:
            if self._ended:
                raise StopAsyncIteration
            await asyncio.wrap_future(self._begun())
            self._read()
        return self._steps.popleft()

    def close(self) -> None:
        """Drops what is not done and ends the stream; a second call does nothing."""
        self._end()
        self._steps.clear()
        if self._outputs is not None:
            self._outputs.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def _begun(self) -> Future[None]:
        """What is done when there are news; the first time has the samples drawn."""
        batcher = self._batcher
        if self._outputs is None and batcher is not None:
            on_preview = self._news.put
            outputs = batcher.submit(
                "generate", self._rows(), outputs=["x"], on_preview=on_preview, **self._call
            )
            weakref.finalize(self, outputs.cancel).atexit = False
            outputs.add_done_callback(self._news.tell)
            self._outputs = outputs
        return self._news.awaited(self._outputs)

    def _read(self) -> None:
        """Takes what is new: previews, or in the end the samples; a failure ends the stream."""
        outputs = self._outputs
        if self._ended or outputs is None:
            return
        if not outputs.done():
            for row, (steps, seen) in sorted(self._news.taken().items()):
                self._steps.append(Step(self._start + row, steps, seen["x"]))
        else:
            self._end()
            samples = outputs.result()["x"]
            self._steps += [Step(self._start + row, None, sample) for row, sample in enumerate(samples)]

    def _end(self) -> None:
        self._ended = True
        self._batcher = None  # the last stream that lets go of a shared one ends it


class _News:
    """What was seen and not read yet; the batcher's threads hold this alone, and not the stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[int, Seen] = {}
        self._waiter: Future[None] | None = None

    def put(self, preview: Preview) -> None:
        with self._lock:
            self._newest.update(preview.seen())
        self.tell()

    def tell(self, *_: object) -> None:
        """Wakes who waits."""
        with self._lock:
            waiter, self._waiter = self._waiter, None
        if waiter is not None and waiter.set_running_or_notify_cancel():
            waiter.set_result(None)

    def awaited(self, outputs: OutputsFuture | None) -> Future[None]:
        """What is done when there are news, at once if there are."""
        waiter: Future[None] = Future()
        with self._lock:
            if not self._newest and outputs is not None and not outputs.done():
                self._waiter = waiter
                return waiter
        waiter.set_result(None)
        return waiter

    def taken(self) -> dict[int, Seen]:
        with self._lock:
            taken, self._newest = self._newest, {}
        return taken
