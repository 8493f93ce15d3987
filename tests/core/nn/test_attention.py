"""Attention equals its formula, however its scores are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.nn import attention
from artifex.generative_models.core.nn.attention import attend


def drawn(batch, tokens, heads, d, dtype=np.float32):
    random = np.random.default_rng(0)
    return [(2 * random.normal(size=(batch, tokens, heads, d))).astype(dtype) for _ in range(3)]


def by_hand(q, k, v):
    """In float64, one head of one row at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    found = np.empty_like(q)
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        scores = q[row, :, head] @ k[row, :, head].T / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        found[row, :, head] = shares / shares.sum(-1, keepdims=True) @ v[row, :, head]
    return found


# Of all scores, heads together, one head, half a head's queries, and fewer than are worth cutting.
@pytest.mark.parametrize("block", [1 << 30, 2 * 2 * 64 * 64 * 4, 2 * 64 * 64 * 4, 2 * 32 * 64 * 4, 1])
@pytest.mark.parametrize("shape", [(2, 64, 6, 8), (2, 63, 3, 4), (1, 1, 1, 2)])
def test_every_cut_is_the_formula(monkeypatch, shape, block):
    monkeypatch.setattr(attention, "_CPU_BYTES", block)
    monkeypatch.setattr(attention, "_CPU_BLOCK", block)
    given = drawn(*shape)
    found = jax.jit(lambda *given: attend(*given))(*given)
    np.testing.assert_allclose(found, by_hand(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [256, 257])
def test_scores_are_held_in_blocks(monkeypatch, tokens):
    """By the compiler's account, which no timing can disturb."""
    monkeypatch.setattr(attention, "_CPU_BYTES", 0)
    given = drawn(1, tokens, 8, 4)

    def bytes_of(block):
        monkeypatch.setattr(attention, "_CPU_BLOCK", block)
        compiled = jax.jit(lambda *given: attend(*given)).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 8 * tokens * tokens * 4
    assert bytes_of(scores) > scores
    assert bytes_of(scores // 32) < scores // 3


def test_large_scores_overflow_nothing():
    q, k, v = drawn(1, 8, 2, 4)
    given = np.float32(1e3) * q, np.float32(1e3) * k, v
    np.testing.assert_allclose(jax.jit(attend)(*given), by_hand(*given), rtol=1e-4, atol=1e-4)


def test_computing_in_bfloat16():
    given = drawn(2, 16, 2, 8, jnp.bfloat16)
    found = jax.jit(attend)(*given)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), by_hand(*given), atol=0.05)
