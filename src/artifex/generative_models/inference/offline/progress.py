"""A progress bar on stderr for long jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Chunk = TypeVar("Chunk", bound=Sized)


def track_rows(
    chunks: Iterable[Chunk], total: int | None, description: str, *, start: int = 0
) -> Iterator[Chunk]:
    """Passes chunks through and shows how many rows went by, and how many a second.

    Args:
        chunks: Arrays [rows, ...], or other things as long as their rows are many.
        total: Number of rows; None where it is not known.
        description: What the bar says.
        start: Rows that were done before.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=start)
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk))
