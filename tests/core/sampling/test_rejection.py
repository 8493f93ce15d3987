import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.core.fields import RowNumbers, checked_fields
from artifex.generative_models.core.sampling.rejection import (
    REJECTION_FIELDS,
    REQUIRES,
    UNBOUNDED,
    Rejection,
)
from artifex.generative_models.inference import Executor

FIELDS = RowNumbers.of(REJECTION_FIELDS, {"min_log_prob": UNBOUNDED})
ROWS = 4096


def normal(model, keys, inputs):
    """A number of deviation 1, and its log-density."""
    x = jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys)
    return x, -0.5 * x**2 - 0.5 * math.log(2 * math.pi)


def broken(model, keys, inputs):
    x, log_prob = normal(model, keys, inputs)
    return x, jnp.where(log_prob < -2, jnp.nan, log_prob)


def said(num_rows=ROWS, **given):
    return FIELDS.rows(checked_fields("generate", FIELDS.fields, given, num_rows), num_rows, {})


def drawn(fn, key, num_rows=ROWS, **given):
    endpoint = Endpoint(Rejection(fn, ()), FIELDS.inputs, says=FIELDS, requires=REQUIRES)
    executor = Executor(None, {"generate": endpoint}, batch_sizes=(num_rows,))
    found = executor("generate", said(num_rows, **given), key=key)
    return {name: np.asarray(value) for name, value in found.items()}


def test_without_a_bound_the_first_draw_is_the_sample():
    key = jax.random.key(0)
    found = drawn(normal, key)
    assert found["attempts"].tolist() == [1] * ROWS
    rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(ROWS))
    x, log_prob = normal(None, jax.vmap(lambda key: jax.random.fold_in(key, 0))(rows), {})
    np.testing.assert_allclose(found["x"], x, rtol=1e-6)
    np.testing.assert_allclose(found["log_prob"], log_prob, rtol=1e-6)


def test_samples_follow_the_distribution_within_the_bound():
    """For |x| <= 1, of which a normal number has the share s: variance 1 - 2 phi(1) / s, and 1 / s draws."""
    bound = -0.5 - 0.5 * math.log(2 * math.pi)
    found = drawn(normal, jax.random.key(1), min_log_prob=bound)
    share = math.erf(1 / math.sqrt(2))
    variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / share
    assert found["log_prob"].min() >= np.float32(bound)
    assert found["accepted"].all()
    assert found["x"].mean() == pytest.approx(0, abs=5 * math.sqrt(variance / ROWS))
    assert found["x"].var() == pytest.approx(variance, abs=5 * math.sqrt(2 * variance**2 / ROWS))
    spread = math.sqrt(1 - share) / share
    assert found["attempts"].mean() == pytest.approx(1 / share, abs=5 * spread / math.sqrt(ROWS))


def test_a_bound_that_no_draw_reaches_tells_the_best():
    key = jax.random.key(2)
    row = jax.random.fold_in(key, 0)
    draws = [normal(None, jax.random.fold_in(row, s)[None], {})[1][0] for s in range(5)]
    with pytest.raises(InputError, match=f"row 0: of 5 draws .* the best has {max(draws):.6g}"):
        drawn(normal, key, 2, min_log_prob=0.0, max_attempts=5)


def test_a_draw_that_is_no_number_is_no_draw_that_is_passed_over():
    with pytest.raises(NonFiniteError, match="came out NaN"):
        drawn(broken, jax.random.key(3), 64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_attempts": 0}, "max_attempts: expected from 1 to 10000, got 0"),
        ({"max_attempts": 10_001}, "max_attempts: expected from 1 to 10000"),
        ({"min_log_prob": math.inf}, "min_log_prob: expected a finite number"),
    ],
)
def test_wrong_numbers(given, message):
    with pytest.raises(InputError, match=message):
        said(1, **given)
