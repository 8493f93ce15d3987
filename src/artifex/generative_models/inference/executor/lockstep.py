"""The processes of a mesh, kept at the same batch of the same job."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from artifex.generative_models.core.errors import ArtifexError, InputError, LostProcessError
from artifex.generative_models.core.keys import RowKeys
from artifex.generative_models.core.processes import exchange
from artifex.generative_models.inference.executor.jobs import Job, Piece, without_rows
from artifex.generative_models.inference.executor.placement import Placement
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Array

_ENDED, _FAILED = -1, -2  # in place of a number of rows
_NO_FORM = -1  # of a process that has no rows


class Lockstep:
    """Keeps the processes of a mesh at the same batch of the same job.

    Each says how many rows it has next and hears of all others, so that all run the same executables in
    the same order. That costs one exchange a chunk: a millisecond or a few within a machine, and what a small
    collective takes between machines.

    Args:
        placement: On a mesh of several processes.
        forms: What may run: an endpoint with its options, for each dtype that its pictures may have.
        model: Whose weights run it.
    """

    def __init__(self, placement: Placement, forms: Sequence[Program], model: Weights):
        self._placement = placement
        self._forms = forms
        self._model = model
        identity = repr((forms[0].name, forms[0].options, forms[0].batch_sizes))
        self._digest = zlib.crc32(identity.encode()) >> 1  # what an int32 holds
        self._has_ended = False

    def pieces(
        self,
        jobs: Iterator[Job],
        keys: RowKeys | None,
        weights_of: Callable[[Program], Sequence[Array]],
        *,
        numbered: bool,
    ) -> Iterator[Piece]:
        """The batches that all processes run, one after another; of some this one may have no rows.

        Args:
            jobs: This process's.
            keys: Any of the job, for batches in which this process has no rows.
            weights_of: Gives the weights for these.
            numbered: Whether rows have their numbers; else they are numbered through the processes.

        Raises:
            InputError: Another process runs another job, or other rows of the same part.
            ArtifexError: Another process failed.
        """
        first_row = 0
        while True:
            job = next(jobs, None)
            program, counts = self._next(job)
            if program is None:
                return
            if job is None:
                job = without_rows(program, self._model, keys)
                job.weights = weights_of(program)
            elif job.keys is not None and not numbered:
                job.first_row = first_row + sum(counts[: self._placement.part])
                job.keys = RowKeys(job.keys.words, job.first_row)
            first_row += sum(counts)
            own = deque(job.pieces(job.allocate()))
            for size in _common_batches(counts, program.batch_sizes):
                if own and own[0].size == size:
                    yield own.popleft()
                else:  # a batch of others
                    yield Piece(job, 0, 0, size, {})

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A block whose failure the other processes hear of, rather than wait for this one for ever."""
        try:
            yield
        except BaseException:
            if not self._has_ended:
                self._has_ended = True
                self._exchange(_NO_FORM, _FAILED)
            raise

    def _next(self, job: Job | None) -> tuple[Program | None, list[int]]:
        """Tells the others how many rows this process has next, if any, and hears of theirs.

        Returns:
            What runs, and the rows of each part of the mesh; None if nobody has any more.
        """
        if job is None:
            heard = self._exchange(_NO_FORM, _ENDED)
        elif job.program not in self._forms:
            raise InputError(f"{job.program.name}: on a mesh of several processes pictures have one dtype")
        else:
            heard = self._exchange(self._forms.index(job.program), job.num_rows)
        failed = [process for process, (*_, count) in enumerate(heard) if count == _FAILED]
        if failed:
            self._has_ended = True
            raise ArtifexError(f"processes {failed} of the job failed; they say why")
        forms = set(heard[:, 2].tolist()) - {_NO_FORM}
        if len(set(heard[:, 1].tolist())) > 1 or len(forms) > 1:
            self._has_ended = True
            raise InputError(
                "the processes of the job run different endpoints, with different options, or on pictures of "
                "different dtypes"
            )
        by_part = sorted({(part, count) for part, _, _, count in heard.tolist()})
        if len(by_part) != self._placement.num_parts:
            self._has_ended = True
            raise InputError("processes that share a part of the mesh's 'data' axis feed different rows")
        if not forms:
            self._has_ended = True
            return None, []
        return self._forms[forms.pop()], [max(count, 0) for _, count in by_part]

    def _exchange(self, form: int, num_rows: int) -> np.ndarray:
        """Tells and hears: of each process its part of the mesh, its job, its form and its rows."""
        try:
            return exchange(np.asarray([self._placement.part, self._digest, form, num_rows], np.int32))
        except LostProcessError:
            self._has_ended = True
            raise


def _common_batches(counts: Sequence[int], batch_sizes: tuple[int, ...]) -> Iterator[int]:
    """Batch sizes that processes with so many rows each run together: each row in that of its own process."""
    largest = batch_sizes[-1]
    yield from [largest] * (max(counts) // largest)
    lasts = {
        next(size for size in batch_sizes if size >= count % largest) for count in counts if count % largest
    }
    yield from sorted(lasts, reverse=True)
