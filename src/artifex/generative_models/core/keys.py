"""The PRNG keys of rows: what they are derived from, said once, on the host.

Row *i* of a job uses `fold_in(key, i)` of the job's key, so that it is the same sample in every batch, on
every device and in every process. An executable gets one uint32 array [rows, words + 2] and derives the keys
itself: the words of a key, the row's number, and whether the number is folded in.

Keys are of the one kind `KEY_IMPL`, whatever JAX's default is: what keys of its other kinds draw under `vmap`
depends on the rows beside it.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Key, UInt32

KEY_IMPL = "threefry2x32"
KEY_WORDS = 2
MAX_ROWS = 2**32 - 1  # row numbers are uint32
_MANY_SEEDS = 16  # from which NumPy is faster than Python


@dataclass(slots=True, eq=False)
class RowKeys:
    """The keys of a job's rows, before they are derived.

    Args:
        words: Of the key of the whole job, uint32 [2]; or what an executable takes of rows of their own,
            uint32 [rows, 4].
        first_row: Number of the first row of a whole job.
    """

    words: UInt32[np.ndarray, ...]
    first_row: int = 0

    @classmethod
    def of_key(cls, key: Key[Array, ""], first_row: int = 0) -> RowKeys:
        """Row i uses `fold_in(key, first_row + i)` of the job's key.

        Raises:
            InputError: Not one key of the kind `KEY_IMPL`.
            InputTypeError: Not a typed key.
        """
        return cls(_words("key", key, ndim=0), first_row)

    @classmethod
    def of_keys(cls, keys: Key[Array, " rows"]) -> RowKeys:
        """Row i uses `keys[i]`.

        Raises:
            InputError: Not a row of keys of the kind `KEY_IMPL`.
            InputTypeError: Not typed keys.
        """
        return cls(_rows(_words("keys", keys, ndim=1), folded=False))

    @classmethod
    def of_seed(cls, seed: int | Sequence[int], first_row: int = 0) -> RowKeys:
        """Row i is sample `first_row + i` of `nnx.Rngs(seed)`; of a list of seeds, sample 0 of its own.

        Raises:
            InputTypeError: Not integers.
        """
        if isinstance(seed, list | tuple):
            return cls(_rows(seed_words([_checked_seed(one) for one in seed]), folded=True))
        return cls(_seed_words(_checked_seed(seed)), first_row)

    @property
    def num_rows(self) -> int | None:
        """Rows that have a key each; None where one key is for any number of them."""
        return len(self.words) if self.words.ndim == 2 else None

    def part(self, start: int, stop: int) -> RowKeys:
        """The keys of rows `start` to `stop`."""
        if self.words.ndim == 2:
            return RowKeys(self.words[start:stop])
        return RowKeys(self.words, self.first_row + start)


def packed_keys(parts: Sequence[tuple[RowKeys, int, int]], size: int) -> UInt32[np.ndarray, "rows 4"]:
    """What an executable takes: rows `start` to `stop` of several jobs, and zeros up to a batch size."""
    packed = np.zeros((size, KEY_WORDS + 2), np.uint32)
    words, numbers, folded = packed[:, :-2], packed[:, -2], packed[:, -1]
    first = 0
    for keys, start, stop in parts:
        last = first + stop - start
        if keys.words.ndim == 2:
            packed[first:last] = keys.words[start:stop]
        elif last == first + 1:  # as most are that are served
            words[first], numbers[first], folded[first] = keys.words, keys.first_row + start, 1
        else:
            words[first:last] = keys.words
            numbers[first:last] = np.arange(keys.first_row + start, keys.first_row + stop)
            folded[first:last] = 1
        first = last
    return packed


def derived_keys(packed: UInt32[Array, "rows 4"]) -> Key[Array, " rows"]:
    """Each row's own key, from what `packed_keys` gives; traceable."""
    keys = jax.random.wrap_key_data(packed[:, :-2], impl=KEY_IMPL)
    return jnp.where(packed[:, -1] == 0, keys, jax.vmap(jax.random.fold_in)(keys, packed[:, -2]))


def sample_key(rngs: nnx.Rngs | int | None = None) -> Key[Array, ""]:
    """The key of one sampling job.

    Args:
        rngs: Random number generators, of which one `sample` key is drawn, or an integer seed, which
            means a fresh `nnx.Rngs(seed)` with keys of the kind `KEY_IMPL`. None is a seed of the system's.
    """
    if rngs is None:
        rngs = secrets.randbits(32)
    if not isinstance(rngs, int):
        return rngs.sample()
    return jax.random.wrap_key_data(jax.device_put(seed_words([rngs])[0]), impl=KEY_IMPL)


def seed_words(seeds: Sequence[int]) -> UInt32[np.ndarray, "seeds 2"]:
    """The words of `sample_key` of each seed, on the host; seeds are integers, as `nnx.Rngs` takes them."""
    if not seeds:
        return np.zeros((0, KEY_WORDS), np.uint32)
    if 0 <= min(seeds) <= max(seeds) < 2**32:
        if len(seeds) < _MANY_SEEDS:
            return np.array([_threefry2x32(int(seed)) for seed in seeds], np.uint32)
        return np.stack(_threefry2x32(np.array(seeds, np.uint64)), axis=-1).astype(np.uint32)
    keys = (jax.random.fold_in(jax.random.key(seed, impl=KEY_IMPL), 0) for seed in seeds)
    return np.stack([np.asarray(jax.random.key_data(key)) for key in keys])


@functools.lru_cache(maxsize=1024)
def _seed_words(seed: int) -> np.ndarray:
    return seed_words([seed])[0]


def _rows(words: np.ndarray, *, folded: bool) -> np.ndarray:
    """What an executable takes of keys one a row: each as it is, or folded with 0."""
    rows = np.zeros((len(words), words.shape[1] + 2), np.uint32)
    rows[:, :-2] = words
    rows[:, -1] = folded
    return rows


def _words(name: str, keys: Any, ndim: int) -> np.ndarray:
    """The words of one key, or of one a row."""
    if not isinstance(keys, jax.Array) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        got = f"an array of {keys.dtype}" if isinstance(keys, jax.Array | np.ndarray) else repr(keys)
        raise InputTypeError(f"{name}: expected keys of jax.random.key, got {got}")
    impl = str(jax.random.key_impl(keys))
    if impl != KEY_IMPL:
        raise InputError(
            f"{name}: expected {KEY_IMPL} keys, got {impl} ones, whose draws depend on the rows beside them: "
            f"pass jax.random.key(seed, impl={KEY_IMPL!r}), or a seed"
        )
    if keys.ndim != ndim:
        raise InputError(f"{name}: expected {ndim}-dimensional {impl} keys, got {keys.dtype}{keys.shape}")
    return np.asarray(jax.random.key_data(keys))


def _checked_seed(seed: Any) -> int:
    if not isinstance(seed, int | np.integer):
        raise InputTypeError(f"seed: expected an integer, got {seed!r}")
    return int(seed) & 0xFFFFFFFF  # as `nnx.Rngs` takes it


def _threefry2x32(seed: Any) -> tuple[Any, Any]:
    """The block cipher behind JAX's default keys, of a block of zeros under the key (0, seed).

    It is here in Python since JAX would compile it, for a tenth of a second.

    Args:
        seed: A word, or words in uint64 [seeds].

    Returns:
        The block's two words, or those of all blocks.

    References:
        Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011, section 3.3.
        https://doi.org/10.1145/2063384.2063405
    """
    mask = 2**32 - 1
    keys = (0, seed, seed ^ 0x1BD11BDA)
    x, y = keys[0], keys[1]
    for i, rotations in enumerate(_ROTATIONS):
        for left in rotations:
            x = (x + y) & mask
            y = ((y << left) & mask | y >> (32 - left)) ^ x
        x = (x + keys[(i + 1) % 3]) & mask
        y = (y + keys[(i + 2) % 3] + i + 1) & mask
    return x, y


_EVEN, _ODD = (13, 15, 26, 6), (17, 29, 16, 24)
_ROTATIONS = (_EVEN, _ODD, _EVEN, _ODD, _EVEN)
