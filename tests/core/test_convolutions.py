"""Forms of 3×3 convolutions: they agree with the plain one, and are taken where they are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import randomised

from artifex.generative_models.core.convolutions import (
    PLAIN,
    ConvShape,
    doubled,
    filters_made_before,
    filters_of,
    formed,
    forms_for,
    forms_of_convolutions,
    plain,
    shapes_of_convolutions,
)
from artifex.generative_models.core.nn import Conv3x3

# Compiled whole, since each operation that is compiled alone takes its time.
compiled = jax.jit(formed, static_argnums=(2, 3))
compiled_filters = jax.jit(filters_of, static_argnums=(1, 2))
compiled_plain = jax.jit(plain)

# Rounding of sums of some hundred float32 products, over the output's deviation, by form. In what order the
# plain form sums depends on the processor.
TOLERANCES = {PLAIN: 5e-6, 2: 1e-5, 4: 1e-4}


def drawn(shape, doubles=False, rows=2, dtype=np.float32):
    random = np.random.default_rng(0)
    height, width, in_features, features = shape
    scale = 1 + doubles
    x = random.normal(size=(rows, height // scale, width // scale, in_features))
    kernel = random.normal(size=(3, 3, in_features, features))
    return jax.device_put((x.astype(dtype), kernel.astype(dtype)))


def by_hand(x, kernel):
    """The sum of nine shifted products, in float64."""
    wide = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, (height, width) = np.asarray(kernel, np.float64), x.shape[1:3]
    return sum(wide[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("shape", [(8, 8, 16, 8), (4, 6, 1, 3), (2, 10, 3, 1), (14, 2, 5, 7)])
def test_every_form_is_the_convolution(shape, doubles):
    """Also where tiles do not divide the picture, or are larger than it."""
    x, kernel = drawn(shape, doubles)
    wanted = by_hand(np.asarray(x).repeat(2, 1).repeat(2, 2) if doubles else x, kernel)
    for form in forms_for(ConvShape(*shape, doubles)):
        filters = kernel if form == PLAIN else compiled_filters(kernel, doubles, form)
        found = np.asarray(compiled(x, filters, doubles, form))
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= TOLERANCES[form] * wanted.std()


def test_pictures_of_odd_sizes_and_of_one_pixel():
    for height, width in ((1, 1), (3, 5), (7, 9)):
        x, kernel = drawn((height, width, 4, 4))
        for form in (2, 4):
            found = np.asarray(compiled(x, compiled_filters(kernel, False, form), False, form))
            np.testing.assert_allclose(found, by_hand(x, kernel), rtol=1e-3, atol=1e-3)


def test_rows_know_nothing_of_one_another():
    x, kernel = map(np.asarray, drawn((8, 8, 4, 4), rows=3))
    for form in (2, 4):
        filters = compiled_filters(kernel, False, form)
        whole, alone = (np.asarray(compiled(rows, filters, False, form)) for rows in (x, x[1:2]))
        np.testing.assert_allclose(whole[1:2], alone, rtol=1e-4, atol=1e-4)
        broken = np.asarray(
            compiled(np.where(np.arange(3)[:, None, None, None] > 0, x, np.nan), filters, False, form)
        )
        assert np.isfinite(broken[1:]).all()


def called(layer, x):
    """What a layer gives; it is traced at each call, since the forms may be others."""
    return np.asarray(jax.jit(lambda layer, x: layer(x))(layer, x))


def test_a_layer_takes_the_form_of_its_shape():
    x, _ = drawn((8, 8, 4, 6))
    layer = randomised(lambda: Conv3x3(4, 6, rngs=nnx.Rngs(0)))
    shape = ConvShape(8, 8, 4, 6, doubles=False)
    with shapes_of_convolutions() as seen:
        wanted = called(layer, x)
    assert seen == {shape}
    by_itself = np.asarray(compiled_plain(x, layer.kernel[...])) + np.asarray(layer.bias[...])
    np.testing.assert_array_equal(wanted, by_itself)
    for chosen in ({}, {shape._replace(height=4): 4}, {shape._replace(doubles=True): 2}):
        with forms_of_convolutions(chosen):
            np.testing.assert_array_equal(called(layer, x), wanted)
    with forms_of_convolutions({shape: 4}):
        other = called(layer, x)
    assert 0 < np.abs(other - wanted).max() < 1e-4 * wanted.std()
    np.testing.assert_array_equal(called(layer, x), wanted)


def test_a_layer_of_doubled_pixels():
    x, _ = drawn((8, 8, 4, 6), doubles=True)
    layer = randomised(lambda: Conv3x3(4, 6, use_bias=False, doubles=True, rngs=nnx.Rngs(0)))
    with shapes_of_convolutions() as seen:
        wanted = called(layer, x)
    shape = ConvShape(8, 8, 4, 6, doubles=True)
    assert seen == {shape}
    np.testing.assert_array_equal(wanted, compiled_plain(jax.jit(doubled)(x), layer.kernel[...]))
    with forms_of_convolutions({shape: 2}):
        np.testing.assert_allclose(called(layer, x), wanted, rtol=1e-4, atol=1e-5)


def test_computing_in_bfloat16():
    x, kernel = drawn((8, 8, 16, 8), dtype=jnp.bfloat16)
    filters = compiled_filters(kernel, False, 2)
    assert filters.dtype == jnp.bfloat16
    found = compiled(x, filters, False, 2)
    assert found.dtype == jnp.bfloat16
    wanted = by_hand(x, kernel)
    assert np.abs(np.asarray(found, np.float64) - wanted).max() < 0.1 * wanted.std()


@pytest.mark.parametrize("form", [PLAIN, 2])
def test_weights_and_pictures_of_two_dtypes(form):
    """As layers of Flax do, it computes in the wider one."""
    x, kernel = drawn((8, 8, 4, 6), dtype=jnp.bfloat16)
    layer = randomised(lambda: Conv3x3(4, 6, rngs=nnx.Rngs(0)))
    wide = randomised(lambda: nnx.Conv(4, 6, (3, 3), padding=1, rngs=nnx.Rngs(0)))
    wide.bias = layer.bias
    layer.kernel, wide.kernel = nnx.Param(kernel), nnx.Param(kernel)
    chosen = {ConvShape(8, 8, 4, 6, doubles=False): form}
    with forms_of_convolutions(chosen), jax.numpy_dtype_promotion("standard"):
        found, wanted = (called(each, np.asarray(x, np.float32)) for each in (layer, wide))
    assert found.dtype == wanted.dtype == jnp.float32
    assert np.abs(found - wanted).max() < (1e-5 if form == PLAIN else 0.02) * wanted.std()


class Stack(nnx.Module):
    """Two layers, of which one is a layer in another form."""

    def __init__(self):
        self.first = Conv3x3(4, 4, rngs=nnx.Rngs(0))
        self.second = Conv3x3(4, 4, doubles=True, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(self.first(x))[:, ::2, ::2]


def test_kernels_are_turned_to_filters_once_outside_of_loops():
    graphdef, state = nnx.split(randomised(Stack))
    x, _ = drawn((8, 8, 4, 4))
    forms = {ConvShape(8, 8, 4, 4, doubles=False): 4, ConvShape(16, 16, 4, 4, doubles=True): 2}

    def looped(state, x):
        model = nnx.merge(graphdef, state)
        with filters_made_before(model):
            return jax.lax.fori_loop(0, 3, lambda _, x: 0.1 * model(x), x)

    plainly = jax.jit(looped)(state, x)
    with forms_of_convolutions(forms):
        # JAX keeps what it traced of a function, whatever the forms were.
        traced = jax.make_jaxpr(lambda *given: looped(*given))(state, x)
        found = jax.jit(lambda *given: looped(*given))(state, x)
    np.testing.assert_allclose(found, plainly, rtol=1e-3, atol=1e-5)
    (loop,) = [equation for equation in traced.jaxpr.eqns if equation.primitive.name in ("while", "scan")]
    body = str(loop.params.get("body_jaxpr") or loop.params["jaxpr"])
    assert "f32[36,4,4]" in body
    assert "f32[2,2,2,2,4,4]" in body
    assert "f32[3,3,4,4]" in str(traced).replace(body, "")
    assert "f32[3,3,4,4]" not in body
