"""A batch of a loop whose rows join and leave it while others are under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.inference.executor.jobs import Job
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.stepping import Told

if TYPE_CHECKING:
    from jaxtyping import Array

_FEW = 4  # a share of the places from which all are filled or looked at in one execution


def parts_for(width: int, smallest: int, others: Iterable[int]) -> list[tuple[int, Any]]:
    """The parts that a batch of a width is run with, and a move from and to each of some other widths.

    Returns:
        Batch sizes, and what `Program.part` takes after them.
    """
    found: list[tuple[int, Any]] = [(width, ("empty",)), (width, ("steps",)), (width, ("look",))]
    found += [(width, ("enter", size)) for size in sorted({smallest, width})]
    if smallest != width:
        found += [(smallest, ("look",)), (width, ("move", smallest))]
    for other in set(others) - {width}:
        found += [(width, ("move", other)), (other, ("move", width))]
    return found


class SlotBatch:
    """Rows of a loop on the device, each in a place of its own.

    A row gives what the executor gives it alone, whenever it joins and whatever is beside it. What is held of
    the rows is held once: each execution puts its result in the place of what it was given. So a batch of
    which an execution failed is lost.

    One thread uses it at a time.

    Args:
        program: The loop.
        weights: The weights that it runs with, as they are placed.
        part: Gives a part of the loop for a batch size.
        dispatching: What to hold while an execution is dispatched.
        width: How many places it has, one of the program's batch sizes.
    """

    def __init__(
        self,
        program: Program,
        weights: Sequence[Array],
        part: Callable[..., Callable[..., Any]],
        dispatching: Callable[[], AbstractContextManager[Any]],
        width: int,
    ):
        self.program = program
        self.weights = weights
        self.width = width
        self._part = part
        self._dispatching = dispatching
        self._smallest = program.batch_sizes[0]
        self._held: tuple[Any, list[Any]] | None = None  # the state and the rows, once there are any

    def runs(self, job: Job) -> bool:
        """Whether a job is for the same loop with the same weights."""
        return job.program is self.program and all(
            ours is theirs for ours, theirs in zip(self.weights, job.weights, strict=True)
        )

    def enter(self, job: Job, places: Sequence[int]) -> None:
        """Puts the rows of a job into places; whatever was there is gone.

        Raises:
            JaxRuntimeError: The device's memory is too small, or whatever else went wrong there.
        """
        if self._held is None:
            self._held = self._run(self._part(self.width, "empty"))
        at_once = self._smallest if len(places) * _FEW <= self.width else self.width
        for first in range(0, len(places), at_once):
            last = min(first + at_once, len(places))
            into = np.arange(self.width, self.width + at_once, dtype=np.int32)  # of padding, past the last
            into[: last - first] = places[first:last]
            arguments = job.arguments(first, last, at_once)
            enter = self._part(self.width, "enter", at_once)
            self._held = self._run(enter, self._held, into, *self.weights, *arguments)

    def advance(self, most: int, is_held: np.ndarray, *, is_eager: bool = False) -> Told:
        """Takes steps, and waits for them.

        Args:
            most: How many at most.
            is_held: Places that are empty, or whose rows are to stay as they are, bool [places].
            is_eager: Whether to stop as soon as a row is done.

        Raises:
            JaxRuntimeError: As for `enter`.
        """
        assert self._held is not None
        carried, rows = self._held
        steps = self._part(self.width, "steps")
        said = np.int32(most), np.bool_(is_eager), is_held
        carried, told = self._run(steps, *said, carried, *self.weights, *rows)
        self._held = carried, rows
        return Told(*map(np.asarray, told))

    def look(self, places: Sequence[int]) -> dict[str, np.ndarray]:
        """What the rows in places give, arrays [places, ...] by name: results once done, before previews.

        Raises:
            JaxRuntimeError: As for `enter`.
        """
        if len(places) * _FEW > self.width or self._smallest == self.width:
            found = {name: np.asarray(value) for name, value in self._look(self.width, self._held).items()}
            return {name: value[list(places)] for name, value in found.items()}
        move = self._part(self.width, "move", self._smallest)
        looks = []
        for first in range(0, len(places), self._smallest):
            some = list(places[first : first + self._smallest])
            wanted = np.array((some * self._smallest)[: self._smallest], np.int32)
            looks.append(self._look(self._smallest, self._run(move, self._held, wanted)))
        found = {name: np.concatenate([np.asarray(one[name]) for one in looks]) for name in looks[0]}
        return {name: value[: len(places)] for name, value in found.items()}

    def resize(self, width: int, places: Sequence[int]) -> None:
        """Gives it another number of places, the first of them to the rows that were in so many places.

        Raises:
            JaxRuntimeError: As for `enter`.
        """
        if self._held is not None:
            index = np.zeros(width, np.int32)
            index[: len(places)] = places
            self._held = self._run(self._part(self.width, "move", width), self._held, index)
        self.width = width

    def _look(self, size: int, held: Any) -> dict[str, Array]:
        carried, rows = held
        found = self._run(self._part(size, "look"), carried, *self.weights, *rows)
        for value in found.values():
            value.copy_to_host_async()
        return found

    def _run(self, executable: Callable[..., Any], *arguments: Any) -> Any:
        with self._dispatching():
            return executable(*arguments)
