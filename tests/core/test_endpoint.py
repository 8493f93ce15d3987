import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core import Model, TensorSpec
from artifex.generative_models.core.endpoint import (
    ExportableModel,
    row_keys,
    sample_key,
    sample_key_data,
    sample_keys_data,
)
from artifex.generative_models.models.vae import VAE


@pytest.mark.parametrize("dtype", [jnp.float32, np.float32, "float32", np.dtype("float32"), float])
def test_a_spec_has_one_form_of_a_dtype(dtype: object) -> None:
    wanted = np.dtype("float64" if dtype is float else "float32")
    assert TensorSpec((2,), dtype).dtype == wanted
    assert isinstance(TensorSpec((2,), dtype).dtype, np.dtype)
    assert TensorSpec((2,), dtype) == TensorSpec((2,), wanted)


def test_row_keys_are_those_of_one_row_at_a_time() -> None:
    key = jax.random.key(3)
    rows = [0, 1, 5, 2**31, 2**32 - 1]
    keys = jnp.broadcast_to(key, len(rows))
    found = jax.random.key_data(row_keys(keys, jnp.asarray(rows, jnp.uint32)))
    for row, words in zip(rows, found, strict=True):
        np.testing.assert_array_equal(words, jax.random.key_data(jax.random.fold_in(key, np.uint32(row))))
    assert len(np.unique(found, axis=0)) == len(rows)


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


def test_keys_of_many_seeds_are_those_of_each() -> None:
    seeds = [0, 1, 7, 2**31, 2**32 - 1]
    for seed, words in zip(seeds, sample_keys_data(seeds), strict=True):
        np.testing.assert_array_equal(words, jax.random.key_data(nnx.Rngs(seed).sample()))
    with jax.default_prng_impl("rbg"):
        expected = [sample_key_data(seed) for seed in seeds]
        np.testing.assert_array_equal(sample_keys_data(seeds), expected)
        assert len(expected[0]) == 4


def test_a_seed_means_the_same_with_other_kinds_of_keys() -> None:
    with jax.default_prng_impl("rbg"):
        assert sample_key(7) == nnx.Rngs(7).sample()


def test_protocols(tiny_vae: VAE) -> None:
    assert isinstance(tiny_vae, Model)
    assert isinstance(tiny_vae, ExportableModel)
    assert not isinstance(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), Model)
