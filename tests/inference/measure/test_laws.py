"""`check` says which law a model breaks, and of a good one that it breaks none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoisers import denoiser
from flax import nnx

from artifex import check
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.measure.throughput import example_rows

ROW = TensorSpec((3,), jnp.float32)
BIG = jnp.asarray(np.random.default_rng(0).random((200, 200), np.float32))
LAWS = [
    "closes over no arrays",
    "draws from its keys alone",
    "gives finite numbers",
    "gives a row the same alone",
    "gives a row the same beside others",
    "runs any number of rows as it is",
]


class Noisy(nnx.Module):
    def __init__(self):
        self.rngs = nnx.Rngs(0)

    def endpoints(self):
        return {"run": Endpoint(lambda model, keys, inputs: {"y": noisy(model, inputs["x"])}, {"x": ROW})}


def noisy(model, x):
    return x + jax.random.normal(model.rngs.noise(), x.shape)


def centred(model, keys, inputs):
    return {"y": inputs["x"] - inputs["x"].mean(axis=0, keepdims=True)}


def drawn(model, keys, inputs):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,), jnp.float32))(keys)
    return {"y": inputs["x"] + noise}


def broken(check_of: str, fn) -> list[str]:
    found = check(Executor(None, {check_of: Endpoint(fn, {"x": ROW})}))
    return [finding.law for finding in found.findings if not finding.holds]


def test_a_good_model_keeps_all(tiny_vae):
    found = check(tiny_vae)
    assert found.holds
    assert [finding.law for finding in found.findings if finding.endpoint == "generate"] == LAWS
    assert len(str(found).splitlines()) == 1 + 5 * len(LAWS)
    assert check(tiny_vae, endpoints=["decode"]).holds


def test_a_model_that_takes_steps_is_looked_at_while_it_takes_them():
    model = denoiser()
    assert check(model, endpoints=["generate"]).holds
    rows = example_rows(Executor(model, batch_sizes=(2,)), "generate", 2)
    np.testing.assert_array_equal(rows["num_steps"], [3, 3])


@pytest.mark.parametrize(
    ("fn", "laws"),
    [
        (drawn, []),
        (centred, ["gives a row the same alone"]),
        (lambda model, keys, inputs: {"y": inputs["x"] * BIG.sum()}, ["closes over no arrays"]),
        (lambda model, keys, inputs: {"y": jnp.log(-inputs["x"])}, ["runs"]),
        (lambda model, keys, inputs: (inputs["x"],), ["runs"]),
        (lambda model, keys, inputs: {"y": inputs["z"]}, ["runs"]),
    ],
)
def test_what_is_broken_is_told(fn, laws):
    found = broken("run", fn)
    assert found == laws or (laws == ["gives a row the same alone"] and set(laws) <= set(found))


def test_a_generator_within_the_model_is_told():
    (finding,) = [finding for finding in check(Noisy()).findings if "draws" in finding.law]
    assert not finding.holds
    assert "a generator within the model" in finding.note


def test_an_unknown_endpoint(tiny_vae):
    with pytest.raises(InputError, match="no endpoint 'nothing'"):
        check(tiny_vae, endpoints=["nothing"])
