"""A model that is ready: compiled, described, and kept while it is in use."""

import asyncio

import jax
import numpy as np
import pytest
from shared import rows

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.images import is_picture
from artifex.serving.plane.loaded_model import LoadedModel
from artifex.serving.plane.origins import ExportSource

ROW = TensorSpec((3,), np.float32)


def plus(model, keys, inputs):
    return {"y": model["w"] + inputs["x"]}


def minus(model, keys, inputs):
    return {"y": inputs["x"] - model["w"]}


def draw(model, keys, inputs):
    return {"image": jax.vmap(lambda key: jax.random.normal(key, (2, 3, 4)))(keys)}


def same(model, keys, inputs):
    return {"y": inputs["picture"], "n": inputs["n"]}


def plus_half(model, keys, inputs):
    return {"y": inputs["x"] + model["w"].astype(np.float32)}


@pytest.fixture
def load():
    """Loads models, and closes them at the end."""
    loaded = []

    def load(pipeline, version="1", replaces=None, progress=lambda *_: None):
        loaded.append(LoadedModel(pipeline, version, replaces=replaces, max_queued_rows=8, progress=progress))
        return loaded[-1]

    yield load
    for model in loaded:
        model.batcher.close()


def adder(w, fn=plus, sizes=(1, 2), config=None, kind="adder"):
    executor = Executor({"w": np.asarray(w)}, {"run": Endpoint(fn, {"x": ROW})}, batch_sizes=sizes)
    return InferencePipeline(executor, config=config, metadata={"model_type": kind})


def run(model, n=2):
    return model.batcher.submit("run", {"x": rows(n)}).result()["y"]


def test_everything_is_compiled_and_progress_is_told(load, compilations):
    told = []
    endpoints = {"plus": Endpoint(plus, {"x": ROW}), "minus": Endpoint(minus, {"x": ROW})}
    executor = Executor({"w": np.float32(1)}, endpoints, batch_sizes=(1, 2, 4))
    model = load(InferencePipeline(executor), progress=lambda *step: told.append(step))
    assert told == [(name, done, 6) for done, name in enumerate(["plus"] * 3 + ["minus"] * 3, 1)]
    assert model.num_compiled == executor.compile_count == 6
    assert model.warmup_seconds > 0
    compilations.clear()
    for name in endpoints:
        for n in (1, 2, 3, 4, 7):
            model.batcher.submit(name, {"x": rows(n)}).result()
    assert compilations == []


def test_other_weights_take_over_what_is_compiled_and_both_run(load):
    old = load(adder(np.float32(1)))
    new = load(adder(np.float32(5)), replaces=old)
    assert (old.num_compiled, new.num_compiled) == (2, 0)
    np.testing.assert_array_equal(run(new), rows(2) + 5)
    np.testing.assert_array_equal(run(old), rows(2) + 1)
    third = load(adder(np.float32(9)), replaces=new)
    old.batcher.close()
    assert third.num_compiled == 0
    np.testing.assert_array_equal(run(third), rows(2) + 9)


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.ones((1, 3), np.float32)},
        {"w": np.float16(5), "fn": plus_half},
        {"w": np.float32(5), "sizes": (1, 4)},
        {"w": np.float32(5), "config": {"sign": -1}, "fn": minus},
        {"w": np.float32(5), "kind": "subtractor", "fn": minus},
    ],
    ids=["shapes", "dtypes", "batch sizes", "config", "family"],
)
def test_another_model_is_compiled_anew(load, other):
    old = load(adder(np.float32(1)))
    new = load(adder(**other), replaces=old)
    assert new.num_compiled == 2
    sign = -1 if other.get("fn") is minus else 1
    np.testing.assert_array_equal(run(new), rows(2) + sign * np.float32(other["w"]))
    np.testing.assert_array_equal(run(old), rows(2) + 1)


def test_endpoints_as_the_protocols_show_them(load):
    mean = TensorSpec((), np.float32, default=0.0)
    picture = TensorSpec((4, 5, 3), np.uint8)
    endpoints = {
        "draw": Endpoint(draw, {"mean": mean}, {}, "draws"),
        "same": Endpoint(same, {"picture": picture, "n": ROW}),
    }
    model = load(InferencePipeline(Executor(None, endpoints, batch_sizes=(1,))))
    first, second = model.endpoints["draw"], model.endpoints["same"]
    assert (first.draws, second.draws) == (True, False)
    assert (first.doc, dict(first.options)) == ("draws", {})
    assert first.tensors == (
        [
            {"name": "mean", "datatype": "FP32", "shape": [-1]},
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
        ],
        [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 3, 4]}],
    )
    assert second.tensors[0] == [
        {"name": "picture", "datatype": "UINT8", "shape": [-1, 4, 5, 3]},
        {"name": "n", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert [first.is_optional(name) for name in ("mean", "seed")] == [True, True]
    assert [second.is_optional(name) for name in ("picture", "n")] == [False, False]
    assert (first.picture_inputs, first.picture_outputs) == ([], ["image"])
    assert (second.picture_inputs, second.picture_outputs) == (["picture"], ["y"])


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((8, 8, 1), True),
        ((8, 8, 3), True),
        ((8, 8, 4), True),
        ((8, 8, 2), False),
        ((8, 8), False),
        ((3,), False),
    ],
)
def test_pictures_are_what_a_png_can_hold(shape, wanted):
    assert is_picture(TensorSpec(shape, np.float32)) == wanted


def test_a_model_is_in_use_until_the_last_stream_ends(load):
    model = load(adder(np.float32(1)))

    async def main():
        await model.unused()
        with model.in_use():
            with pytest.raises(ZeroDivisionError), model.in_use():
                raise ZeroDivisionError
            waiting = asyncio.ensure_future(model.unused())
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

    asyncio.run(main())


def test_a_replaced_stream_goes_on_until_it_ends(serving, scaler):
    async def main():
        async with serving({"m": scaler}) as plane:
            old, _ = plane.find("m.scale")
            with old.in_use():
                scaler.factor = 3
                await plane.repository.load("m")
                for n in (1, 2):
                    part = await old.batcher.submit_async("scale", {"x": rows(n)})
                    np.testing.assert_array_equal(part["y"], 2 * rows(n))
            await asyncio.gather(*plane.repository._drains)
            assert plane.repository.entries["m"].retired["2"]["scale"].requests == 2

    asyncio.run(main())


def test_a_second_step_leaves_a_start_that_compiles_nothing(export, add_step, load):
    """The next process begins with the step that this one ended with."""
    source = ExportSource(export, batch_size=1)
    first = load(*source.open())
    add_step(5)
    second = load(*source.open(), replaces=first)
    again = load(*source.open())
    assert (second.version, second.num_compiled) == ("5", 0)
    assert (again.version, again.num_compiled) == ("5", 0)
