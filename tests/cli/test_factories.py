"""Models that the command line is given as `module:factory`."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from brief import measure_briefly

from artifex.generative_models.inference.measure import endpoints as benchmark
from artifex.generative_models.inference.measure.roofline import Ceilings

Cli = Callable[..., str]

MODULE = """
import jax.numpy as jnp

from artifex import Endpoint, Executor, InferencePipeline, Option, TensorSpec

PICTURE = TensorSpec((2, 2, 1), jnp.float32)


def plain(model, keys, inputs, *, steps=1):
    levels = steps * inputs["label"].astype(jnp.float32) / 255
    return {"x": jnp.broadcast_to(levels[:, None, None, None], (len(levels), 2, 2, 1))}


class Levels:
    image_range = (0.0, 1.0)
    offset = jnp.zeros(3)

    def endpoints(self):
        return {
            "generate": Endpoint(
                plain, {"label": TensorSpec((), jnp.int32, default=7)}, {"steps": Option(1, 1, 9)}
            ),
            "encode": Endpoint(lambda model, keys, inputs: {"mean": inputs["x"][:, 0, 0]}, {"x": PICTURE}),
            "decode": Endpoint(
                lambda model, keys, inputs: {"x": inputs["z"].reshape(-1, 1, 1, 1) * jnp.ones((1, 2, 2, 1))},
                {"z": TensorSpec((1,), jnp.float32)},
            ),
        }


class Ranged(Levels):
    image_range = (1, 0)


class Broken:
    def endpoints(self):
        raise KeyError("generate")


class Listed:
    def endpoints(self):
        return ["generate"]


def executor():
    return Executor(Levels(), batch_sizes=(1, 2))


def pipeline():
    return InferencePipeline(Levels())


def failing():
    raise ValueError("no weights here\\nnor there")


def asking(where):
    return Levels()


def nothing():
    pass


a_number = 3
"""


@pytest.fixture(autouse=True)
def module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`levels.py` where the commands run, and two that cannot be imported."""
    Path("levels.py").write_text(MODULE)
    Path("wanting.py").write_text("import no_such_module")
    Path("typo.py").write_text("def make(:")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("levels", None)


@pytest.mark.parametrize("name", ["Levels", "executor", "pipeline"])
def test_a_model_an_executor_and_a_pipeline_are_run(cli: Cli, name: str):
    said = cli("generate", f"levels:{name}", "-n", 3, "-o", "x.npy", "--json")
    assert json.loads(said)["model"] == f"levels:{name}"
    level = np.uint8(7) if name == "Levels" else np.float32(7 / 255)  # who makes a pipeline says what follows
    found = np.load("x.npy")
    assert found.dtype == level.dtype
    np.testing.assert_allclose(found, np.full((3, 2, 2, 1), level), rtol=1e-6)


def test_pictures_go_there_and_back(cli: Cli):
    pictures = np.repeat(np.arange(5, dtype=np.uint8), 4).reshape(5, 2, 2, 1)
    np.save("x.npy", pictures)
    cli("encode", "levels:Levels", "x.npy", "-o", "z.npy")
    cli("decode", "levels:Levels", "z.npy", "-o", "y.npy")
    np.testing.assert_array_equal(np.load("y.npy"), pictures)


@pytest.mark.parametrize("name", ["Levels", "pipeline"])
def test_inspect_and_check_take_one(cli: Cli, name: str):
    facts = json.loads(cli("inspect", f"levels:{name}", "--json"))
    assert (facts["directory"], facts["model_type"]) == (None, None)
    assert facts["endpoints"]["generate"]["options"] == {"steps": 1}
    assert cli("inspect", f"levels:{name}").startswith(f"levels:{name}: a model, ")
    assert json.loads(cli("check", f"levels:{name}", "--endpoint", "decode", "--json"))["holds"]


@pytest.mark.parametrize("name", ["Levels", "executor"])
def test_benchmark_and_tune_take_one(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str):
    measure_briefly(monkeypatch.setattr)
    monkeypatch.setattr(benchmark, "machine_ceilings", lambda: Ceilings(205e9, 57e9))
    args = (f"levels:{name}", "--endpoint", "decode", "--json")
    (row,) = json.loads(cli("benchmark", *args, "--batch-size", 2))["rows"]
    assert row["batch_size"] == 2
    (report,) = json.loads(cli("tune", *args, "--max-batch-size", 1, "--no-store"))["endpoints"]
    assert report["endpoint"] == "decode"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:make", "nowhere:make: cannot import module 'nowhere': it is neither here nor installed"),
        ("artifex.nowhere:make", "artifex.nowhere:make: cannot import module 'artifex.nowhere': it is "),
        ("wanting:make", "wanting:make: cannot import module 'wanting': ModuleNotFoundError: "),
        ("typo:make", "typo:make: cannot import module 'typo': SyntaxError: "),
        ("levels:make", "levels:make: module 'levels' has no 'make'"),
        ("levels:a_number", "levels:a_number: module 'levels' has a 'a_number' that cannot be called"),
        ("levels:failing", "levels:failing failed: ValueError: no weights here"),
        ("levels:asking", "levels:asking failed: TypeError: "),
        ("levels:nothing", "levels:nothing gives no model, but NoneType"),
        ("levels:Broken", "levels:Broken failed: KeyError: 'generate'"),
        ("levels:Listed", "Listed.endpoints(): expected endpoints by name, got ['generate']"),
        ("levels:Ranged", "image_range: expected low < high"),
        ("levels:", "no model 'levels:'"),
    ],
)
def test_what_is_no_factory_says_one_line(failing_cli: Cli, model: str, message: str):
    commands = (("inspect",), ("generate",), ("serve", "--port", 0, "--no-grpc"))
    for command, *args in commands if model == "levels:failing" else commands[:1]:
        assert failing_cli(command, model, *args).startswith(message)


@pytest.mark.parametrize("command", ["generate", "benchmark"])
def test_settings_of_an_executor_are_its_own(failing_cli: Cli, command: str):
    said = failing_cli(command, "levels:executor", "--dtype", "bfloat16")
    assert said == "levels:executor makes an Executor; dtype must be set there"


def test_processes_on_ray_find_no_factory(failing_cli: Cli):
    for args in (("generate", "levels:Levels", "-o", "x.npy"), ("serve", "levels:Levels")):
        said = failing_cli(*args, "--engine", "ray")
        assert said == "levels:Levels: a factory does not go with --engine ray; export its model"


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        (["label=3"], [3, 3, 3]),
        (["label=3", "steps=5"], [15, 15, 15]),
        (["label=[1,2,3]", "steps=2"], [2, 4, 6]),
        (["label=1", "label=2"], [2, 2, 2]),
    ],
)
def test_an_endpoints_own_inputs_and_options_are_set(cli: Cli, settings: list[str], levels: list[int]):
    args = [arg for setting in settings for arg in ("--set", setting)]
    cli("generate", "levels:Levels", "-n", 3, "-o", "x.npy", "--batch-size", 2, *args)
    np.testing.assert_array_equal(np.load("x.npy")[:, 0, 0, 0], levels)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("label", "--set label: expected NAME=VALUE, such as label=3"),
        ("=3", "--set =3: expected NAME=VALUE"),
        ("seed=3", "--set seed=3: --seed is an option of its own"),
        ("num_samples=3", "--set num_samples=3: --num-samples is an option of its own"),
        ("size=3", "generate: size is not taken; it takes label, steps"),
        ("key=3", "generate: key is not taken; it takes label, steps"),
        ("label=three", "generate: label: expected int32"),
        ("label=3.5", "generate: label: expected int32"),
        ("label=null", "generate: label: expected int32"),
        ("label=[1,2]", "generate: label: expected shape [] or [3], got [2]"),
        ("label=[[1],[2,3]]", "generate: label: expected numbers, or lists of one length"),
        ("label=99999999999", "generate: label: expected integers from -2147483648 to 2147483647"),
        ("steps=0", "generate: steps: expected at least 1, got 0"),
        ("steps=[1]", "generate: option steps: expected something hashable"),
    ],
)
def test_what_cannot_be_set_says_one_line(failing_cli: Cli, setting: str, message: str):
    said = failing_cli("generate", "levels:Levels", "-n", 3, "-o", "x.npy", "--set", setting)
    assert said.startswith(message)
    assert not Path("x.npy").exists()
