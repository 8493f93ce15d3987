"""Where tuning looks for the fastest way to run an endpoint, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from artifex.generative_models.inference.executor.settings import Setting

TURNED = 0.95  # a curve has turned where two sizes in a row stay below this share of its best


@dataclass(frozen=True)
class Candidate:
    """One way to run an endpoint.

    Args:
        batch_size: Rows a batch.
        setting: How the batch size is compiled.
        executions_in_flight: Batches under way at once.
    """

    batch_size: int
    setting: Setting
    executions_in_flight: int


@dataclass(frozen=True)
class Space:
    """All the ways to run an endpoint that come into question.

    Args:
        batch_sizes: Ascending.
        fusion: Choices for `Setting.fusion`.
        executions_in_flight: Choices, the usual one first.
    """

    batch_sizes: Sequence[int]
    fusion: Sequence[bool]
    executions_in_flight: Sequence[int]

    def __iter__(self) -> Iterator[Candidate]:
        for size in self.batch_sizes:
            for fusion in self.fusion:
                for count in self.executions_in_flight:
                    yield Candidate(size, Setting(fusion), count)


Measure = Callable[[Candidate], float | None]


def search(space: Space, measure: Measure) -> None:
    """Finds the fastest candidate without trying them all.

    Batch sizes are doubled until the rate falls. From the best one found, one thing at a time is changed and
    what is faster is kept: fusion, also at half and twice the size for as long as that is faster still; the
    batch sizes between those tried; and the executions in flight.

    Args:
        space: What may be tried.
        measure: Rows a second of a candidate; None where it does not fit the device, and then no larger
            batch is tried. Asked at most once about each.
    """
    rates: dict[Candidate, float] = {}
    best: Candidate | None = None
    fits = space.batch_sizes[-1]  # no larger batch is tried

    def try_out(candidate: Candidate) -> None:
        nonlocal best, fits
        if candidate in rates or candidate.batch_size > fits:
            return
        rate = measure(candidate)
        if rate is None:
            fits = candidate.batch_size - 1
            return
        rates[candidate] = rate
        if best is None or rate > rates[best]:
            best = candidate

    ladder = list(_doubling(space.batch_sizes))
    curve: list[float] = []
    for size in ladder:
        candidate = Candidate(size, Setting(space.fusion[0]), space.executions_in_flight[0])
        try_out(candidate)
        if candidate not in rates:
            break
        curve.append(rates[candidate])
        if max(curve[-2:]) < TURNED * max(curve):
            break
    if best is None:
        return
    for fusion in space.fusion[1:]:
        other = replace(best, setting=Setting(fusion))
        at = ladder.index(other.batch_size)
        for sizes in (ladder[at:], ladder[at::-1]):
            last = 0.0
            for size in sizes:
                candidate = replace(other, batch_size=size)
                try_out(candidate)
                if rates.get(candidate, 0.0) <= last:
                    break
                last = rates[candidate]
    while middles := [size for size in _between(space.batch_sizes, best, rates) if size <= fits]:
        for candidate in [replace(best, batch_size=size) for size in middles]:
            try_out(candidate)
    for count in space.executions_in_flight[1:]:
        try_out(replace(best, executions_in_flight=count))


def _doubling(sizes: Sequence[int]) -> Iterator[int]:
    """The first size, then each that is at least twice the one before, and the last."""
    previous = 0
    for size in sizes:
        if size >= 2 * previous or size == sizes[-1]:
            yield size
            previous = size


def _between(sizes: Sequence[int], best: Candidate, rates: dict[Candidate, float]) -> list[int]:
    """The sizes halfway from the best one to those tried on either side of it."""
    tried = [i for i, size in enumerate(sizes) if replace(best, batch_size=size) in rates]
    at = sizes.index(best.batch_size)
    below = max((i for i in tried if i < at), default=-1)
    above = min((i for i in tried if i > at), default=len(sizes))
    middles = (-(-(at + below) // 2), (at + above) // 2)
    return [sizes[i] for i in middles if i not in tried]
