"""Dynamic batching: requests of many threads and coroutines, merged into batches that fill the device."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from artifex.generative_models.core.endpoint import Model, sample_key
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.batching.futures import LoopFuture, OutputsFuture, deliver
from artifex.generative_models.inference.batching.queue import Outputs, Request, RequestQueue
from artifex.generative_models.inference.batching.scheduler import Scheduler
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.generative_models.inference.executor.executor import Executor, Inputs, executor_for
from artifex.generative_models.inference.offline.batch import sampling_inputs

if TYPE_CHECKING:
    from typing import Self

    from flax import nnx
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Key


class Batcher:
    """Merges the requests of any number of threads and coroutines into batches.

    An idle device takes what is there at once; while it is busy, the next batch grows, up to the executor's
    largest. Requests of one endpoint share batches whatever their per-row inputs and seeds; other options
    make batches of their own; the oldest request goes first. By the row law each request gives what it would
    give alone.

    Close it when done, or use it in a `with` block; one that is left by an exception drops what waits.

    Args:
        model: A model with endpoints, or an executor of one.
        max_in_flight: Batches under way at once; None is one more than compute in parallel, so that copies
            and queueing overlap with computation.
        max_delay: Seconds that a batch which is not full waits for more requests, for fuller batches at the
            cost of latency.
        max_queued_rows: Rows that may wait.
        max_queued_bytes: Bytes that the inputs and outputs of waiting requests may take.

    Raises:
        InputError: A limit below 1, or a delay that is negative or not finite.
    """

    def __init__(
        self,
        model: Model | Executor,
        *,
        max_in_flight: int | None = None,
        max_delay: float = 0.0,
        max_queued_rows: int = 1 << 16,
        max_queued_bytes: int = 1 << 30,
    ):
        self.executor = executor_for(model)
        if max_in_flight is None:
            max_in_flight = self.executor.executions_in_flight
        limits = {
            "max_in_flight": max_in_flight,
            "max_queued_rows": max_queued_rows,
            "max_queued_bytes": max_queued_bytes,
        }
        for name, limit in limits.items():
            if limit < 1:
                raise InputError(f"{name}: expected at least 1, got {limit}")
        if not 0 <= max_delay < float("inf"):
            raise InputError(f"max_delay: expected seconds from 0, got {max_delay}")
        self._scheduler = Scheduler(
            self.executor,
            deliver,
            RequestQueue(max_queued_rows, max_queued_bytes),
            max_in_flight=max_in_flight,
            max_delay=max_delay,
        )
        # The threads know the scheduler alone, so a batcher that is dropped without close() ends them.
        weakref.finalize(self, self._scheduler.close, drain=False).atexit = False

    def submit(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        key: Key[Array, ""] | None = None,
        keys: Key[Array, " rows"] | None = None,
        num_rows: int | None = None,
        first_row: int = 0,
        outputs: Iterable[str] | None = None,
        timeout: float | None = None,
        **options: Hashable,
    ) -> OutputsFuture:
        """Queues a call, from any thread.

        Args:
            endpoint: Name of the endpoint.
            inputs: Arrays [rows, ...] by name, as `Executor` takes them. They are not copied: leave them as
                they are until the future is done.
            seed: Row i is sample i of `nnx.Rngs(seed)`; or one seed a row, which is then its sample 0.
            key: A key instead: row i uses `fold_in(key, i)`.
            keys: One key a row instead.
            num_rows: Number of rows, where no input tells it.
            first_row: Number of the first row, where this is a part of a longer job.
            outputs: Names of the outputs to return; None is all.
            timeout: Seconds until it is given up, if none of its rows is under way then.
            **options: Static options of the endpoint.

        Raises:
            InputError: As for a call of `Executor`; a negative timeout; more than the queue ever holds.
            InputTypeError: As for a call of `Executor`.
            Overloaded: The queue is full.
            ClosedError: The batcher is closed.

        The future may raise `DeadlineExceededError`, `ClosedError` after `close(drain=False)`, or whatever
        running the call alone raises.
        """
        job = self.executor.check(
            endpoint,
            inputs,
            seed=seed,
            key=key,
            keys=keys,
            num_rows=num_rows,
            first_row=first_row,
            values=True,
            **options,
        )
        request = Request(job, outputs, timeout)
        request.future = future = OutputsFuture(self._scheduler, request)
        self._scheduler.add(request)
        return future

    def submit_async(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        key: Key[Array, ""] | np.ndarray | None = None,
        keys: Key[Array, " rows"] | None = None,
        num_rows: int | None = None,
        first_row: int = 0,
        outputs: Iterable[str] | None = None,
        timeout: float | None = None,
        **options: Hashable,
    ) -> asyncio.Future[Outputs]:
        """Queues a call from a coroutine: `submit` for the running event loop alone, at less cost.

        Arguments and errors are those of `submit`, but that values which are not finite come to light with
        their batch: the future then raises `InputError`. Cancelling a task that awaits it drops the request.

        Raises:
            RuntimeError: No event loop runs in this thread.
        """
        job = self.executor.check(
            endpoint,
            inputs,
            seed=seed,
            key=key,
            keys=keys,
            num_rows=num_rows,
            first_row=first_row,
            values=False,
            **options,
        )
        request = Request(job, outputs, timeout)
        request.future = future = LoopFuture(loop=asyncio.get_running_loop())
        future.scheduler, future.request = self._scheduler, request
        self._scheduler.add(request)
        return future

    def stats(self) -> dict[str, BatcherStats]:
        """Counters of each endpoint that was called."""
        return self._scheduler.stats()

    def close(self, *, drain: bool = True) -> None:
        """Refuses what is new, finishes what waits, and waits for that; a second call only waits.

        Called by a future's callback, which runs on one of the batcher's own threads, it does not wait.

        Args:
            drain: False fails what waits with `ClosedError` instead, and finishes only what is under way.
        """
        self._scheduler.close(drain=drain)
        self._scheduler.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(drain=error is None)


class AsyncInferenceServer:
    """A model for the coroutines of one process: concurrent requests are batched.

    Results are NumPy arrays: to make a JAX array of one costs more than to compute it. Cancelling a task that
    awaits a result drops its request. Shut it down when done, or use it in an `async with` block.

    Args:
        model: A model with endpoints, or an executor of one.
        max_workers: Batches under way at once.

    Raises:
        InputError: `max_workers` below 1. All methods raise what `Batcher.submit` does, when awaited.
    """

    def __init__(self, model: Model | Executor, max_workers: int = 4):
        self.batcher = Batcher(model, max_in_flight=max_workers)

    async def encode_async(self, images: ArrayLike) -> Float[np.ndarray, "rows latent"]:
        """Encodes pictures [rows, H, W, C] to the means of their posteriors."""
        return (await self.batcher.submit_async("encode", {"x": images}, outputs=("mean",)))["mean"]

    async def decode_async(self, latents: ArrayLike) -> Float[np.ndarray, "rows h w c"]:
        """Decodes latents [rows, latent]."""
        return (await self.batcher.submit_async("decode", {"z": latents}))["x"]

    async def reconstruct_async(self, images: ArrayLike) -> Float[np.ndarray, "rows h w c"]:
        """Encodes and decodes pictures [rows, H, W, C]."""
        return (await self.batcher.submit_async("reconstruct", {"x": images}))["x"]

    async def generate_async(
        self, num_samples: int, rngs: nnx.Rngs, *, temperature: float = 1.0
    ) -> Float[np.ndarray, "rows h w c"]:
        """Draws samples: those of `batch_generate_samples` with the same generators.

        Args:
            num_samples: How many, from 1.
            rngs: Random number generators; one `sample` key is drawn.
            temperature: Standard deviation of the prior's noise, from 0; 1 is the model's own.
        """
        inputs = sampling_inputs(self.batcher.executor, num_samples, temperature)
        outputs = self.batcher.submit_async("generate", inputs, key=sample_key(rngs), num_rows=num_samples)
        return (await outputs)["x"]

    def shutdown(self) -> None:
        """Finishes what was asked for and refuses what is new."""
        self.batcher.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        await asyncio.to_thread(self.batcher.close, drain=error is None)


_shared: weakref.WeakValueDictionary[int, Batcher] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def batcher_for(model: Model | Executor) -> Batcher:
    """The batcher that streams over one model share; it ends when none of them holds it any more."""
    executor = executor_for(model)
    with _shared_lock:
        batcher = _shared.get(id(executor))
        if batcher is None:
            batcher = _shared[id(executor)] = Batcher(executor)
        return batcher
