from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from artifex.generative_models.core import Endpoint, Model, Option, TensorSpec
from artifex.generative_models.core.endpoint import ExportableModel
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.models.vae import VAE


@pytest.mark.parametrize("dtype", [jnp.float32, np.float32, "float32", np.dtype("float32"), float])
def test_a_spec_has_one_form_of_a_dtype(dtype: object) -> None:
    wanted = np.dtype("float64" if dtype is float else "float32")
    assert TensorSpec((2,), dtype).dtype == wanted
    assert isinstance(TensorSpec((2,), dtype).dtype, np.dtype)
    assert TensorSpec((2,), dtype) == TensorSpec((2,), wanted)


STEPS = Option(10, minimum=1, maximum=50)
ETA = Option(0.0, minimum=0)
MODE = Option("a", choices=("a", "b"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (STEPS, 0, "at least 1, got 0"),
        (STEPS, 51, "at most 50, got 51"),
        (STEPS, 2.5, "an integer, got 2.5"),
        (STEPS, True, "an integer, got True"),
        (STEPS, "3", "an integer, got '3'"),
        (STEPS, None, "an integer, got None"),
        (ETA, "x", "a number, got 'x'"),
        (ETA, float("nan"), "at least 0, got nan"),
        (MODE, "c", "one of a, b, got 'c'"),
    ],
)
def test_what_an_option_may_not_be_is_refused(option: Option, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"run: name: expected {words}"):
        option.check("run", "name", value)


def test_an_option_whose_default_it_may_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="steps: expected at least 1, got 0"):
        Endpoint(lambda model, keys, inputs: inputs, {}, {"steps": replace(STEPS, default=0)})


@pytest.mark.parametrize(
    ("option", "value"), [(STEPS, 50), (STEPS, np.int64(3)), (ETA, 1), (ETA, 0.5), (MODE, "b")]
)
def test_what_an_option_may_be_is_taken(option: Option, value: Any) -> None:
    option.check("run", "name", value)


def test_protocols(tiny_vae: VAE) -> None:
    assert isinstance(tiny_vae, Model)
    assert isinstance(tiny_vae, ExportableModel)
    assert not isinstance(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), Model)
