"""What requests mean: seeds, rows, pictures, parameters and counters, on real models."""

import asyncio
import base64
import time
from typing import Any

import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, TOLERANCE, rows

from artifex import __version__
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import DeadlineExceededError, InputError
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.generative_models.inference.images import encode_png
from artifex.serving.plane.descriptions import (
    model_config,
    model_metadata,
    server_metadata,
    statistics,
)
from artifex.serving.plane.origins import PipelineSource
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import NotFoundError, NotReadyError, TooLargeError

X = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
Z = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
T = np.array([0.5], np.float32)


@pytest.fixture(scope="module")
def noise(compiled_plain):
    """The executor's random bits, which are the same in batches of any size."""
    return lambda seed, n: np.asarray(compiled_plain("noise", key=nnx.Rngs(seed).sample(), num_rows=n)["y"])


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    "form", [None, np.uint32, np.int64, np.uint64], ids=["parameter", "uint32", "int64", "uint64"]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_seed_is_for_all_rows(ask, noise, seed, form, shape):
    if form is None:
        response = ask("plain.noise", seed=seed, num_samples=3)
    else:
        response = ask("plain.noise", {"seed": np.full(shape, seed, form)}, num_samples=3)
    np.testing.assert_array_equal(response.outputs["y"], noise(seed, 3))
    assert response.parameters == {"seed": seed}


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("given", [{}, {"num_samples": 3}])
def test_one_seed_a_row_gives_what_each_gives_first(ask, noise, shape, given):
    seeds = [5, 0, 2**32 - 1]
    response = ask("plain.noise", {"seed": np.array(seeds).reshape(shape)}, **given)
    np.testing.assert_array_equal(response.outputs["y"], np.concatenate([noise(seed, 1) for seed in seeds]))
    assert response.parameters == {}


def test_without_a_seed_there_is_a_new_one_each_time_and_the_response_tells_it(ask):
    first, second = (ask("tiny", num_samples=2) for _ in range(2))
    assert first.parameters["seed"] != second.parameters["seed"]
    again = ask("tiny", num_samples=2, **first.parameters)
    np.testing.assert_array_equal(again.outputs["x"], first.outputs["x"])
    assert np.abs(second.outputs["x"] - first.outputs["x"]).max() > 1e-3


@pytest.mark.parametrize("seeds", [[7], [3, 1, 4, 1, 5]])
@pytest.mark.parametrize("temperature", [[0.5], [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_parts_of_a_call_are_those_of_the_whole(runner, plane, seeds, temperature):
    inputs = {"seed": np.array(seeds), "temperature": np.array(temperature, np.float32)}
    request = InferRequest("tiny", inputs=inputs, parameters={"num_samples": 5})

    async def run():
        call = await plane.prepare(request)
        return [(await call.submit(*part))["x"] for part in [(), (0, 2), (2, 3), (3, 5)]]

    whole, *parts = runner.run(run())
    np.testing.assert_allclose(np.concatenate(parts), whole, **TOLERANCE)
    assert np.abs(whole - whole[::-1]).max() > 1e-2


def test_a_model_generates_and_endpoints_have_names(ask, pipeline):
    response = ask("tiny", seed=3, num_samples=2)
    wanted = pipeline.executor("generate", key=nnx.Rngs(3).sample(), num_rows=2)["x"]
    np.testing.assert_allclose(response.outputs["x"], wanted, **TOLERANCE)
    named = ask("tiny.generate", seed=3, num_samples=2)
    np.testing.assert_array_equal(named.outputs["x"], response.outputs["x"])
    assert (response.model, named.model, named.version) == ("tiny", "tiny.generate", "3")
    assert ask("tiny", seed=3).outputs["x"].shape == (1, 8, 8, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
@pytest.mark.parametrize("values", [3, [3], [[3]], [0, 1, 3], [[0], [1], [3]]])
def test_a_scalar_goes_to_all_rows_or_there_is_one_a_row(ask, dtype, values):
    temperature = np.array(values, dtype)
    response = ask("plain.scaled", {"x": rows(3), "temperature": temperature})
    wanted = np.broadcast_to(temperature.reshape(-1), (3,)).astype(np.float32)
    np.testing.assert_array_equal(response.outputs["y"], rows(3) * wanted[:, None])


def test_what_has_a_default_may_be_left_out(ask):
    np.testing.assert_array_equal(ask("plain.scaled", {"x": rows(3)}).outputs["y"], rows(3))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_any_width(ask, dtype):
    z = (Z.round(1)).astype(np.float16)
    wanted = ask("tiny.decode", {"z": z.astype(np.float32)}).outputs["x"]
    np.testing.assert_array_equal(ask("tiny.decode", {"z": z.astype(dtype)}).outputs["x"], wanted)


PICTURES = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
PNGS = [encode_png(picture) for picture in PICTURES]
FORMS = {
    "uint8": PICTURES,
    "files": np.array(PNGS, object),
    "files in two axes": np.array([[png] for png in PNGS], object),
    "base64": np.array([base64.b64encode(png) for png in PNGS], object),
    "data URL": np.array([b"data:image/png;base64," + base64.b64encode(png) for png in PNGS], object),
}


@pytest.mark.parametrize("pictures", FORMS.values(), ids=FORMS)
def test_pictures_are_preprocessed_as_the_pipeline_does(ask, pipeline, pictures):
    outputs = ask("tiny.encode", {"x": pictures}).outputs
    np.testing.assert_allclose(outputs["mean"], pipeline.encode(PICTURES), **TOLERANCE)
    assert set(outputs) == {"mean", "log_var"}


def test_own_functions_mean_the_same_on_a_server(runner, serving):
    def inverted(pictures):
        return 1 - np.asarray(pictures, np.float32) / (255 if pictures.dtype == np.uint8 else 1)

    def echo(model, keys, inputs):
        return {"mean": inputs["x"].reshape(-1, 64)}

    endpoints = {"encode": Endpoint(echo, {"x": TensorSpec((8, 8, 1), np.float32)})}
    pipeline = InferencePipeline(Executor(None, endpoints, batch_sizes=(1, 2)), preprocess_fn=inverted)

    async def encoded(pictures):
        async with serving({"m": PipelineSource(pipeline)}) as plane:
            return (await plane.infer(InferRequest("m.encode", inputs={"x": pictures}))).outputs["mean"]

    for pictures in (PICTURES, X, X.astype(np.float64)):
        np.testing.assert_array_equal(runner.run(encoded(pictures)), pipeline.encode(pictures))
    np.testing.assert_array_equal(runner.run(encoded(FORMS["files"])), pipeline.encode(PICTURES))


def test_only_the_outputs_asked_for_come(runner, plane):
    request = InferRequest("tiny.encode", id="mine", inputs={"x": X}, outputs=["log_var"])
    response = runner.run(plane.infer(request))
    assert response.id == "mine"
    assert set(response.outputs) == {"log_var"}
    both = runner.run(plane.infer(InferRequest("tiny.encode", inputs={"x": X}))).outputs
    np.testing.assert_array_equal(response.outputs["log_var"], both["log_var"])


@pytest.mark.parametrize(("power", "wanted"), [(1, 2 * rows(3)), (2, 2 * rows(3) ** 2)])
def test_parameters_may_be_options(ask, power, wanted):
    np.testing.assert_array_equal(ask("plain.double", {"x": rows(3)}, power=power).outputs["y"], wanted)


OBJECTS = np.array([b"junk"], object)
BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "unknown model": ("other", {}, {}, NotFoundError, "unknown model 'other'"),
    "unknown endpoint": ("tiny.train", {}, {}, NotFoundError, "no endpoint 'train'"),
    "unknown input": ("tiny", {"y": T}, {}, InputError, "generate: unknown input 'y'; it takes temperature"),
    "unknown parameter": (
        "tiny",
        {},
        {"a": 1},
        InputError,
        "unknown parameter 'a'; it takes seed, num_samples, timeout",
    ),
    "missing input": ("tiny.encode", {}, {}, InputError, "missing input 'x'"),
    "rows differ": (
        *("plain.scaled", {"x": rows(3), "temperature": T.repeat(2)}, {}),
        *(InputError, "temperature has 2 rows where 3 were expected"),
    ),
    "seeds differ": (
        *("tiny", {"seed": np.arange(3)}, {"num_samples": 2}),
        *(InputError, "got 3 seeds for 2 samples"),
    ),
    "num_samples differs": (
        *("tiny.encode", {"x": X}, {"num_samples": 3}),
        *(InputError, "x has 2 rows where 3 were expected"),
    ),
    "no rows": ("tiny.encode", {"x": X[:0]}, {}, InputError, "at least one row"),
    "no temperatures": ("tiny", {"temperature": T[:0]}, {}, InputError, "at least one row"),
    "too many rows": ("tiny", {}, {"num_samples": 17}, TooLargeError, "17 rows .* takes 16"),
    "too many inputs": ("tiny.decode", {"z": Z.repeat(9, 0)}, {}, TooLargeError, "18 rows .* takes 16"),
    "too many seeds": ("tiny", {"seed": np.arange(17)}, {}, TooLargeError, "17 rows .* takes 16"),
    "too many files": ("tiny.encode", {"x": OBJECTS.repeat(17)}, {}, TooLargeError, "17 rows .* takes 16"),
    "one number": ("tiny.encode", {"x": T[0]}, {}, InputError, "x: expected"),
    "one level": ("tiny.encode", {"x": np.array(1, np.uint8)}, {}, InputError, "x: expected"),
    "a picture alone": ("tiny.encode", {"x": X[0]}, {}, InputError, "add a batch axis|do not go together"),
    "other shape": ("tiny.encode", {"x": X[:, :4]}, {}, InputError, "x: expected"),
    "other levels": ("tiny.encode", {"x": PICTURES[:, :4]}, {}, InputError, "x: expected"),
    "bool": ("tiny.decode", {"z": Z > 0}, {}, InputError, "z: expected float32"),
    "bytes": ("tiny.decode", {"z": OBJECTS}, {}, InputError, "z: expected numbers, got BYTES"),
    "no file": ("tiny.encode", {"x": OBJECTS}, {}, InputError, "not a picture that can be read"),
    "no files": ("tiny.encode", {"x": OBJECTS[:0]}, {}, InputError, "at least one"),
    "NaN": ("tiny.decode", {"z": np.where(Z > 0, Z, np.nan)}, {}, InputError, "z: row 0 has a NaN"),
    "infinite": ("tiny", {"temperature": T * np.inf}, {}, InputError, "temperature"),
    "too large": ("tiny.decode", {"z": Z.astype(np.float64) * 1e300}, {}, InputError, "z: row . has a NaN"),
    "too hot": ("tiny", {"temperature": np.array([1e300])}, {}, InputError, "temperature"),
    "seed without draws": ("tiny.decode", {"z": Z}, {"seed": 1}, InputError, "decode draws nothing"),
    "seeds without draws": ("tiny.decode", {"z": Z, "seed": np.arange(2)}, {}, InputError, "draws nothing"),
    "two kinds of seed": ("tiny", {"seed": np.arange(2)}, {"seed": 1}, InputError, "got both"),
    "no seeds": ("tiny", {"seed": np.arange(0)}, {}, InputError, "seed: expected integers"),
    "float seeds": ("tiny", {"seed": T}, {}, InputError, "seed: expected integers"),
    "seeds of two axes": ("tiny", {"seed": np.arange(4).reshape(2, 2)}, {}, InputError, "seed: expected"),
    "negative seeds": ("tiny", {"seed": np.array([0, -1])}, {}, InputError, "seed: expected integers"),
    "large seeds": ("tiny", {"seed": np.array([2**32])}, {}, InputError, "seed: expected integers"),
    "bytes as seeds": ("tiny", {"seed": OBJECTS}, {}, InputError, "seed: expected integers"),
    "unknown option": ("plain.scaled", {"x": rows(1)}, {"power": 2}, InputError, "unknown parameter 'power'"),
    "bad option": ("plain.double", {"x": rows(1)}, {"power": "a"}, InputError, "power"),
    **{
        f"{name} {value!r}": ("tiny", {}, {name: value}, InputError, f"^{name}: expected")
        for name, values in {
            "seed": [-1, 2**32, 1.0, True, "1"],
            "num_samples": [0, -1, 1.0, True, "1"],
            "timeout": [-1, 2**63, True, "1", float("nan"), float("inf")],
            "priority": [-1, 1.0, True, "1"],
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize(("model", "inputs", "parameters", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_named(ask, model, inputs, parameters, error, message):
    with pytest.raises(error, match=message):
        ask(model, inputs, **parameters)


@pytest.mark.parametrize("name", ["unknown parameter", "other shape", "missing input", "NaN", "no file"])
def test_what_is_refused_has_failed(ask, plane, name):
    model, inputs, parameters, error, _ = BAD[name]

    def failed():
        return statistics(plane, model)["model_stats"][0]["inference_stats"]["fail"]["count"]

    before = failed()
    with pytest.raises(error):
        ask(model, inputs, **parameters)
    assert failed() == before + 1


@pytest.mark.parametrize(("default", "parameters"), [(None, {"timeout": 1000}), (0.001, {"priority": 3})])
def test_a_timeout_is_microseconds_or_that_of_the_server(serving, plain, gate, default, parameters):
    request = InferRequest("plain.double", inputs={"x": rows(1)})

    async def main():
        async with serving({"plain": PipelineSource(InferencePipeline(plain))}, timeout=default) as plane:
            gate.hold()
            request.parameters = {"timeout": int(1e6 * TIMEOUT)}
            kept = []
            for count in range(1, plain.executions_in_flight + 1):
                kept.append(asyncio.ensure_future(plane.infer(request)))
                await asyncio.sleep(0)
                gate.wait(count)
            request.parameters = parameters
            with pytest.raises(DeadlineExceededError):
                await plane.infer(request)
            gate.release()
            for task in kept:
                np.testing.assert_array_equal((await task).outputs["y"], 2 * rows(1))

    asyncio.run(main())


def test_statistics_of_a_known_sequence(serving, plain):
    async def main():
        async with serving({"a": PipelineSource(InferencePipeline(plain))}) as plane:
            started = int(1e3 * time.time())
            for n in (1, 3):
                await plane.infer(InferRequest("a.double", inputs={"x": rows(n)}))
            with pytest.raises(InputError):
                await plane.infer(InferRequest("a.double", parameters={"seed": 1}))
            plane.count_refused("a.double")
            plane.count_refused("unknown")
            return started, statistics(plane, "a.double"), statistics(plane)

    started, of_one, of_all = asyncio.run(main())
    (stats,) = of_one["model_stats"]
    assert started <= stats["last_inference"] <= 1e3 * time.time()
    assert {name: stats[name] for name in ("name", "version", "inference_count", "execution_count")} == {
        "name": "a.double",
        "version": "1",
        "inference_count": 4,
        "execution_count": 2,
    }
    counts = {name: total["count"] for name, total in stats["inference_stats"].items()}
    assert counts.pop("fail") == 2
    assert counts == dict.fromkeys(
        ["success", "queue", "compute_input", "compute_infer", "compute_output"], 2
    )
    times = {name: total["ns"] for name, total in stats["inference_stats"].items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < times["compute_infer"] < sum(times[name] for name in parts) <= times["success"]
    assert [entry["name"] for entry in of_all["model_stats"]] == ["a.double", "a.scaled", "a.noise"]
    assert of_all["model_stats"][0] == stats


def test_metadata(plane):
    seed, temperature = (
        {"name": "seed", "datatype": "INT64", "shape": [-1]},
        {"name": "temperature", "datatype": "FP32", "shape": [-1]},
    )
    picture = {"name": "x", "datatype": "FP32", "shape": [-1, 8, 8, 1]}
    metadata = model_metadata(plane, "tiny", "3")
    assert metadata == model_metadata(plane, "tiny") | {"name": "tiny"}
    assert metadata["inputs"] == [temperature, seed]
    assert metadata["outputs"] == [picture]
    assert (metadata["versions"], metadata["platform"]) == (["3"], "jax")
    assert model_metadata(plane, "tiny.encode")["inputs"] == [picture]
    assert server_metadata()["version"] == __version__
    config = model_config(plane, "tiny")
    assert [(i["name"], i["data_type"], i["dims"], i["optional"]) for i in config["input"]] == [
        ("temperature", "TYPE_FP32", [1], True),
        ("seed", "TYPE_INT64", [1], True),
    ]
    assert config["output"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [8, 8, 1]}]
    assert not model_config(plane, "tiny.encode")["input"][0]["optional"]
    assert (config["max_batch_size"], config["dynamic_batching"]) == (16, {"preferred_batch_size": [2]})


def test_a_server_that_drains_takes_nothing_more(serving, plain):
    async def main():
        async with serving({"a": PipelineSource(InferencePipeline(plain))}) as plane:
            assert plane.is_ready
            assert plane.is_model_ready("a.double")
            plane.draining = True
            assert not plane.is_ready
            assert not plane.is_model_ready("a.double")
            with pytest.raises(NotReadyError, match="drains"):
                await plane.infer(InferRequest("a.double", inputs={"x": rows(1)}))

    asyncio.run(main())
