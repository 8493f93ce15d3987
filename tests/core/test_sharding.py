"""Where weights go on a mesh; that results do not depend on it is a law of `tests/inference/test_laws.py`."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from shared import decode

from artifex.generative_models.core import DeviceManager, Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sharding import WeightLayout, logical_axes
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.pipeline import load_pipeline

pytestmark = pytest.mark.eight_devices


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    """Two copies of the weights, each over four devices."""
    return DeviceManager().mesh(model_devices=4)


RULES = {"features": "model", "heads": None}


@pytest.mark.parametrize(
    ("shard", "shape", "names", "spec"),
    [
        (None, (8, 4), ("features", None), (None, None)),
        ("model", (8, 4), (None, "features"), (None, "model")),
        ("model", (4, 8), ("features", "features"), ("model", None)),
        ("model", (6, 8), ("features", "heads"), (None, "model")),
        ("model", (6, 8), ("features", None), (None, None)),  # what is named decides, though 8 divides
        ("model", (4, 6, 8), (), (None, None, "model")),
        ("model", (3, 5), (), (None, None)),
        ("model", (), (), ()),
        ("model", (0, 4), (), (None, None)),
        (RULES, (8, 4), ("features", "heads"), ("model", None)),
        (RULES, (7, 8), (None, "features"), (None, "model")),
        (RULES, (8, 8), (), ()),
        (RULES, (8, 8), ("others", "heads"), (None, None)),
    ],
)
def test_where_a_weight_goes(mesh, shard, shape, names, spec):
    assert WeightLayout(mesh, shard).sharding(shape, names).spec == PartitionSpec(*spec)


@pytest.mark.parametrize("shard", ["rows", "data", {"features": "rows"}, {"features": "data"}])
def test_a_mesh_axis_that_weights_cannot_have(mesh, shard):
    with pytest.raises(InputError, match=r"shard: expected axes of the mesh besides 'data'"):
        WeightLayout(mesh, shard)


def test_a_rule_that_does_not_divide(mesh):
    with pytest.raises(InputError, match=r"shard: 'features': the 4 devices of 'model' do not divide 6"):
        WeightLayout(mesh, RULES).sharding((6, 4), ("features", None))


def test_weights_cannot_be_cut_without_a_mesh(tiny_vae):
    with pytest.raises(InputError, match="pass mesh= too"):
        Executor(tiny_vae, shard="model")


def test_a_layer_names_its_axes_and_is_made_without_a_mesh():
    layer = nnx.Linear(2, 4, kernel_metadata=logical_axes(None, "features"), rngs=nnx.Rngs(0))
    assert layer.kernel.get_metadata()["out_sharding"] == (None, "features")
    assert layer.kernel.get_raw_value().sharding.device_set == {jax.devices()[0]}


def test_each_device_holds_its_part_and_no_more(mesh):
    pipeline = load_pipeline("mnist-vae", mesh=mesh, shard="model", batch_size=8)
    weights = pipeline.executor.weights
    whole = sum(weight.nbytes for weight in weights)
    held = sum(weight.addressable_shards[0].data.nbytes for weight in weights)
    assert held < 0.26 * whole  # a quarter, and the last biases, which are too small to cut
    restored = jax.tree.leaves(nnx.state(pipeline.model))  # straight to their places, never whole on a device
    assert {leaf.sharding for leaf in restored} == {weight.sharding for weight in weights}
    expected = jax.tree.leaves(nnx.state(load_exported_model("mnist-vae")[0]))
    for weight, wanted in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(weight, wanted)


def test_weights_of_any_library_are_cut(mesh):
    rng = np.random.default_rng(0)
    parameters = {"w": rng.random((8, 3), np.float32), "b": rng.random(3, np.float32)}
    row = TensorSpec((8,), np.float32)
    affine = Endpoint(
        lambda model, keys, inputs: {"y": inputs["x"] @ model["w"] + model["b"][None]}, {"x": row}
    )
    executor = Executor(parameters, {"affine": affine}, mesh=mesh, shard="model", batch_sizes=(2,))
    assert [weight.sharding.spec for weight in executor.weights] == [
        PartitionSpec(None),
        PartitionSpec("model", None),
    ]
    x = rng.random((5, 8), np.float32)
    np.testing.assert_allclose(
        executor("affine", {"x": x})["y"], x @ parameters["w"] + parameters["b"], rtol=1e-6
    )


def test_new_weights_under_the_same_executables_are_cut_alike(mesh, tiny_vae):
    executor = Executor(tiny_vae, mesh=mesh, shard="model", batch_sizes=(2,))
    z = np.ones((2, 4), np.float32)
    before = np.asarray(executor("decode", {"z": z})["x"])
    other = type(tiny_vae)(**tiny_vae.config, rngs=nnx.Rngs(1))
    executor.swap(other)
    after = np.asarray(executor("decode", {"z": z})["x"])
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, decode(other, z), rtol=1e-4, atol=1e-5)
    assert executor.compile_count == 1
