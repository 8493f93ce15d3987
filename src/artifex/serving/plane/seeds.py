"""Seeds for requests that bring none."""

from __future__ import annotations

import random

from artifex.generative_models.core.keys import RowKeys, seed_words

MAX_SEED = 2**32 - 1
_NUM_AHEAD = 256


class FreshSeeds:
    """Seeds from the system's entropy, with their keys; drawn many at a time, since that is far cheaper."""

    def __init__(self) -> None:
        self._random = random.Random()
        self._ahead: list[tuple[int, RowKeys]] = []

    def draw(self) -> tuple[int, RowKeys]:
        """A seed from 0 to `MAX_SEED`, and what the keys of its samples are derived from."""
        while True:
            try:
                return self._ahead.pop()
            except IndexError:  # and not a look beforehand, since there may be other threads
                seeds = [self._random.getrandbits(32) for _ in range(_NUM_AHEAD)]
                words = seed_words(seeds)
                self._ahead += [(seed, RowKeys(row)) for seed, row in zip(seeds, words, strict=True)]
