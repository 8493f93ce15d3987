"""How the next symbol is chosen, against transformers and against the definitions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import RowNumbers, checked_fields
from artifex.generative_models.core.sampling.choosing import (
    CHOOSING_FIELDS,
    CHOOSING_UNSAID,
    chosen_tokens,
    processed,
)

NUMBERS = RowNumbers.of(CHOOSING_FIELDS, CHOOSING_UNSAID)
PROCESSED, CHOSEN = jax.jit(processed), jax.jit(chosen_tokens)


def numbers(rows, **said):
    return NUMBERS.rows(checked_fields("generate", NUMBERS.fields, said, rows), rows, {})


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


def test_scores_are_those_of_transformers() -> None:
    with np.load(Path(__file__).parents[2] / "golden" / "choosing.npz") as arrays:
        cases = json.loads(arrays["cases"].tobytes())
        logits, ids, wanted = (arrays[name] for name in ("logits", "seen", "wanted"))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    usual = {name: NUMBERS.rows({**checked_fields("", NUMBERS.fields, {}, 1)}, 1, {})[name][0]
             for name in CHOOSING_FIELDS}  # fmt: skip
    said = {name: np.array([case.get(name, usual[name]) for case in cases]) for name in CHOOSING_FIELDS}
    found = np.asarray(PROCESSED(logits, seen, numbers(len(cases), **said)))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_that_is_as_likely(top_p: float) -> None:
    logits = 2 * np.random.default_rng(1).standard_normal((50, 23)).astype(np.float32)
    found = np.isfinite(PROCESSED(logits, np.zeros((50, 23), bool), numbers(50, top_p=top_p)))
    likely = np.exp(logits.astype(np.float64))
    likely /= likely.sum(1, keepdims=True)
    for kept, row in zip(found, likely, strict=True):
        order = np.argsort(-row)
        size = int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1
        assert set(np.flatnonzero(kept)) == set(order[:size])


def test_equally_likely_symbols_do_not_widen_the_nucleus() -> None:
    found = PROCESSED(np.zeros((1, 8), np.float32), np.zeros((1, 8), bool), numbers(1, top_p=0.375))
    assert np.isfinite(found).sum() == 3


@pytest.mark.parametrize(
    ("said", "kept"),
    [({}, 5), ({"temperature": 0.5}, 5), ({"top_k": 2}, 2), ({"min_p": 0.4, "temperature": 2.0}, 3)],
)
def test_draws_follow_the_scores(said: dict[str, float], kept: int) -> None:
    rows = 4000
    logits = np.broadcast_to(np.float32([1.0, -1.0, 0.3, 2.0, 0.0]), (rows, 5))
    inputs, seen = numbers(rows, **said), np.zeros((rows, 5), bool)
    drawn = CHOSEN(keys(rows), jnp.zeros(rows, jnp.int32), logits, seen, inputs)
    likely = np.exp(np.asarray(PROCESSED(logits, seen, inputs)[0], np.float64))
    likely /= likely.sum()
    counts = np.bincount(drawn, minlength=5)
    assert (counts > 0).sum() == (likely > 0).sum() == kept
    there = likely > 0
    assert stats.chisquare(counts[there], rows * likely[there]).pvalue > 1e-3


def test_a_row_draws_the_same_beside_rows_with_filters() -> None:
    rows = 64
    logits = np.random.default_rng(2).standard_normal((rows, 300)).astype(np.float32)
    step, seen = jnp.arange(rows, dtype=jnp.int32), np.zeros((rows, 300), bool)
    plain = CHOSEN(keys(rows), step, logits, seen, numbers(rows))
    mixed = CHOSEN(keys(rows), step, logits, seen, numbers(rows, top_k=np.where(np.arange(rows) % 2, 300, 3)))
    np.testing.assert_array_equal(plain[1::2], mixed[1::2])
    assert (plain[::2] != mixed[::2]).any()
    assert (CHOSEN(keys(rows), step + 1, logits, seen, numbers(rows)) != plain).any()


def test_the_likeliest_is_taken_without_temperature() -> None:
    logits = np.random.default_rng(3).standard_normal((9, 30)).astype(np.float32)
    step, seen = jnp.zeros(9, jnp.int32), np.zeros((9, 30), bool)
    for said in ({"temperature": 0.0}, {"greedy": True}, {"top_k": 1}, {"temperature": np.arange(9) * 0.0}):
        found = CHOSEN(keys(9), step, logits, seen, numbers(9, **said))
        np.testing.assert_array_equal(found, logits.argmax(1))


@pytest.mark.parametrize("said", [{"top_p": 1e-40}, {"temperature": 1e-37}, {"min_p": 1.0}])
def test_the_narrowest_choice_leaves_the_likeliest(said: dict[str, float]) -> None:
    logits = np.float32([[-40, -39, -41], [3, 2, 1]])
    found = CHOSEN(keys(2), np.zeros(2, np.int32), logits, np.zeros((2, 3), bool), numbers(2, **said))
    np.testing.assert_array_equal(found, [1, 0])


def test_repeated_symbols_are_less_likely() -> None:
    logits = np.float32([[2.0, 1.9, -3.0]])
    seen = np.array([[True, False, True]])
    found = PROCESSED(logits, seen, numbers(1, repetition_penalty=2.0))
    np.testing.assert_allclose(found, [[1.0, 1.9, -6.0]])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected from 0, got -0.1"),
        ({"top_k": 0}, "top_k: expected from 1, got 0"),
        ({"top_k": 2**32 + 1}, "top_k: expected an integer that int32 holds, got 4294967297"),
        ({"top_p": 0.0}, "top_p: expected above 0, at most 1, got 0"),
        ({"top_p": 1.5}, "top_p: expected above 0, at most 1, got 1.5"),
        ({"min_p": 1.5}, "min_p: expected from 0 to 1, got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected above 0, got 0"),
        ({"greedy": 1}, "greedy: expected true or false"),
    ],
)
def test_numbers_that_make_no_choice(said: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        numbers(1, **said)
