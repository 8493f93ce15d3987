"""Work of NumPy on all cores: it lets go of the interpreter's lock while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from artifex.generative_models.inference.executor.placement import num_cores

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def at_once(fn: Callable[[_Item], _Found], items: Iterable[_Item]) -> list[_Found]:
    """What a function gives for each item, in their order."""
    items = list(items)
    if len(items) == 1:
        return [fn(items[0])]
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(fn, items))
