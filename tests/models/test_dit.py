import json
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx
from networks import Golden, abstract

from artifex.generative_models.core.errors import ConfigError, InputError
from artifex.generative_models.core.nn import position_sinusoids
from artifex.generative_models.models.dit import DiT


@pytest.fixture(scope="module", params=networks.names("dit"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden("dit", request.param)


def test_it_gives_what_diffusers_gives(golden: Golden) -> None:
    model = golden.model(DiT)
    assert golden.error(model) <= networks.TOLERANCE
    assert json.loads(json.dumps(model.config)) == golden.config


def test_a_wrong_epsilon_shows() -> None:
    golden = Golden("dit", "affine")
    assert golden.error(golden.model(DiT, norm_eps=1e-5)) > 10 * networks.TOLERANCE


def test_weights_in_bfloat16() -> None:
    """Some ten layers round to 8 bits, and the output stays near."""
    golden = Golden("dit", "classes")
    assert networks.TOLERANCE < golden.error(golden.model(DiT, jnp.bfloat16)) < 0.1


def test_rows_are_independent() -> None:
    golden = Golden("dit", "classes")
    model = golden.model(DiT)
    alone = [networks.call(model, *(each[i : i + 1] for each in golden.inputs)) for i in range(2)]
    together = networks.call(model, *golden.inputs)
    # Batches of another size may sum in another order.
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-5)


def test_pictures_need_not_be_square() -> None:
    model = abstract(DiT, **Golden("dit", "classes").arguments)
    y = jax.eval_shape(networks.call, model, jnp.zeros((2, 4, 8, 4)), jnp.zeros(2), jnp.zeros(2, jnp.int32))
    assert y == jax.ShapeDtypeStruct((2, 4, 8, 8), jnp.float32)


def test_places_are_told_column_first() -> None:
    table = position_sinusoids(3, 2, 8, row_step=0.5)
    row, column = 2, 1
    angles = np.array([column, column / 100, row / 2, row / 200])
    waves = [np.sin(angles[:2]), np.cos(angles[:2]), np.sin(angles[2:]), np.cos(angles[2:])]
    np.testing.assert_allclose(table[row, column], np.concatenate(waves), rtol=1e-6)  # float32


def test_the_defaults_make_a_network_of_their_weights() -> None:
    """As many as `diffusers.DiTTransformer2DModel()` has."""
    leaves = jax.tree.leaves(nnx.state(abstract(DiT), nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 749_808_016


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: expected an integer"),
        (
            {"num_attention_heads": 1, "attention_head_dim": 6},
            "num_attention_heads times attention_head_dim.* 6",
        ),
        ({"patch_size": 9}, "patch_size: expected an integer from 1 to 8, got 9"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm: expected an integer"),
        ({"activation_fn": "relu"}, "activation_fn: expected one of gelu, gelu-approximate"),
        ({"norm_type": "layer_norm"}, "norm_type: expected one of ada_norm_zero"),
        ({"norm_eps": "1e-5"}, "norm_eps: expected a number"),
        ({"attention_bias": None}, "attention_bias: expected true or false"),
    ],
)
def test_arguments_of_no_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract(DiT, **Golden("dit", "classes").arguments | changes)


def test_pictures_that_cannot_be_cut_into_patches() -> None:
    model = abstract(DiT, **Golden("dit", "classes").arguments)
    with pytest.raises(InputError, match=r"x: expected a height and width in multiples of 2, got \(8, 7\)"):
        jax.eval_shape(networks.call, model, jnp.zeros((2, 8, 7, 4)), jnp.zeros(2), jnp.zeros(2, jnp.int32))
