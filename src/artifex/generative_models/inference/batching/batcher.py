"""Dynamic batching: requests of many threads and coroutines, merged into batches that fill the device."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Said, checked_fields
from artifex.generative_models.core.keys import RowKeys
from artifex.generative_models.inference.batching.futures import LoopFuture, OutputsFuture, deliver
from artifex.generative_models.inference.batching.previews import Preview, Previews
from artifex.generative_models.inference.batching.queue import Outputs, Request, RequestQueue
from artifex.generative_models.inference.batching.scheduler import Scheduler
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.jobs import Inputs, Job, Late
from artifex.generative_models.inference.executor.shared import executor_for

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Array, Key


class Batcher:
    """Merges the requests of any number of threads and coroutines into batches.

    An idle device takes what is there at once; while it is busy, the next batch grows, up to the executor's
    largest. Requests of one endpoint share batches whatever their per-row inputs and seeds; other options
    make batches of their own, and take turns. The oldest request goes first, but small ones do not wait for
    all rows of a large one. By the row law each request gives what it would give alone.

    Close it when done, or use it in a `with` block; one that is left by an exception drops what waits.

    Args:
        model: A model with endpoints, or an executor of one.
        max_in_flight: Batches under way at once; None is one more than compute in parallel, so that copies
            and queueing overlap with computation.
        max_delay: Seconds that a batch which is not full waits for more requests, for fuller batches at the
            cost of latency.
        max_queued_rows: Rows that may wait.
        max_queued_bytes: Bytes that the inputs and outputs of waiting requests may take.
        slots: Whether rows of models that take steps join and leave running batches; else whole batches run
            from their first step to the last of any row.
        deterministic: Whether everything runs in batches of one size, so that the bits of a sample do not
            depend on what else there is to do. It is that of an executor with only one, else 8 on a CPU and
            the largest elsewhere; `docs/concurrency.md` says what that costs.

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
        slots: bool = True,
        deterministic: bool = False,
    ):
        self.executor = executor_for(model)
        if deterministic and len(self.executor.batch_sizes) > 1:
            self.executor = self.executor.remade(batch_sizes=[self.executor.usual_width])
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
        self.max_queued_rows, self.max_queued_bytes = max_queued_rows, max_queued_bytes
        self._scheduler = Scheduler(
            self.executor,
            deliver,
            RequestQueue(max_queued_rows, max_queued_bytes, slots=slots),
            max_in_flight=max_in_flight,
            max_delay=max_delay,
        )
        # The threads know the scheduler alone, so a batcher that is dropped without close() ends them, once
        # what was submitted has run.
        weakref.finalize(self, self._scheduler.close, drain=True).atexit = False

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
        on_preview: Callable[[Preview], object] | None = None,
        every: int = 1,
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
            timeout: Seconds until it is given up, if none of its rows is under way then; where the model
                takes steps, if they are not done.
            on_preview: Called with what rows of a model that takes steps give by now, in a thread of its own.
                Who is slow is given the newest, and holds nothing up.
            every: Steps of a row between two previews of it, from 1.
            **options: Static options of the endpoint, and what else its callers may say: its fields, for all
                rows or one a row.

        Raises:
            InputError: As for a call of `Executor`; a field that does not fit; a negative timeout; more than
                the queue ever holds; `every` below 1; previews of an endpoint that takes no steps.
            InputTypeError: As for a call of `Executor`.
            Overloaded: The queue is full.
            ClosedError: The batcher is closed.

        The future may raise `DeadlineExceededError`, `ClosedError` after `close(drain=False)`, or whatever
        running the call alone raises.
        """
        identity = {"seed": seed, "key": key, "keys": keys, "first_row": first_row}
        job = self._checked(endpoint, inputs, num_rows, identity, options, values=True)
        previews = None if on_preview is None else Previews(every, on_preview)
        request = Request(job, outputs, timeout, previews)
        request.future = future = OutputsFuture(self._scheduler, request)
        self._scheduler.add(request)
        return future

    def submit_async(
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
        on_preview: Callable[[Preview], object] | None = None,
        every: int = 1,
        **options: Hashable,
    ) -> asyncio.Future[Outputs]:
        """Queues a call from a coroutine: `submit` for the running event loop alone, at less cost.

        Arguments and errors are those of `submit`, but that values which are not finite come to light with
        their batch: the future then raises `InputError`. Cancelling a task that awaits it drops the request.
        `on_preview` is called in the event loop.

        Raises:
            RuntimeError: No event loop runs in this thread.
        """
        identity = {"seed": seed, "key": key, "keys": keys, "first_row": first_row}
        job = self._checked(endpoint, inputs, num_rows, identity, options, values=False)
        return self.submit_job(job, outputs=outputs, timeout=timeout, on_preview=on_preview, every=every)

    def submit_job(
        self,
        job: Job,
        *,
        outputs: Iterable[str] | None = None,
        timeout: float | None = None,
        only_waits: bool = False,
        on_preview: Callable[[Preview], object] | None = None,
        every: int = 1,
    ) -> asyncio.Future[Outputs]:
        """`submit_async` of what `Executor.check` has checked already.

        With `only_waits` the timeout of a model that takes steps, too, is over once a row is under way.

        Raises:
            InputError: An unknown output, a negative timeout, or more than the queue ever holds.
            Overloaded: The queue is full.
            ClosedError: The batcher is closed.
            RuntimeError: No event loop runs in this thread.
        """
        loop = asyncio.get_running_loop()
        previews = None if on_preview is None else Previews(every, on_preview, loop)
        request = Request(job, outputs, timeout, previews, only_waits=only_waits)
        request.future = future = LoopFuture(loop=loop)
        future.scheduler, future.request = self._scheduler, request
        self._scheduler.add(request)
        return future

    def _checked(
        self,
        endpoint: str,
        inputs: Inputs | None,
        num_rows: int | None,
        identity: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        values: bool,
    ) -> Job:
        """A checked call; what is made of fields is made when its rows are about to run."""
        made = self.executor.endpoints.get(endpoint)
        given, late = dict(inputs or {}), None
        if made is not None and made.says is not None and given.keys() <= made.given.keys():
            named = {name: options[name] for name in made.says.fields if name in options}
            options = {name: value for name, value in options.items() if name not in named}
            rows = num_rows if num_rows is not None else _num_rows(identity, given, named)
            said = Said(made.says, checked_fields(endpoint, made.says.fields, named, rows))
            options |= said.options
            late = Late([name for name in made.inputs if name not in made.given], said.rows)
            num_rows = rows
        return self.executor.check(
            endpoint, given, num_rows=num_rows, values=values, late=late, **identity, **options
        )

    def warmup(
        self, endpoints: Iterable[str] | None = None, batch_sizes: Iterable[int] | None = None
    ) -> None:
        """Compiles ahead of the first request; after it no request with default options compiles anything.

        Args:
            endpoints: Names of the endpoints; None is all.
            batch_sizes: Which of those that each is run in; None is all.

        Raises:
            InputError: An unknown endpoint.
            OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
        """
        for endpoint in self.executor.endpoints if endpoints is None else endpoints:
            for size in self.batch_sizes_of(endpoint) if batch_sizes is None else batch_sizes:
                self._scheduler.prepare(endpoint, size)

    def batch_sizes_of(self, endpoint: str) -> tuple[int, ...]:
        """The row counts that an endpoint runs in here, ascending.

        Raises:
            InputError: An unknown endpoint.
        """
        return self._scheduler.sizes(endpoint)

    def stats(self) -> dict[str, BatcherStats]:
        """Counters of each endpoint that was called."""
        return self._scheduler.stats()

    def close(self, *, drain: bool = True) -> None:
        """Refuses what is new, finishes what waits, and waits for that; a second call only waits.

        Called by a future's callback, which runs on one of the batcher's own threads, it does not wait.

        Args:
            drain: False fails what waits with `ClosedError` instead, and finishes only what is under way; of
                models that take steps, rows under way fail at the next steps.
        """
        self._scheduler.close(drain=drain)
        self._scheduler.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(drain=error is None)


def _num_rows(identity: Mapping[str, Any], *given: Mapping[str, Any]) -> int | None:
    """How many rows there are, as whatever is one a row says."""
    if identity["keys"] is not None:
        return identity["keys"].num_rows if isinstance(identity["keys"], RowKeys) else len(identity["keys"])
    each = [identity["seed"], *(value for values in given for value in values.values())]
    sizes = [len(value) for value in each if np.ndim(value) or isinstance(value, list | tuple | range)]
    return max(sizes, default=None)


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
