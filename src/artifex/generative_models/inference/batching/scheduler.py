"""The threads that turn waiting requests into batches."""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from artifex.generative_models.core.errors import ClosedError, DeadlineExceededError, InputError, Overloaded
from artifex.generative_models.inference.batching.compiling import CompileLane
from artifex.generative_models.inference.batching.queue import Answer, Outputs, Request, RequestQueue, Span
from artifex.generative_models.inference.batching.slots import Slots
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.jobs import merged
from artifex.generative_models.inference.executor.program import Program


@dataclass(slots=True)
class _Clock:
    """Seconds of one batch, by what they went into."""

    input: float = 0.0
    infer: float = 0.0
    output: float = 0.0


class Scheduler:
    """Runs waiting requests in batches, on threads of its own.

    Its threads are equal: whichever is idle takes the next batch and runs it. There is one more of them
    than batches may be in flight, so that one always watches the queue for deadlines. A thread that is done
    looks for the next batch itself, so under load nobody has to be woken.

    Args:
        executor: Runs the batches.
        answer: Called with the requests that ended, each with its outputs or its error, once each.
        queue: The requests that wait.
        max_in_flight: Batches under way at once.
        max_delay: Seconds that a batch which is not full may wait.
    """

    def __init__(
        self,
        executor: Executor,
        answer: Callable[[Iterable[Answer]], None],
        queue: RequestQueue,
        *,
        max_in_flight: int,
        max_delay: float,
    ):
        self.executor = executor
        self._answer = answer
        self.max_in_flight = max_in_flight
        self.max_delay = max_delay
        self._lock = threading.RLock()  # guards all that follows; reentrant, for finalizers
        self._changed = threading.Condition(self._lock)
        self._queue = queue
        self._in_flight = 0
        self._idle = 0  # threads that wait
        self._next_look = math.inf  # when, at the latest, one of them looks for deadlines by itself
        self._woken = False  # whether one of them is on its way
        self._closed = False
        self._drain = True
        self._stats: defaultdict[str, BatcherStats] = defaultdict(BatcherStats)
        self._compiling = CompileLane(self._lock)
        self._compiling.waiting.append(self._changed)
        self._slots = Slots(executor, answer, queue, self._stats, self._lock, self._compiling)
        self._threads = [
            threading.Thread(target=self._serve, name=f"artifex-batcher-{i}", daemon=True)
            for i in range(max_in_flight + 1)
        ]
        _open.add(self)
        for thread in self._threads:
            thread.start()

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InputError: It is larger than the queue.
            Overloaded: The queue is full.
            ClosedError: There is no queue any more.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("the Batcher is closed")
            request.is_large = request.job.program.takes_steps and self._slots.is_large(request.job)
            try:
                self._queue.add(request)
            except Overloaded:
                self._stats[request.job.program.name].overloaded += 1
                raise
            if request.in_slots:
                self._slots.wake()
            urgent = request.deadline is not None and request.deadline < self._next_look
            if urgent or (not request.in_slots and self._in_flight < self.max_in_flight):
                self._wake()

    def give_up(self, request: Request) -> bool:
        """Drops a request; False if it has ended already."""
        with self._lock:
            if request.ended:
                return False
            self._queue.end(request)
            request.future = None
            self._stats[request.job.program.name].cancelled += 1
            return True

    def stats(self) -> dict[str, BatcherStats]:
        """A copy of the counters, by endpoint."""
        with self._lock:
            stats = {name: BatcherStats(**vars(counters)) for name, counters in self._stats.items()}
            for request in self._queue:
                counters = stats.setdefault(request.job.program.name, BatcherStats())
                counters.queued_requests += 1
                counters.queued_rows += request.job.num_rows - request.num_taken
            for name, width in self._slots.places():
                stats[name].places += width
            return stats

    def prepare(self, endpoint: str, size: int) -> None:
        """Compiles a batch size of an endpoint with its default options, in the way that it is run."""
        for program in self.executor.programs(endpoint):
            if program.takes_steps and self._queue.has_slots:
                self._slots.prepare(program, size)
            else:
                self.executor.prepare(program, size)

    def sizes(self, endpoint: str) -> tuple[int, ...]:
        """The batch sizes that an endpoint runs in, ascending."""
        program = self.executor.programs(endpoint)[0]
        in_slots = program.takes_steps and self._queue.has_slots
        return self.executor.slot_widths(program) if in_slots else program.batch_sizes

    def close(self, *, drain: bool) -> None:
        """Refuses what is new and lets the threads end, once what waits is done or, without `drain`, now."""
        with self._lock:
            self._closed = True
            self._drain = self._drain and drain
            self._slots.close(drain=drain)
            if not self._drain:
                self._compiling.drop()
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the threads to end, unless it is one of them that asks."""
        threads = [*self._threads, *self._slots.threads]
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()
            self._compiling.join()

    def _serve(self) -> None:
        while True:
            with self._lock:
                dropped, batch = self._next()
            if dropped:
                self._answer(dropped)
            elif batch:
                try:
                    self._run(batch)
                finally:
                    with self._lock:
                        self._in_flight -= 1
            else:
                return
            del dropped, batch  # an idle thread keeps nothing alive

    def _next(self) -> tuple[list[Answer], list[Span]]:
        """Waits for requests to drop, or else for a batch to run; neither at the end."""
        while True:
            dropped = self._dropped()
            if dropped:
                return dropped, []
            batch, delay = self._batch() if self._in_flight < self.max_in_flight else ([], None)
            if batch:
                return [], batch
            if self._closed and not self._queue.heads() and (self._drain or not self._queue):
                self._changed.notify_all()
                return [], []
            now = time.perf_counter()
            look = math.inf if delay is None else now + delay
            if self._queue.next_deadline is not None:
                look = min(look, self._queue.next_deadline)
            self._next_look = look
            self._idle += 1
            self._changed.wait(None if look == math.inf else min(max(0.0, look - now), threading.TIMEOUT_MAX))
            self._idle -= 1
            self._woken = False
            self._next_look = math.inf

    def _dropped(self) -> list[Answer]:
        """Ends requests that are past their deadline and, when closed without draining, all that wait."""
        dropped: list[Answer] = []
        for request in self._queue.expired():
            name = request.job.program.name
            self._queue.end(request)
            self._stats[name].expired += 1
            seconds = time.perf_counter() - request.submitted
            dropped.append((request, DeadlineExceededError(f"{name}: still queued after {seconds:.3g} s")))
        if self._closed and not self._drain:
            for request in self._queue:
                self._queue.end(request)
                self._stats[request.job.program.name].cancelled += 1
                dropped.append((request, ClosedError("the Batcher was closed before this was run")))
        return dropped

    def _batch(self) -> tuple[list[Span], float | None]:
        """Takes the next batch; if there is none yet, says in how many seconds there will be."""
        heads = self._queue.heads()
        if not heads:
            return [], None
        now = time.perf_counter()
        delay: float | None = None
        for first, num_queued in heads:
            program = first.job.program
            if not (
                self._closed
                or num_queued >= program.max_batch_size
                or now >= first.submitted + self.max_delay
            ):
                left = first.submitted + self.max_delay - now
                delay = left if delay is None else min(delay, left)
                continue
            # What has waited to fill a batch is not cut up to share it out.
            parallel_executions = 1 if self.max_delay else self.executor.parallel_executions
            least = 1 if program.takes_steps else None
            num_rows = batch_rows(num_queued, program.batch_sizes, parallel_executions, least)
            if self._is_compiled(program, program.batch_size_for(num_rows)):
                break
        else:
            return [], delay
        batch = self._queue.take(first, num_rows)
        self._in_flight += 1
        stats = self._stats[first.job.program.name]
        stats.rows_in_flight += num_rows
        stats.queue_seconds += sum([now - request.submitted for request, start, _ in batch if not start])
        if self._queue and (self._in_flight < self.max_in_flight or self._queue.next_deadline is not None):
            self._wake()  # to take the next batch, or to watch in place of this thread
        return batch, None

    def _is_compiled(self, program: Program, size: int) -> bool:
        """Whether a batch size can be run at once; else it is compiled."""
        if size in program.executables or self._compiling.is_done(program, size):
            return True
        self._compiling.ask(program, size, lambda: self.executor.prepare(program, size))
        return False

    def _wake(self) -> None:
        """Has an idle thread look at the queue, unless one is on its way already."""
        if self._idle and not self._woken:
            self._woken = True
            self._changed.notify()

    def _run(self, batch: list[Span]) -> None:
        """Runs a batch and answers the requests that it completes."""
        start = time.perf_counter()
        clock = _Clock()
        answers = self._answers(batch, clock)
        end = time.perf_counter()
        num_rows = sum([stop - start for _, start, stop in batch])
        with self._lock:
            stats = self._stats[batch[0][0].job.program.name]
            stats.rows_in_flight -= num_rows
            stats.rows += num_rows
            stats.batches += 1
            stats.compute_seconds += end - start
            stats.input_seconds += clock.input * len(batch)
            stats.infer_seconds += clock.infer * len(batch)
            stats.output_seconds += clock.output * len(batch)
            for request, first, stop in batch:
                request.num_missing -= stop - first
            answers = [answer for answer in answers if _is_complete(*answer)]
            for request, answer in answers:
                self._queue.end(request)
                if isinstance(answer, Exception):
                    stats.failed += 1
                else:
                    stats.requests += 1
                    stats.request_seconds += end - request.submitted
        self._answer(answers)

    def _answers(self, batch: list[Span], clock: _Clock) -> list[Answer]:
        """Runs spans together; where they fail, in halves, so that each failing request fails alone.

        Returns:
            Each span's request, with its error or the outputs of which this span's rows are filled in.
        """
        begin = time.perf_counter()
        try:
            job = merged([(request.job, start, stop) for request, start, stop in batch])
            joined = time.perf_counter()
            outputs = self.executor.run(job)
        except Exception as error:  # whatever it is, it goes to the request that it belongs to
            failed = _not_finite(batch) if isinstance(error, InputError) else {}
            if not failed and len(batch) == 1:
                return [(batch[0][0], error)]
            rest = [span for span in batch if span[0] not in failed]
            cut = len(rest) if failed else len(rest) // 2
            parts = [part for part in (rest[:cut], rest[cut:]) if part]
            return [*failed.items(), *(answer for part in parts for answer in self._answers(part, clock))]
        ran = time.perf_counter()
        answers: list[Answer] = []
        first = 0
        for request, start, stop in batch:
            try:
                answers.append((request, self._fill(request, outputs, first, start, stop)))
            except Exception as error:  # such as no memory for this one's answer: the others have theirs
                answers.append((request, error))
            first += stop - start
        clock.input += joined - begin
        clock.infer += ran - joined
        clock.output += time.perf_counter() - ran
        return answers

    def _fill(self, request: Request, batch: Outputs, first: int, start: int, stop: int) -> Outputs:
        """Copies rows out of a batch, where they begin at `first`, into the outputs of their request."""
        last = first + stop - start
        if stop - start == request.job.num_rows:
            return {name: batch[name][first:last].copy() for name in request.wanted}
        with self._lock:
            if request.outputs is None:
                request.outputs = request.job.allocate(request.wanted)
            outputs = request.outputs
        for name, output in outputs.items():
            output[start:stop] = batch[name][first:last]
        return outputs


def batch_rows(
    num_queued: int, batch_sizes: tuple[int, ...], parallel_executions: int, least: int | None = None
) -> int:
    """How many of the rows that wait to run as one batch.

    Where several executions compute at the same time, which is on the CPU, they share the rows, but none gets
    fewer than are worth it. There time goes with the batch size, so one of which more than a quarter would
    stay empty is passed over for the next smaller one.

    Args:
        num_queued: Rows that wait, from 1.
        batch_sizes: The endpoint's, ascending.
        parallel_executions: How many executions compute at the same time.
        least: The fewest rows that are worth an execution of their own; None is half the largest batch, since
            smaller ones cost more a row (`benchmarks/batch_sizes.py`) and more scheduling.
    """
    largest = batch_sizes[-1]
    if parallel_executions == 1:
        return min(num_queued, largest)
    share = -(-num_queued // parallel_executions)
    num_rows = min(num_queued, largest, max(share, largest // 2 if least is None else least))
    padded = next(size for size in batch_sizes if size >= num_rows)
    if 4 * num_rows >= 3 * padded:
        return num_rows
    return max((size for size in batch_sizes if size <= num_rows), default=num_rows)


def _is_complete(request: Request, answer: Outputs | Exception) -> bool:
    """Whether a request ends with this answer: with its first error, or once none of its rows is missing."""
    return not request.ended and (isinstance(answer, Exception) or not request.num_missing)


def _not_finite(batch: list[Span]) -> dict[Request, Exception]:
    """The requests that brought NaNs or infinities into a batch."""
    failed: dict[Request, Exception] = {}
    for request, start, stop in batch:
        try:
            request.job.check_finite(start, stop)
        except InputError as error:
            failed[request] = error
    return failed


_open: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An interpreter that ends waits for the batches in flight, which must not outlive it, and no more."""
    schedulers = list(_open)
    for scheduler in schedulers:
        scheduler.close(drain=False)
    for scheduler in schedulers:
        scheduler.join()
