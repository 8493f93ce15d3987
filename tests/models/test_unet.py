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
from artifex.generative_models.models.unet import UNet

SMALL = Golden("unet", "fourier").arguments  # the quickest to make


@pytest.fixture(scope="module", params=networks.names("unet"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden("unet", request.param)


def test_it_gives_what_diffusers_gives(golden: Golden) -> None:
    model = golden.model(UNet)
    assert golden.error(model) <= networks.TOLERANCE
    assert json.loads(json.dumps(model.config)) == golden.config


def test_a_wrong_epsilon_shows() -> None:
    golden = Golden("unet", "learned")
    assert golden.error(golden.model(UNet, norm_eps=1e-6)) > 10 * networks.TOLERANCE


def test_weights_in_bfloat16() -> None:
    """Some ten layers round to 8 bits, what they see is faint, and the output stays near."""
    golden = Golden("unet", "scale_shift")
    assert networks.TOLERANCE < golden.error(golden.model(UNet, jnp.bfloat16)) < 0.2


def test_rows_are_independent() -> None:
    golden = Golden("unet", "learned")
    model = golden.model(UNet)
    alone = [networks.call(model, *(each[i : i + 1] for each in golden.inputs)) for i in range(2)]
    together = networks.call(model, *golden.inputs)
    # Batches of another size may sum in another order.
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-5)


def test_the_defaults_make_a_network_of_their_weights() -> None:
    """As many as `diffusers.UNet2DModel()` has."""
    leaves = jax.tree.leaves(nnx.state(abstract(UNet), nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 274_056_163


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, r"down_block_types\[0\].*AttnDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", 3]}, r"up_block_types\[1\].*AttnUpBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types: expected 2 items"),
        ({"mid_block_type": "MidBlock"}, "mid_block_type.*UNetMidBlock2D"),
        ({"sample_size": [8]}, "sample_size: expected 2 items"),
        ({"sample_size": "8"}, "sample_size: expected a list"),
        ({"block_out_channels": 4}, "block_out_channels: expected a list"),
        ({"block_out_channels": []}, "block_out_channels: expected a list"),
        ({"block_out_channels": [4, 0]}, r"block_out_channels\[1\]: expected an integer"),
        ({"block_out_channels": [1] * 15}, "length of block_out_channels: expected an integer from 1 to 14"),
        ({"block_out_channels": [3, 4], "time_embedding_type": "positional"}, "even number"),
        (
            {"time_embedding_type": "positional", "freq_shift": 2},
            "freq_shift: expected an integer from 0 to 1",
        ),
        ({"time_embedding_type": "learned"}, "num_train_timesteps: expected an integer"),
        (
            {"time_embedding_type": "random"},
            "time_embedding_type: expected one of positional, fourier, learned",
        ),
        ({"norm_num_groups": 3}, r"norm_num_groups: expected a divisor of block_out_channels\[0\]"),
        ({"norm_num_groups": None}, "norm_num_groups: expected an integer"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups: expected a divisor"),
        ({"attention_head_dim": 5, "add_attention": True}, "attention_head_dim: expected at most 4"),
        ({"norm_eps": 0}, "norm_eps: expected a number above 0"),
        ({"layers_per_block": [1, 2]}, "layers_per_block: expected an integer"),
        ({"downsample_padding": 2}, "downsample_padding: expected an integer from 0 to 1"),
        ({"downsample_type": "fir"}, "downsample_type: expected one of conv, resnet"),
        (
            {"resnet_time_scale_shift": "spatial"},
            "resnet_time_scale_shift: expected one of default, scale_shift",
        ),
        ({"act_fn": "tanh"}, "act_fn: expected one of silu"),
        ({"class_embed_type": "projection"}, "class_embed_type: expected one of timestep, identity"),
        ({"center_input_sample": 1}, "center_input_sample: expected true or false"),
    ],
)
def test_arguments_of_no_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract(UNet, **SMALL | changes)


@pytest.mark.parametrize(
    ("name", "shape", "label", "message"),
    [
        ("defaults", (2, 4, 5, 3), None, r"x: expected a height and width in multiples of 2, got \(4, 5\)"),
        ("defaults", (2, 4, 4, 3), np.zeros(2, np.int32), "label: expected none"),
        ("resnet", (2, 8, 8, 3), None, "label: expected one"),
        ("fourier", (2, 8, 8, 3), None, "label: expected one"),
    ],
)
def test_inputs_that_do_not_fit(name: str, shape: tuple[int, ...], label: Any, message: str) -> None:
    model = abstract(UNet, **Golden("unet", name).arguments)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(networks.call, model, jnp.zeros(shape), jnp.zeros(2), label)
