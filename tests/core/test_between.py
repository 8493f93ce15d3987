"""What lies between vectors, of NumPy and of JAX."""

import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core.between import MODES, linear, spherical

WEIGHT = np.array([0, 0.25, 0.5, 0.9, 1], np.float32)
kinds = pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])


def normals(*shape):
    return np.random.default_rng(1).normal(size=(2, len(WEIGHT), *shape)).astype(np.float32)


def reference(x, y, weight):
    """By turning in the plane of both: x to the angle, along what of y is at a right angle to x; float64."""
    length = np.linalg.norm(x)
    axis = y - (y @ x) / (x @ x) * x
    turned = axis / np.linalg.norm(axis) * length
    angle = np.arccos((x @ y) / (length * np.linalg.norm(y)))
    return np.cos(weight * angle) * x + np.sin(weight * angle) * turned


@kinds
@pytest.mark.parametrize("shape", [(8,), (3, 2), (2, 3, 4)])
def test_the_arc_is_a_turn(kind, shape):
    """Of vectors of one length, of any shape; the length stays, and the angle grows with the weight."""
    x, y = normals(*shape)
    size = x[0].size
    flat = [v.reshape(-1, size).astype(np.float64) for v in (x, y)]
    one, other = (3 * v / np.linalg.norm(v, axis=1, keepdims=True) for v in flat)
    given = (kind(v.reshape(x.shape).astype(np.float32)) for v in (one, other))
    found = np.asarray(spherical(*given, kind(WEIGHT)))
    assert found.shape == x.shape
    assert found.dtype == np.float32
    wanted = [reference(a, b, w) for a, b, w in zip(one, other, WEIGHT, strict=True)]
    np.testing.assert_allclose(found.reshape(-1, size), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(-1, size), axis=1), 3, rtol=1e-6)


@kinds
@pytest.mark.parametrize("mode", MODES)
def test_the_ends_are_what_is_given(kind, mode):
    x, y = normals(3, 2)
    found = np.asarray(MODES[mode](kind(x), kind(y), kind(WEIGHT)))
    np.testing.assert_array_equal(found[[0, 4]], [x[0], y[4]])


@kinds
def test_the_line(kind):
    x, y = normals(2, 2)
    wanted = [a + w * (b - a) for a, b, w in zip(x.astype(np.float64), y, WEIGHT, strict=True)]
    np.testing.assert_allclose(linear(kind(x), kind(y), kind(WEIGHT)), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-7, -1.0, -3.0, 0.0])
def test_vectors_of_one_line_have_a_straight_line_between(factor):
    x = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    y = (factor * x).astype(np.float32)
    weight = np.array([0.2, 0.5, 1], np.float32)
    wanted = (1 - weight[:, None]) * x + weight[:, None] * y
    np.testing.assert_allclose(spherical(x, y, weight), wanted, atol=2e-6)
    np.testing.assert_allclose(spherical(y, x, 1 - weight), wanted, atol=2e-6)
    assert np.isfinite(np.asarray(spherical(0 * x, 0 * y, weight))).all()


def test_close_vectors_are_between_by_an_arc():
    """Where float32 has the cosine of the angle as 1."""
    x = np.array([[1.0, 0]], np.float32)
    y = np.array([[1.0, 3e-4]], np.float32)
    found = np.asarray(spherical(x, y, np.array([0.5], np.float32)))
    np.testing.assert_allclose(found, [[1, 1.5e-4]], rtol=1e-5)
