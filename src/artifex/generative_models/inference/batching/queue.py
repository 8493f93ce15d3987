"""The requests that wait for an executor: bounded, oldest first, with deadlines. Its user locks."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import InputError, Overloaded
from artifex.generative_models.inference.batching.previews import Previews
from artifex.generative_models.inference.executor.jobs import Job
from artifex.generative_models.inference.executor.program import Program

Outputs = dict[str, np.ndarray]
LineKey = tuple[int, bool]  # a program's, and whether the line is one of large requests


class Request:
    """A checked call that waits for its turn, or of which rows are under way.

    Args:
        job: The call.
        wanted: Names of the outputs to return; None is all.
        timeout: Seconds until it is given up if none of its rows is under way; of a loop, if they are not
            done.
        previews: Where looks at a loop's rows go.
        only_waits: Whether the timeout ends for a loop, too, when a row is under way.

    Raises:
        InputError: An unknown output, a timeout that is negative or not a number, or previews of what takes
            no steps.
    """

    __slots__ = (
        "cause",
        "deadline",
        "ended",
        "future",
        "in_slots",
        "is_large",
        "is_seen",
        "job",
        "num_missing",
        "num_taken",
        "only_waits",
        "outputs",
        "previews",
        "submitted",
        "wanted",
    )

    def __init__(
        self,
        job: Job,
        wanted: Iterable[str] | None,
        timeout: float | None,
        previews: Previews | None = None,
        *,
        only_waits: bool = False,
    ):
        if timeout is not None and not timeout >= 0:
            raise InputError(f"{job.program.name}: timeout: expected seconds from 0, got {timeout}")
        there = job.program.outputs
        self.wanted = there if wanted is None else tuple(wanted)
        for name in self.wanted:
            if name not in there:
                raise InputError(
                    f"{job.program.name}: no output {name[:100]!r}; there are {', '.join(there)}"
                )
        if previews is not None and not job.program.takes_steps:
            raise InputError(f"{job.program.name}: it takes no steps, so it has no previews")
        self.job = job
        self.previews = previews
        self.only_waits = only_waits
        self.submitted = time.perf_counter()
        self.deadline = None if timeout is None else self.submitted + timeout
        self.is_large = False  # among those whose rows are taken one by one
        self.num_taken = 0  # rows that are under way or done
        self.num_missing = job.num_rows
        self.outputs: Outputs | None = None  # while it is put together from several batches
        self.in_slots = False  # whether its rows are taken one by one
        self.is_seen = False  # whether there was a preview
        self.ended = False  # answered, failed or dropped
        self.cause = "cancelled"  # why rows leave that are not done when it has ended
        self.future: Any = None  # where the answer goes

    @property
    def num_under_way(self) -> int:
        """Rows that are under way."""
        return self.num_taken - (self.job.num_rows - self.num_missing)


Row = tuple[Request, int]
Span = tuple[Request, int, int]  # rows from a start to a stop of a request, in a batch
Answer = tuple[Request, Outputs | Exception]


class Line:
    """The waiting requests of one endpoint with one choice of options, oldest first.

    Args:
        program: What runs them.
        key: Its key in the queue.
        is_for_slots: Whether its rows are taken one by one.
    """

    def __init__(self, program: Program, key: LineKey, is_for_slots: bool):
        self.program = program
        self.key = key
        self.is_for_slots = is_for_slots
        self.requests: OrderedDict[Request, None] = OrderedDict()
        self.num_rows = 0
        self.served = 0.0  # when rows were last taken, on the clock of `time.perf_counter`

    @property
    def since(self) -> float:
        """Since when it has waited for its turn."""
        return max(self.first.submitted, self.served)

    @property
    def first(self) -> Request:
        """The oldest."""
        return next(iter(self.requests))


class RequestQueue:
    """Waiting requests, in a line for each endpoint and choice of options.

    Args:
        max_rows: Rows that may wait.
        max_bytes: Bytes that the inputs and outputs of waiting requests may take.
        slots: Whether rows of loops are taken one by one, large requests and small ones apart.
    """

    def __init__(self, max_rows: int, max_bytes: int, *, slots: bool = True):
        self.has_slots = slots
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self._lines: dict[LineKey, Line] = {}  # none is empty
        self._num_rows = 0
        self._num_bytes = 0
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; may hold requests that wait no more
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Request]:
        for line in list(self._lines.values()):
            yield from list(line.requests)

    def add(self, request: Request) -> None:
        """Puts a request at the end of its line.

        Raises:
            InputError: It is larger than the queue.
            Overloaded: There is no room now.
        """
        job = request.job
        num_rows, num_bytes = job.num_rows, job.num_bytes
        if self._num_rows + num_rows > self.max_rows or self._num_bytes + num_bytes > self.max_bytes:
            if num_rows > self.max_rows or num_bytes > self.max_bytes:
                raise InputError(
                    f"{job.program.name}: {num_rows} rows ({num_bytes} bytes) never fit a queue of "
                    f"{self.max_rows} rows ({self.max_bytes} bytes); send it in parts"
                )
            raise Overloaded(
                f"{job.program.name}: no room for {num_rows} rows beside the {self._num_rows} that wait"
            )
        request.in_slots = self.has_slots and job.program.takes_steps
        key = self._key(request)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(job.program, key, request.in_slots)
        line.requests[request] = None
        line.num_rows += num_rows
        self._num_rows += num_rows
        self._num_bytes += num_bytes
        if request.deadline is not None:
            self._watch(request)

    def remove(self, request: Request) -> None:
        """Takes what is left of a request out, if it waits."""
        line = self._lines.get(self._key(request))
        if line is not None and request in line.requests:
            self._shrink(line, [(request, request.num_taken, request.job.num_rows)])

    def end(self, request: Request) -> None:
        """Marks a request as ended and takes what is left of it out."""
        request.ended = True
        if request.previews is not None:
            request.previews.end()
        self.remove(request)

    def take(self, first: Request, num_rows: int) -> list[Span]:
        """Takes so many rows, at most all, of the line that a request is at the head of.

        The oldest request gets half of them, then come those that need no more than a quarter, and what is
        left goes to the others, the smallest first: so none waits behind the thousands of rows of another.
        """
        line = self._lines[self._key(first)]
        line.served = time.perf_counter()
        taken: dict[Request, int] = {}  # rows of each
        large: list[Request] = []
        few = max(num_rows // 4, 1)
        left = num_rows
        for request in line.requests:
            missing = request.job.num_rows - request.num_taken
            if missing > few:
                large.append(request)
                missing = 0 if taken else -(-num_rows // 2)
            if missing:
                taken[request] = min(missing, left, request.job.num_rows - request.num_taken)
                left -= taken[request]
            if not left:
                break
        for request in sorted(large, key=lambda request: request.job.num_rows - request.num_taken):
            more = min(left, request.job.num_rows - request.num_taken - taken.get(request, 0))
            if more:
                taken[request] = taken.get(request, 0) + more
                left -= more
            if not left:
                break
        spans = [(request, request.num_taken, request.num_taken + rows) for request, rows in taken.items()]
        for request, _, stop in spans:
            request.num_taken = stop
        self._shrink(line, spans)
        return spans

    def take_rows(self, line: Line, num_rows: int) -> list[Row]:
        """Takes so many rows, at most all, of a line for slots.

        Small requests go in the order in which they came. Large ones share: the next row is of the one that
        has the fewest under way.
        """
        taken: list[Row] = []
        if line.key[1] and len(line.requests) > 1:
            order = itertools.count()
            shares = [(request.num_under_way, next(order), request) for request in line.requests]
            heapq.heapify(shares)
            for _ in range(min(num_rows, line.num_rows)):
                under_way, place, request = heapq.heappop(shares)
                taken += self._take_of(line, request, 1)
                if request.num_taken < request.job.num_rows:
                    heapq.heappush(shares, (under_way + 1, place, request))
            return taken
        for request in list(itertools.islice(line.requests, num_rows)):
            taken += self._take_of(line, request, num_rows - len(taken))
            if len(taken) == num_rows:
                break
        return taken

    def _take_of(self, line: Line, request: Request, most: int) -> list[Row]:
        start = request.num_taken
        stop = request.num_taken = min(start + most, request.job.num_rows)
        self._shrink(line, [(request, start, stop)])
        return [(request, row) for row in range(start, stop)]

    def loops(self) -> list[Line]:
        """The lines whose rows are for slots."""
        return [line for line in self._lines.values() if line.is_for_slots]

    def line(self, key: LineKey) -> Line | None:
        """The line of a key, if anything waits in it."""
        return self._lines.get(key)

    def heads(self) -> list[tuple[Request, int]]:
        """Of each line that is not for slots the first request and the rows that wait, the oldest first."""
        lines = [line for line in self._lines.values() if not line.is_for_slots]
        in_turn = sorted(lines, key=lambda line: line.since) if len(lines) > 1 else lines
        return [(line.first, line.num_rows) for line in in_turn]

    @property
    def next_deadline(self) -> float | None:
        """When `expired` may next have something, on the clock of `time.perf_counter`."""
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self) -> list[Request]:
        """Requests whose deadline is over before any of their rows was taken; they wait until removed."""
        expired = []
        if not self._lines:
            self._deadlines.clear()
        now = time.perf_counter() if self._deadlines else 0.0
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.ended and not request.num_taken:
                expired.append(request)
        return expired

    def _key(self, request: Request) -> LineKey:
        return id(request.job.program), request.in_slots and request.is_large

    def _shrink(self, line: Line, spans: list[Span]) -> None:
        num_rows = sum([stop - start for _, start, stop in spans])
        line.num_rows -= num_rows
        self._num_rows -= num_rows
        for request, start, stop in spans:
            self._num_bytes -= (stop - start) * request.job.bytes_per_row
            if stop == request.job.num_rows:
                del line.requests[request]
        if not line.requests:
            del self._lines[line.key]

    def _watch(self, request: Request) -> None:
        """Remembers a deadline, and forgets those of requests that wait no more when they are many."""
        heapq.heappush(self._deadlines, (request.deadline or 0.0, next(self._order), request))
        if len(self._deadlines) > 64 + 2 * sum(len(line.requests) for line in self._lines.values()):
            self._deadlines = [
                entry for entry in self._deadlines if not entry[2].ended and not entry[2].num_taken
            ]
            heapq.heapify(self._deadlines)
