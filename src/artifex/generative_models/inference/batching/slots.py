"""Rows of models that take steps, which join and leave running batches.

Between a few steps and the next, rows that are done leave their places in a batch on the device, and others
that wait take them. So a row with few steps does not wait until one with many is done. Each of the
executions that compute at the same time is a lane: a thread with batches of its own. On accelerators all
rows that find a place run side by side. On a CPU, where a step takes the longer the wider it is, lanes run
few at once, first come, first served, as long as not enough are there to fill all places; one more joins
whenever all beside it have taken some steps.

Large requests and small ones have batches of their own, as endpoints have, and these share the time of the
lanes equally: so whoever comes with one row starts at the next steps, however many rows others have.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from artifex.generative_models.core.errors import (
    ArtifexError,
    ClosedError,
    DeadlineExceededError,
    OutOfDeviceMemoryError,
)
from artifex.generative_models.inference.batching.compiling import CompileLane
from artifex.generative_models.inference.batching.places import (
    Flow,
    Group,
    Lane,
    Seat,
    Turn,
    spans,
    widths_between,
)
from artifex.generative_models.inference.batching.previews import Seen
from artifex.generative_models.inference.batching.queue import (
    Answer,
    LineKey,
    Request,
    RequestQueue,
    Row,
)
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.jobs import Job, Part, merged
from artifex.generative_models.inference.executor.overlap import is_out_of_memory
from artifex.generative_models.inference.executor.program import FINE, FINITE, Program
from artifex.generative_models.inference.executor.stepping import Told

_SHARE_OF_HOST = 0.03  # of a lane's time that may go to the host's work between steps
_LEAST_SECONDS = 0.05  # of an execution, since to begin one takes one or two thousandths
_MOST_STEPS = 64  # without a look at who came and went
_LARGE = 4  # the share of all places that a request must need more than to be large
_MEMORY = 0.2  # of the last time, in a mean


class Slots:
    """Runs the rows of loops, in lanes.

    Args:
        executor: Runs the batches.
        answer: Called with the requests that ended, each with its outputs or its error.
        queue: The requests that wait.
        stats: The counters of each endpoint.
        lock: Guards queue, counters and all that follows.
        compiling: Compiles what is missing.
    """

    def __init__(
        self,
        executor: Executor,
        answer: Callable[[Iterable[Answer]], None],
        queue: RequestQueue,
        stats: defaultdict[str, BatcherStats],
        lock: threading.RLock,
        compiling: CompileLane,
    ):
        self.executor = executor
        self._answer = answer
        self._queue = queue
        self._stats = stats
        self._lock = lock
        self._compiling = compiling
        self._changed = threading.Condition(lock)
        compiling.waiting.append(self._changed)
        self._flows: dict[LineKey, Flow] = {}
        self._step_seconds: dict[tuple[LineKey, int], float] = {}  # as it was of late, by line and width
        self._lanes: list[Lane] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._drain = True

    def is_large(self, job: Job) -> bool:
        """Whether a request is one that others should not wait for."""
        places = self.executor.parallel_executions * self.executor.slot_widths(job.program)[-1]
        return job.num_rows > max(1, places // _LARGE)

    def wake(self) -> None:
        """Has lanes look at the queue; called with the lock."""
        if not self._threads:
            self._lanes = [Lane() for _ in range(self.executor.parallel_executions)]
            self._threads = [
                threading.Thread(target=self._serve, args=(lane,), name=f"artifex-slots-{i}", daemon=True)
                for i, lane in enumerate(self._lanes)
            ]
            for thread in self._threads:
                thread.start()
        self._changed.notify_all()

    def prepare(self, program: Program, width: int) -> None:
        """Compiles all that a width needs, and ways to it from those beside it; called without the lock.

        Raises:
            OutOfDeviceMemoryError: Not even the smallest width fits the device.
        """
        with self._lock:
            ready = [
                size for size in self.executor.slot_widths(program) if self._compiling.is_done(program, size)
            ]
        self.executor.prepare_slots(program, width, ready)
        with self._lock:
            self._compiling.mark(program, width)

    def close(self, *, drain: bool) -> None:
        """Ends the lanes once all rows are done, or drops them; called with the lock."""
        self._closed = True
        self._drain = self._drain and drain
        self._changed.notify_all()

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads of the lanes."""
        return self._threads

    def places(self) -> Iterator[tuple[str, int]]:
        """Of each batch its endpoint's name and its width; called with the lock."""
        for group in itertools.chain.from_iterable(lane.groups for lane in self._lanes):
            yield group.flow.program.name, len(group.seats)

    def _serve(self, lane: Lane) -> None:
        while True:
            with self._lock:
                following = self._next(lane)
            if following is None:
                return
            ended, turn = following
            if ended:
                self._answer(ended)
            if turn is not None:
                self._answer(self._run(lane, turn))
            del following, ended, turn  # an idle lane keeps nothing alive

    def _next(self, lane: Lane) -> tuple[list[Answer], Turn | None] | None:
        """Waits for something to do; None at the end."""
        while True:
            ended = self._evicted(lane)
            turn = self._turn(lane)
            if ended or turn is not None:
                return ended, turn
            if self._closed and not self._queue.loops():
                return None
            self._changed.wait()

    def _evicted(self, lane: Lane) -> list[Answer]:
        """Takes out the rows of requests that ended or are late, and without draining all of them."""
        ended: list[Answer] = []
        now = time.perf_counter()
        for group in lane.groups:
            rows = group.rows
            stats = self._stats[group.flow.program.name]
            for request in dict.fromkeys(request for request, _ in rows):
                if (why := self._why_late(request, now)) is not None:
                    self._queue.end(request)
                    ended.append((request, why))
                    if isinstance(why, ClosedError):
                        stats.cancelled += 1
                    else:
                        stats.expired += 1
                        request.cause = "expired"
            self._clear(group, [place for place, seat in group.seated if seat.request.ended])
            kept = [row for row in group.again if not row[0].ended]
            self._left(group, len(group.again) - len(kept))
            group.again = kept
            causes = Counter(request.cause for request, _ in rows if request.ended)
            stats.cancelled_rows += causes["cancelled"]
            stats.expired_rows += causes["expired"]
            stats.failed_rows += causes["failed"]
        lane.groups = [group for group in lane.groups if group.seated or group.again]
        return ended

    def _why_late(self, request: Request, now: float) -> Exception | None:
        name = request.job.program.name
        if request.ended:
            return None
        if self._closed and not self._drain:
            return ClosedError("the Batcher was closed before this was done")
        if request.deadline is not None and request.deadline <= now and not request.only_waits:
            return DeadlineExceededError(f"{name}: not done after {now - request.submitted:.3g} s")
        return None

    def _clear(self, group: Group, places: Iterable[int]) -> None:
        """Empties places."""
        for place in places:
            group.seats[place] = None
            self._left(group, 1)

    def _left(self, group: Group, num_rows: int) -> None:
        group.flow.under_way -= num_rows
        self._stats[group.flow.program.name].rows_in_flight -= num_rows

    def _turn(self, lane: Lane) -> Turn | None:
        """What is next: of all that has something to do here, what lanes have given the least time so far."""
        for line in self._queue.loops():
            if line.key not in self._flows:
                behind = min((flow.served for flow in self._flows.values()), default=0.0)
                self._flows[line.key] = Flow(line.program, line.key, behind)
        best: tuple[float, Flow, Group, int, Sequence[int]] | None = None
        for flow in list(self._flows.values()):
            waits = self._queue.line(flow.key)
            num_waiting = 0 if waits is None else waits.num_rows
            if not num_waiting and not flow.under_way:
                del self._flows[flow.key]
            elif best is None or flow.served <= best[0]:  # who came last goes first
                possible = self._possible(lane, flow, num_waiting)
                if possible is not None:
                    best = flow.served, flow, *possible
        if best is None:
            return None
        _, flow, group, num_new, widths = best
        waiting = self._queue.line(flow.key)
        if waiting is not None and len(group.again) < num_new:
            taken = self._queue.take_rows(waiting, num_new - len(group.again))
            now = time.perf_counter()
            stats = self._stats[flow.program.name]
            stats.queue_seconds += sum(now - request.submitted for request, row in taken if row == 0)
            self._left(group, -len(taken))
            group.again += taken
        lane.groups = [*(other for other in lane.groups if other is not group), group]
        is_eager = len(group.again) > num_new or self._queue.line(flow.key) is not None
        return Turn(group, num_new, widths, is_eager)

    def _possible(self, lane: Lane, flow: Flow, num_waiting: int) -> tuple[Group, int, Sequence[int]] | None:
        """What a flow has to do in a lane: with which rows, how many join them, and in how many places."""
        groups = [group for group in lane.groups if group.flow is flow]
        room = min(num_waiting, self._room(flow, groups, num_waiting))
        if not groups or (room and not any(group.is_open for group in groups)):
            groups.insert(0, Group(flow))
        group = groups[0]
        num_new = len(group.again) + (room if group.is_open else 0)
        num_seated, now = len(group.seated), len(group.seats)
        if not num_seated + num_new:
            return None
        ready = self._ready(flow.program, num_seated + num_new)
        width = next((size for size in ready if size >= num_seated + num_new), max(ready, default=now))
        width = max(width, now if width < num_seated else 0)
        if not width:
            return None  # until something is compiled
        widths = [width] if not now else widths_between(ready, now, width)
        return group, min(num_new, width - num_seated), widths

    def _room(self, flow: Flow, groups: Sequence[Group], num_waiting: int) -> int:
        """How many rows may join those that a flow has in a lane."""
        own = sum(len(group.rows) for group in groups)
        share = -(-(num_waiting + flow.under_way) // len(self._lanes))
        most = self.executor.rows_at_once(flow.program, share)
        if all(group.is_patient for group in groups):
            most = max(most, min(own + 1, share, self.executor.slot_widths(flow.program)[-1]))
        return max(0, most - own)

    def _ready(self, program: Program, num_rows: int) -> list[int]:
        """The widths that are compiled; the one that fits rows best will be."""
        sizes = self.executor.slot_widths(program)
        best = next((size for size in sizes if size >= num_rows), sizes[-1])
        ready = [size for size in sizes if self._compiling.is_done(program, size)]
        if best not in ready:
            self._compiling.ask(program, best, lambda: self.prepare(program, best))
        return ready

    def _run(self, lane: Lane, turn: Turn) -> list[Answer]:
        """Takes a turn: rows enter, take steps, and leave when they are done. Gives what ended by it."""
        group, name = turn.group, turn.group.flow.program.name
        answers: list[Answer] = []
        begin = time.perf_counter()
        stepping = 0.0
        try:
            self._enter(lane, turn, answers)
            entered = time.perf_counter()
            told, stepping = self._advance(lane, turn)
            advanced = time.perf_counter()
            self._harvest(group, told, answers)
        except Exception as error:  # whatever it is, it goes to the requests that it belongs to
            entered = advanced = time.perf_counter()
            self._split(lane, group, error, answers)
        end = time.perf_counter()
        lane.host_seconds = _mean(lane.host_seconds, end - begin - stepping)
        with self._lock:
            group.flow.served += end - begin
            stats = self._stats[name]
            stats.batches += 1
            stats.compute_seconds += end - begin
            num_requests = len({id(request) for request, _ in group.rows})
            stats.input_seconds += (entered - begin) * num_requests
            stats.infer_seconds += (advanced - entered) * num_requests
            stats.output_seconds += (end - advanced) * num_requests
            ended = []
            for request, found in answers:
                if request.ended:
                    continue
                self._queue.end(request)
                ended.append((request, found))
                if isinstance(found, Exception):
                    stats.failed += 1
                    request.cause = "failed"
                else:
                    stats.requests += 1
                    stats.request_seconds += end - request.submitted
            if self._closed:
                self._changed.notify_all()
        return ended

    def _enter(self, lane: Lane, turn: Turn, answers: list[Answer]) -> None:
        """Puts rows into the batch, which begins with the first and gets as wide as it should be."""
        group = turn.group
        parts, rows = self._parts(group, group.again[: turn.num_new], answers)
        if parts:
            job = self.executor.recheck(parts[0][0]).take_weights()
            if group.batch is None:
                group.batch = self.executor.slots(job, turn.widths[0])
                group.seats = [None] * turn.widths[0]
            elif not group.batch.runs(job):  # those under way end with the weights that they began with
                group.is_open = False
                with self._lock:
                    others = Group(group.flow, list(group.again))
                    group.again = []
                    lane.groups.append(others)
                return
        if group.batch is None:
            return
        if turn.widths and turn.widths[-1] != len(group.seats):
            group.resize(group.batch, turn.widths)
        if parts:
            places = group.seat(rows)
            del group.again[: len(rows)]
            group.batch.enter(merged(parts), places)

    def _parts(self, group: Group, rows: list[Row], answers: list[Answer]) -> tuple[list[Part], list[Row]]:
        """Rows that are to enter with all that they take, and which they are; some requests fail by it."""
        parts: list[Part] = []
        fine: list[Row] = []
        for request, start, stop in spans(rows):
            try:
                job = self.executor.recheck(request.job)
                if not job.is_finite:
                    job.check_finite(start, stop)
                parts.append((job, start, stop) if job.late is None else job.complete(start, stop))
                fine += [(request, row) for row in range(start, stop)]
            except Exception as error:  # of this request alone
                answers.append((request, error))
        bad = len(rows) - len(fine)
        if bad:
            with self._lock:
                self._left(group, bad)
            group.again[: len(rows)] = fine
        return parts, fine

    def _advance(self, lane: Lane, turn: Turn) -> tuple[Told | None, float]:
        """Takes steps; what the batch tells after them, and how long they took."""
        group = turn.group
        seated = group.seated
        if group.batch is None or not seated:
            return None, 0.0
        is_held = np.array([seat is None for seat in group.seats])
        width = group.flow.key, len(group.seats)
        of_a_step = self._step_seconds.get(width, 0.0)
        most = 1
        if of_a_step:
            least = max(_LEAST_SECONDS, lane.host_seconds / _SHARE_OF_HOST)
            most = math.ceil(least / of_a_step)
        for _, seat in seated:
            previews = seat.request.previews
            if previews is not None:
                most = min(most, previews.every - seat.steps % previews.every)
        start = time.perf_counter()
        told = group.batch.advance(max(1, min(most, _MOST_STEPS)), is_held, is_eager=turn.is_eager)
        seconds = time.perf_counter() - start
        num_steps = max(int(told.steps[place]) - seat.steps for place, seat in seated)
        if num_steps:
            self._step_seconds[width] = _mean(of_a_step, seconds / num_steps)
        with self._lock:
            stats = self._stats[group.flow.program.name]
            stats.steps += num_steps
            stats.row_steps += sum(int(told.steps[place]) - seat.steps for place, seat in seated)
        for place, seat in seated:
            seat.steps = int(told.steps[place])
        return told, seconds

    def _harvest(self, group: Group, told: Told | None, answers: list[Answer]) -> None:
        """Takes rows that are done out of their places, and looks at those that are to be seen."""
        if told is None or group.batch is None:
            return
        seated = group.seated
        broken = [place for place, _ in seated if told.broken[place] != FINE]
        done = [place for place, _ in seated if told.rests[place] and place not in broken]
        shown = [
            place
            for place, seat in seated
            if place not in broken and place not in done and seat.is_to_be_seen
        ]
        for place in broken:
            seat = group.seats[place]
            assert seat is not None
            self._check(seat, {FINITE: told.broken[place : place + 1]}, answers)
        looked = group.batch.look([*done, *shown]) if done or shown else {}
        complete: list[Request] = []
        seen: dict[Request, dict[int, Seen]] = {}
        for i, place in enumerate([*done, *shown]):
            seat = group.seats[place]
            assert seat is not None
            row = {name: value[i : i + 1] for name, value in looked.items()}
            if i >= len(done):
                seat.shown = seat.steps
                wanted = {name: row[name][0].copy() for name in seat.request.wanted}
                seen.setdefault(seat.request, {})[seat.row] = seat.steps, wanted
                continue
            if seat.request.previews is not None:
                seat.request.previews.forget(seat.row)
            if self._check(seat, row, answers):
                self._fill(seat.request, seat.row, row)
                complete.append(seat.request)
        for request, rows in seen.items():
            assert request.previews is not None
            request.previews.put(rows)
        now = time.perf_counter()
        with self._lock:
            stats = self._stats[group.flow.program.name]
            for request in seen:
                if not request.is_seen:
                    request.is_seen = True
                    stats.previewed += 1
                    stats.preview_seconds += now - request.submitted
            self._clear(group, [*broken, *done])
            stats.rows += len(done)
            for request in complete:
                request.num_missing -= 1
                if not request.num_missing and not request.ended:
                    assert request.outputs is not None
                    answers.append((request, request.outputs))

    def _check(self, seat: Seat, results: dict[str, np.ndarray], answers: list[Answer]) -> bool:
        """Whether a row came out finite; its request fails else."""
        try:
            seat.request.job.check_results(seat.row, seat.row + 1, results)
        except ArtifexError as error:  # which says which row
            answers.append((seat.request, error))
            return False
        return True

    def _fill(self, request: Request, row: int, found: dict[str, np.ndarray]) -> None:
        """Copies a row into the outputs of its request."""
        with self._lock:
            if request.outputs is None:
                request.outputs = request.job.allocate(request.wanted)
        for name, output in request.outputs.items():
            output[row] = found[name][0]

    def _split(self, lane: Lane, group: Group, error: Exception, answers: list[Answer]) -> None:
        """Has the rows of a batch that failed start again.

        They do so in a narrower one where memory is too small, else in two, so that in the end a request that
        fails does so alone.
        """
        rows = group.rows
        requests = list(dict.fromkeys(request for request, _ in rows))
        middle = len(requests) // 2
        parts = [requests[:middle], requests[middle:]] if middle else []
        if is_out_of_memory(error) and group.batch is not None:
            try:
                self.executor.narrow(group.batch.program, group.batch.width, error)
                parts = [requests]
            except OutOfDeviceMemoryError as smallest:
                error, parts = smallest, []
        with self._lock:
            lane.groups = [other for other in lane.groups if other is not group]
            for part in parts:
                again = [row for row in rows if row[0] in part]
                lane.groups.append(Group(group.flow, again, is_open=False))
            if not parts:
                self._left(group, len(rows))
                answers += [(request, error) for request in requests]
            group.seats, group.again = [], []


def _mean(before: float, now: float) -> float:
    return now if not before else (1 - _MEMORY) * before + _MEMORY * now
