from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.keys import (
    RowKeys,
    derived_keys,
    packed_keys,
    sample_key,
    seed_words,
)

ROWS = [0, 1, 5, 2**31, 2**32 - 1]


def derived(keys: RowKeys, start: int, stop: int, size: int) -> np.ndarray:
    """The words of the keys that an executable derives for rows of a job."""
    packed = packed_keys([(keys, start, stop)], size)
    return np.asarray(jax.random.key_data(jax.jit(derived_keys)(packed)))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_a_job_folds_its_number_into_the_key(row: int) -> None:
    key = jax.random.key(3)
    folded = jax.random.key_data(jax.random.fold_in(key, np.uint32(row)))
    np.testing.assert_array_equal(derived(RowKeys.of_key(key, first_row=row), 0, 1, 2)[0], folded)
    if row < 2**31:
        np.testing.assert_array_equal(derived(RowKeys.of_key(key), row, row + 1, 1)[0], folded)


def test_rows_that_bring_their_keys_use_them_as_they_are() -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    np.testing.assert_array_equal(derived(RowKeys.of_keys(keys), 1, 3, 2), jax.random.key_data(keys[1:3]))


def test_rows_of_a_seed_and_rows_of_their_own_seeds() -> None:
    one = derived(RowKeys.of_seed(7, first_row=2), 0, 3, 3)
    key = nnx.Rngs(7).sample()
    for i, words in enumerate(one):
        np.testing.assert_array_equal(words, jax.random.key_data(jax.random.fold_in(key, 2 + i)))
    own = derived(RowKeys.of_seed([7, 8, 7]), 0, 3, 3)
    for seed, words in zip([7, 8, 7], own, strict=True):
        first = jax.random.fold_in(nnx.Rngs(seed).sample(), 0)
        np.testing.assert_array_equal(words, jax.random.key_data(first))


def test_parts_and_merged_rows_have_the_keys_they_had() -> None:
    jobs = [
        RowKeys.of_key(jax.random.key(1), first_row=5),
        RowKeys.of_keys(jax.random.split(jax.random.key(2), 3)),
        RowKeys.of_seed([4, 5, 6]),
    ]
    whole = [derived(keys, 0, 3, 3) for keys in jobs]
    for keys, words in zip(jobs, whole, strict=True):
        np.testing.assert_array_equal(derived(keys.part(1, 3), 0, 2, 4)[:2], words[1:])
    merged = RowKeys(packed_keys([(keys, 1, 3) for keys in jobs], 6))
    np.testing.assert_array_equal(derived(merged, 0, 6, 8)[:6], np.concatenate([w[1:] for w in whole]))
    assert [keys.num_rows for keys in (*jobs, merged)] == [None, 3, 3, 6]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: RowKeys.of_key(jax.random.PRNGKey(0)), InputTypeError),
        (lambda: RowKeys.of_key(7), InputTypeError),
        (lambda: RowKeys.of_keys(np.zeros((3, 2), np.uint32)), InputTypeError),
        (lambda: RowKeys.of_key(jax.random.split(jax.random.key(0))), InputError),
        (lambda: RowKeys.of_key(jax.random.key(0, impl="rbg")), InputError),
        (lambda: RowKeys.of_keys(jax.random.key(0)), InputError),
        (lambda: RowKeys.of_seed(1.0), InputTypeError),
        (lambda: RowKeys.of_seed([1, "2"]), InputTypeError),
    ],
)
def test_what_is_no_key_is_refused(make: Callable[[], RowKeys], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        make()


def test_a_seed_means_fresh_generators() -> None:
    rngs = nnx.Rngs(7)
    first, second = rngs.sample(), rngs.sample()
    assert sample_key(7) == first
    again = nnx.Rngs(7)
    assert [sample_key(again), sample_key(again)] == [first, second]
    assert sample_key(nnx.Rngs(0, sample=5)) == nnx.Rngs(0, sample=5).sample()
    assert sample_key(8) != first


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**40 + 3, -1])
def test_a_seed_means_the_same_without_flax(seed: int) -> None:
    assert sample_key(seed) == nnx.Rngs(seed).sample()


@pytest.mark.parametrize("times", [1, 4])  # few seeds go another way than many
def test_keys_of_many_seeds_are_those_of_each(times: int) -> None:
    seeds = [0, 1, 7, 2**31, 2**32 - 1] * times
    for seed, words in zip(seeds, seed_words(seeds), strict=True):
        np.testing.assert_array_equal(words, jax.random.key_data(nnx.Rngs(seed).sample()))


@pytest.mark.parametrize("seed", [7, 2**40 + 3, -1])
def test_a_seed_means_the_same_whatever_kind_of_keys_is_the_default(seed: int) -> None:
    key = nnx.Rngs(seed).sample()
    with jax.default_prng_impl("rbg"):
        assert sample_key(seed) == key
        with pytest.raises(InputError, match="got rbg ones, whose draws depend on the rows beside them"):
            RowKeys.of_key(nnx.Rngs(seed).sample())
