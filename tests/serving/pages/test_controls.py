"""What the studio is told: a control for everything that an endpoint takes."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, Option, TensorSpec
from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.serving.pages.controls import studio_models
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.origins import PipelineSource
from artifex.serving.plane.repository import Repository

Named = dict[str, Any]


def told(runner: asyncio.Runner, serving: Any, **pipelines: InferencePipeline) -> Named:
    async def ask() -> Named:
        sources = {name: PipelineSource(pipeline) for name, pipeline in pipelines.items()}
        async with serving(sources) as plane:
            return json.loads(json.dumps(studio_models(plane)))

    return runner.run(ask())


def named(items: list[Named], key: str = "name") -> dict[str, Named]:
    return {item[key]: item for item in items}


def test_a_vae(runner, serving, pipeline):
    content = told(runner, serving, tiny=pipeline)
    assert content["max_rows"] == 64
    assert content["draining"] is False
    (model,) = content["models"]
    assert (model["name"], model["state"], model["reason"], model["version"]) == ("tiny", "READY", "", "3")
    assert [e["name"] for e in model["endpoints"]] == [
        "tiny",
        *(f"tiny.{name}" for name in ("encode", "decode", "reconstruct", "elbo")),
    ]
    found = named(model["endpoints"], "endpoint")
    assert [found[name]["draws"] for name in found] == [True, False, False, False, True]
    assert not any(endpoint["takes_steps"] for endpoint in found.values())
    controls = named(found["generate"]["controls"])
    assert {name: control["kind"] for name, control in controls.items()} == {
        "temperature": "number",
        "seed": "seed",
    }
    assert controls["temperature"]["default"] == 1
    assert controls["temperature"]["is_needed"] is False
    assert controls["seed"]["maximum"] == 2**32 - 1
    (x,), (z,) = found["encode"]["controls"], found["decode"]["controls"]
    assert (x["kind"], x["shape"], x["is_needed"]) == ("picture", [8, 8, 1], True)
    assert (z["kind"], z["shape"], z["is_needed"]) == ("vector", [4], True)
    assert found["decode"]["outputs"] == [{"name": "x", "shape": [8, 8, 1], "is_picture": True}]
    assert named(found["encode"]["outputs"])["mean"] == {"name": "mean", "shape": [4], "is_picture": False}


def test_a_model_that_takes_steps(runner, serving, drawer):
    content = told(runner, serving, steps=drawer)
    found = named(content["models"][0]["endpoints"], "endpoint")
    assert {name for name in found if found[name]["takes_steps"]} >= {"generate", "inpaint", "interpolate"}
    assert not found["denoise"]["takes_steps"]
    controls = named(found["generate"]["controls"])
    expected: Mapping[str, Named] = {
        "num_steps": {"kind": "integer", "default": 3, "minimum": 1, "maximum": 100},
        "label": {"kind": "integer", "default": None, "minimum": 0, "maximum": 3, "is_needed": False},
        "guidance_scale": {"kind": "number", "minimum": 0, "maximum": None},
        "sampler": {"kind": "choice"},
        "seed": {"kind": "seed"},
    }
    for name, facts in expected.items():
        assert facts.items() <= controls[name].items()
    assert "ddim" in controls["sampler"]["choices"]
    assert [c["kind"] for c in found["interpolate"]["controls"]][:2] == ["picture", "picture"]
    divergence = named(found["log_prob"]["controls"])["divergence"]
    assert (divergence["kind"], divergence["choices"]) == ("choice", ["exact", "estimate"])
    assert named(found["denoise"]["controls"])["time"]["is_needed"] is True


def _options(model, keys, inputs, *, size, soft, word, shape):
    return {"y": inputs["x"]}


def test_options_are_controls_where_json_has_them(runner, serving):
    options = {
        "size": Option(8, minimum=8, maximum=64, multiple=8, doc="of a side"),
        "soft": False,
        "word": "a",
        "shape": Option((1, 2)),
    }
    endpoint = Endpoint(_options, {"x": TensorSpec((), np.int32)}, options)
    executor = Executor(None, {"run": endpoint}, batch_sizes=(1,))
    content = told(runner, serving, it=InferencePipeline(executor))
    controls = named(content["models"][0]["endpoints"][0]["controls"])
    kinds = {name: control["kind"] for name, control in controls.items()}
    assert kinds == {"x": "integer", "size": "integer", "soft": "flag", "word": "text"}
    assert controls["x"]["is_needed"] is True
    assert (controls["size"]["multiple"], controls["size"]["doc"]) == (8, "of a side")


def test_a_model_that_is_not_loaded_says_why(scaler):
    repository = Repository({"scaler": scaler}, max_queued_rows=1)
    (model,) = studio_models(DataPlane(repository, max_rows=1, timeout=None))["models"]
    assert model == {
        "name": "scaler",
        "state": "LOADING",
        "reason": "not loaded yet",
        "version": "",
        "endpoints": [],
    }


@pytest.mark.parametrize("other", ["tiny.decode"])
def test_an_endpoint_whose_name_another_model_has_is_left_out(runner, serving, pipeline, other):
    content = told(runner, serving, **{"tiny": pipeline, other: pipeline})
    names = [endpoint["name"] for endpoint in content["models"][0]["endpoints"]]
    assert names == ["tiny", "tiny.encode", "tiny.reconstruct", "tiny.elbo"]
