"""Models of every kind: they are evaluated, not trained, and what is replaced in them is seen."""

import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, collector_off

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.inference import Batcher, Executor, InferencePipeline
from artifex.generative_models.inference.executor.placement import Placement
from artifex.generative_models.inference.executor.shared import executor_for

ONE = TensorSpec((1,), jnp.float32)
X = np.array([[1.0], [2.0], [3.0]], np.float32)


def run(model, keys, inputs):
    return {"y": model(inputs["x"])}


class Layers(nnx.Module):
    """y = scale · dropout(batch_norm(x) + shift(x)), of which the shift is 0."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(1, epsilon=0.0, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.shifts = nnx.List([nnx.Linear(1, 1, use_bias=False, rngs=rngs)])
        self.shifts[0].kernel[...] = jnp.zeros((1, 1))
        self.scale = 1.0
        self.table = jnp.ones(())
        self.settings = {"power": 1}

    def __call__(self, x):
        y = self.dropout(self.norm(x) + self.shifts[0](x))
        return self.scale * self.table * y ** self.settings["power"]

    def endpoints(self):
        return {"run": Endpoint(run, {"x": ONE})}


class ClosesOverItself(Layers):
    def endpoints(self):
        return {"run": Endpoint(lambda model, keys, inputs: {"y": self(inputs["x"])}, {"x": ONE})}


@pytest.fixture(params=[Layers, ClosesOverItself])
def layers(request):
    return request.param(rngs=nnx.Rngs(0))


def y(executor, x=X):
    return np.asarray(executor("run", {"x": x})["y"])[:, 0].tolist()


def test_normalisation_and_dropout_evaluate_and_the_model_stays_in_training_mode(layers):
    executor = Executor(layers, batch_sizes=(1, 4))
    assert y(executor) == [1, 2, 3]
    assert y(executor, X[:1]) == [1]
    assert not layers.dropout.deterministic
    assert not layers.norm.use_running_average


def test_a_switch_of_modes_compiles_nothing(layers):
    executor = Executor(layers, batch_sizes=(4,))
    for switch in (layers.eval, layers.train, layers.eval):
        switch()
        assert y(executor) == [1, 2, 3]
    assert executor.compile_count == 1


def test_loaded_models_are_in_evaluation_mode(monkeypatch):
    entry_point = type("EntryPoint", (), {"load": staticmethod(lambda: Layers)})
    monkeypatch.setattr("artifex.generative_models.core.config._table", lambda: {"layers": entry_point})
    model = abstract_model("layers", {})
    assert model.dropout.deterministic
    assert model.norm.use_running_average


def norm(scale=1.0):
    constant = nnx.initializers.constant(scale)
    return nnx.BatchNorm(1, epsilon=0.0, scale_init=constant, rngs=nnx.Rngs(0))


def identity():
    return nnx.Linear(1, 1, use_bias=False, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))


CHANGES = {
    "a weight in place": lambda m: m.norm.scale.set_value(jnp.full(1, 2.0)),
    "a weight": lambda m: setattr(m.norm, "scale", nnx.Param(jnp.full(1, 2.0))),
    "a layer": lambda m: setattr(m, "norm", norm(scale=2.0)),
    "a layer of a list": lambda m: m.shifts.__setitem__(0, identity()),
    "a static attribute": lambda m: setattr(m, "scale", 2.0),
    "an array that is no variable": lambda m: setattr(m, "table", jnp.full((), 2.0)),
    "a layer that was added": lambda m: m.shifts.insert(0, identity()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_replaced_is_seen_by_the_next_call(change):
    layers = Layers(rngs=nnx.Rngs(0))
    executor = Executor(layers, batch_sizes=(4,))
    job = executor.check("run", {"x": X})
    assert y(executor) == [1, 2, 3]
    change(layers)
    assert y(executor) == [2, 4, 6]
    assert executor.run(job)["y"].shape == (4, 1)  # what waited runs, as the model was
    assert [part["y"][:, 0].tolist() for part in executor.map("run", [{"x": X}])] == [[2, 4, 6]]


def test_a_setting_within_a_static_attribute():
    layers = Layers(rngs=nnx.Rngs(0))
    executor = Executor(layers, batch_sizes=(4,))
    assert y(executor) == [1, 2, 3]
    layers.settings["power"] = 2
    assert y(executor) == [1, 4, 9]


def test_an_equal_value_of_another_shape_is_another():
    def table(model, keys, inputs):
        return {"y": jnp.stack([model.table] * len(inputs["x"]))}

    layers = Layers(rngs=nnx.Rngs(0))
    executor = Executor(layers, {"table": Endpoint(table, {"x": ONE})}, batch_sizes=(1,))
    assert executor("table", {"x": X[:1]})["y"].shape == (1,)
    layers.table = jnp.ones((1, 1))
    assert executor("table", {"x": X[:1]})["y"].shape == (1, 1, 1)


def test_queues_and_pipelines_see_what_is_replaced():
    layers = Layers(rngs=nnx.Rngs(0))
    pipeline = InferencePipeline(layers)
    with Batcher(pipeline.executor) as batcher:
        assert batcher.submit("run", {"x": X}).result(TIMEOUT)["y"][:, 0].tolist() == [1, 2, 3]
        pipeline.model.norm = norm(scale=2.0)
        pipeline.model.scale = 2.0
        assert batcher.submit("run", {"x": X}).result(TIMEOUT)["y"][:, 0].tolist() == [4, 8, 12]


def test_a_weight_of_the_same_shape_compiles_nothing():
    layers = Layers(rngs=nnx.Rngs(0))
    executor = Executor(layers, batch_sizes=(4,))
    y(executor)
    layers.norm = nnx.BatchNorm(1, epsilon=0.0, rngs=nnx.Rngs(1))
    y(executor)
    layers.norm.bias[...] = jnp.ones(1)  # of the new one, in place
    assert y(executor) == [2, 3, 4]
    assert executor.compile_count == 1


@pytest.mark.parametrize("kind", [Layers, ClosesOverItself])
def test_a_model_goes_with_its_last_name(kind):
    layers = kind(rngs=nnx.Rngs(0))
    with collector_off():
        executor = executor_for(layers)
        assert y(executor) == [1, 2, 3]
        gone = [weakref.ref(layers), weakref.ref(layers.norm.scale.get_value())]
        del layers, executor
        assert [reference() for reference in gone] == [None, None]


class Pair(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: object = jax.nn.relu  # not static: Equinox leaves it among the leaves
    power: float = 1.0

    def __call__(self, x):
        y = jax.vmap(self.linear)(x)
        return self.activation(self.dropout(y)) ** self.power

    def endpoints(self):
        return {"run": Endpoint(run, {"x": ONE})}


def make_pair():
    linear = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0))
    return Pair(eqx.tree_at(lambda layer: layer.weight, linear, jnp.full((1, 1), 2.0)), eqx.nn.Dropout(0.5))


def test_an_equinox_module_runs_in_inference_mode():
    pair = make_pair()
    executor = Executor(pair, batch_sizes=(2,))
    assert y(executor) == [2, 4, 6]
    assert executor.num_parameters == 1
    executor.swap(eqx.tree_at(lambda p: p.linear.weight, pair, jnp.full((1, 1), 3.0)))
    assert y(executor) == [3, 6, 9]
    assert executor.compile_count == 1


def test_an_equinox_module_is_shared_and_goes_with_its_last_name():
    pair = make_pair()
    assert executor_for(pair) is executor_for(pair)
    assert y(executor_for(pair)) == [2, 4, 6]
    with collector_off():
        gone = weakref.ref(pair)
        del pair
        assert gone() is None


def test_what_is_replaced_in_a_tree_is_seen():
    tree = {"w": jnp.asarray(2.0), "act": jnp.tanh, "power": 1}

    def power(model, keys, inputs):
        y = inputs["x"] ** model["power"] * model["w"]
        return {"y": y if model.get("b") is None else y + model["b"]}

    executor = Executor(tree, {"run": Endpoint(power, {"x": ONE})}, batch_sizes=(4,))
    assert y(executor) == [2, 4, 6]
    tree["power"] = 2
    assert y(executor) == [2, 8, 18]
    tree["w"] = jnp.asarray(3.0)
    assert y(executor) == [3, 12, 27]
    tree["b"] = jnp.asarray(1.0)
    assert y(executor) == [4, 13, 28]


def test_what_is_not_replaced_is_neither_cast_nor_placed_again(layers):
    executor = Executor(layers, dtype=jnp.bfloat16)
    y(executor)
    before = executor.weights
    layers.scale = 3.0
    layers.shifts[0] = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(5))
    after = executor.weights
    same = [new is old for new, old in zip(after, before, strict=True)]
    assert same.count(False) == 1
    assert after[same.index(False)].shape == (1, 1)


def test_to_look_at_a_model_places_nothing(layers, monkeypatch):
    monkeypatch.setattr(Placement, "put_weight", None)  # which cannot be called
    executor = Executor(layers)
    assert executor.spec("run")[1]["y"].shape == (1,)
    assert executor.captured_bytes("run") == 0
