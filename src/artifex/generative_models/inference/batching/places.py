"""Who is where: rows in places of batches, batches in lanes. What becomes of them is `slots`' to say."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from artifex.generative_models.inference.batching.queue import LineKey, Request, Row, Span
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.slot_batch import SlotBatch

_PATIENCE_STEPS, _PATIENCE_SECONDS = 32, 1.0


@dataclass(slots=True)
class Seat:
    """A row under way.

    Args:
        request: Its request.
        row: Its number within the request.
        steps: Steps that it has taken.
        shown: Steps that it had taken when it was last shown.
        since: When it came, on the clock of `time.perf_counter`.
    """

    request: Request
    row: int
    steps: int = 0
    shown: int = 0
    since: float = field(default_factory=time.perf_counter)

    @property
    def is_to_be_seen(self) -> bool:
        """Whether it has taken the steps after which its caller wants to see it."""
        previews = self.request.previews
        return previews is not None and self.steps // previews.every > self.shown // previews.every


@dataclass(slots=True, eq=False)
class Flow:
    """All rows of one line, waiting and under way.

    Args:
        program: What runs them.
        key: Of the line.
        served: Seconds that lanes gave it, and those that others had before it came.
        under_way: Rows in places, and those that are to enter one.
    """

    program: Program
    key: LineKey
    served: float = 0.0
    under_way: int = 0


@dataclass(slots=True, eq=False)
class Group:
    """Rows in places of one batch on the device.

    Args:
        flow: Whose rows.
        again: Rows that are to enter it, and that no other lane may take.
        is_open: Whether others may join.
        batch: The batch; None until it begins.
        seats: What is in each place.
    """

    flow: Flow
    again: list[Row] = field(default_factory=list)
    is_open: bool = True
    batch: SlotBatch | None = None
    seats: list[Seat | None] = field(default_factory=list)

    @property
    def seated(self) -> list[tuple[int, Seat]]:
        """The places that are taken, and by what."""
        return [(place, seat) for place, seat in enumerate(self.seats) if seat is not None]

    @property
    def rows(self) -> list[Row]:
        """All rows of it."""
        return [*((seat.request, seat.row) for _, seat in self.seated), *self.again]

    @property
    def is_patient(self) -> bool:
        """Whether its rows have had so many steps, or so much time, that others wait no longer."""
        come = time.perf_counter() - _PATIENCE_SECONDS
        had = (seat.steps >= _PATIENCE_STEPS or seat.since <= come for _, seat in self.seated)
        return not self.again and all(had)

    def resize(self, batch: SlotBatch, widths: Sequence[int]) -> None:
        """Takes so many places, one number of them after the other."""
        for width in widths:
            seated = self.seated
            batch.resize(width, [place for place, _ in seated])
            self.seats = [seat for _, seat in seated]
            self.seats += [None] * (width - len(seated))

    def seat(self, rows: Sequence[Row]) -> list[int]:
        """Gives rows the first places that are free."""
        free = (place for place, seat in enumerate(self.seats) if seat is None)
        places = list(itertools.islice(free, len(rows)))
        for place, (request, row) in zip(places, rows, strict=True):
            self.seats[place] = Seat(request, row)
        return places


@dataclass(slots=True, eq=False)
class Turn:
    """What a lane does next.

    Args:
        group: With which rows.
        num_new: How many of those that are to enter it do.
        widths: The numbers of places that it takes before, one after the other.
        is_eager: Whether others wait for its places.
    """

    group: Group
    num_new: int
    widths: Sequence[int]
    is_eager: bool


@dataclass(slots=True, eq=False)
class Lane:
    """What a thread runs.

    Args:
        groups: Those with rows; the one comes first whose turn is next.
        host_seconds: Time of a turn in which no steps are taken, as it was of late.
    """

    groups: list[Group] = field(default_factory=list)
    host_seconds: float = 0.0


def widths_between(ready: Iterable[int], now: int, width: int) -> list[int]:
    """The widths on the way from one to another, which comes last; none where they are the same."""
    if now < width:
        return sorted(size for size in {*ready, width} if now < size <= width)
    return sorted((size for size in {*ready, width} if width <= size < now), reverse=True)


def spans(rows: Iterable[Row]) -> Iterator[Span]:
    """Rows of one request that follow each other, together."""
    start: Row | None = None
    last: Row | None = None
    for request, row in rows:
        if start is None or last is None or last != (request, row - 1):
            if start is not None and last is not None:
                yield start[0], start[1], last[1] + 1
            start = request, row
        last = request, row
    if start is not None and last is not None:
        yield start[0], start[1], last[1] + 1
