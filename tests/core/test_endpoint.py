import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core import Model, TensorSpec
from artifex.generative_models.core.endpoint import ExportableModel
from artifex.generative_models.models.vae import VAE


@pytest.mark.parametrize("dtype", [jnp.float32, np.float32, "float32", np.dtype("float32"), float])
def test_a_spec_has_one_form_of_a_dtype(dtype: object) -> None:
    wanted = np.dtype("float64" if dtype is float else "float32")
    assert TensorSpec((2,), dtype).dtype == wanted
    assert isinstance(TensorSpec((2,), dtype).dtype, np.dtype)
    assert TensorSpec((2,), dtype) == TensorSpec((2,), wanted)


def test_protocols(tiny_vae: VAE) -> None:
    assert isinstance(tiny_vae, Model)
    assert isinstance(tiny_vae, ExportableModel)
    assert not isinstance(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), Model)
