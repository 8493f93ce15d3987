"""The script for accelerators: small and whole on the CPU, and what becomes of a run that goes wrong."""

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from artifex.generative_models.core import Endpoint
from artifex.generative_models.inference.executor.program import Program
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.inference.measure.roofline import Ceilings

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, beside the modules that it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    return importlib.import_module("accelerator")


@pytest.fixture
def run(script, tmp_path):
    """Runs parts, and gives the exit status and what the file says."""

    def go(parts, *words):
        path = tmp_path / "accelerator.json"
        status = script.main(["--quick", "--output", str(path), *words], parts)
        return status, json.loads(path.read_text())

    return go


# Which steps of the parts that have many: one of each kind.
STEPS = {
    "rows are independent": (0, 1, 2),
    "loops": (1,),
    "rows a second": (0, 5),
    "executions in flight": (0,),
    "shares of the ceilings": (0, 3),
}


def with_some_steps(part):
    """The part with the steps that are named, or all."""
    wanted = STEPS.get(part.name)
    if wanted is None:
        return part

    def steps(bench):
        ahead = itertools.islice(part.steps(bench), wanted[-1] + 1)
        return (step for i, step in enumerate(ahead) if i in wanted)

    return dataclasses.replace(part, steps=steps)


def test_every_part_on_the_cpu(script, run, monkeypatch, capsys):
    monkeypatch.setattr(script.speed, "machine_ceilings", lambda: Ceilings(1e11, 1e10))
    monkeypatch.setattr(script.speed, "IN_FLIGHT", (1, 2))
    monkeypatch.setattr(exporting, "_refuse_captured_weights", lambda model: None)  # which would trace it
    status, said = run(list(map(with_some_steps, script.PARTS)), "--seconds", "10000")
    statuses = {name: part["status"] for name, part in said["parts"].items()}
    assert statuses == {
        **{part.name: "ok" for part in script.PARTS},
        "out of memory": "not applicable",
    }, said["parts"]
    assert status == 0
    assert said["parts"]["out of memory"]["reason"].startswith("not applicable on cpu")
    for name, part in said["parts"].items():
        assert len(part["found"]) == len(STEPS[name]) if name in STEPS else part["found"] or part["reason"]
    assert said["parts"]["facts"]["found"]["machine"]["devices"] == len(jax.devices())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["benchmark"] == "accelerator"
    assert last["parts"] == said["parts"]


def found(script, value):
    return script.Finding({"value": value}, str(value))


def parts_of(script, **steps):
    """A part of each list of functions, which are its steps."""

    def as_part(name, functions):
        def steps(bench):
            for i, function in enumerate(functions):
                yield script.Step(f"step {i}", function)

        return script.Part(name, steps, 1)

    return [as_part(name, functions) for name, functions in steps.items()]


def test_what_fails_is_recorded_and_the_rest_goes_on(script, run):
    def fail():
        raise RuntimeError("a cable came loose")

    def broken_part(bench):
        yield script.Step("first", lambda: found(script, 1))
        raise KeyError("weights")

    parts = parts_of(
        script,
        step=[lambda: found(script, 1), fail, lambda: found(script, 2)],
        law=[lambda: script.Finding({"value": 1}, "no", ["bits differ"]), lambda: found(script, 2)],
        last=[lambda: found(script, 3)],
    )
    status, said = run([*parts[:2], script.Part("part", broken_part, 1), parts[2]])
    assert status == 1
    assert {name: part["status"] for name, part in said["parts"].items()} == {
        **dict.fromkeys(("step", "law", "part"), "failed"),
        "last": "ok",
    }
    assert said["parts"]["step"]["reason"] == "step 1: RuntimeError: a cable came loose"
    assert said["parts"]["step"]["found"]["step 2"] == {"value": 2}
    assert "a cable came loose" in said["parts"]["step"]["found"]["step 1"]["error"]
    assert said["parts"]["law"]["reason"] == "step 0: bits differ"
    assert said["parts"]["law"]["found"] == {"step 0": {"value": 1}, "step 1": {"value": 2}}
    assert said["parts"]["part"]["reason"] == "KeyError: 'weights'"
    assert said["parts"]["part"]["found"] == {"first": {"value": 1}}


def test_a_run_that_is_cut_off_keeps_what_it_found(script, run, tmp_path):
    def cut_off():
        raise KeyboardInterrupt

    parts = parts_of(script, first=[lambda: found(script, 1)], second=[lambda: found(script, 2), cut_off])
    with pytest.raises(KeyboardInterrupt):
        run(parts)
    said = json.loads((tmp_path / "accelerator.json").read_text())
    assert said["parts"]["first"]["status"] == "ok"
    assert said["parts"]["second"] == {"status": "running", "found": {"step 0": {"value": 2}}}


def test_what_there_is_no_time_for_is_left_out(script, run, monkeypatch):
    now = 0.0

    def work(seconds):
        nonlocal now
        now += seconds
        return found(script, seconds)

    monkeypatch.setattr(script.time, "monotonic", lambda: now)
    parts = parts_of(
        script,
        short=[lambda: work(1), lambda: work(1)],
        long=[lambda: work(3), lambda: work(3), lambda: work(3)],
        reserved=[lambda: work(1)],
        late=[lambda: work(2)],
        too_late=[lambda: work(1)],
    )
    status, said = run(parts, "--seconds", "11")
    ended = {name: (part["status"], len(part.get("found", ()))) for name, part in said["parts"].items()}
    assert ended == {
        "short": ("ok", 2),
        "long": ("cut short", 2),
        "reserved": ("ok", 1),
        "late": ("ok", 1),
        "too_late": ("skipped", 0),
    }
    assert status == 0


def out_of_memory(script):
    return [script.Part("out of memory", lambda bench: script.allocator.within(1 << 16), 1)]


def test_a_device_that_has_the_memory_after_all_is_not_taken_for_one_that_halves(script, run):
    status, said = run(out_of_memory(script))
    assert status == 1
    reason = said["parts"]["out of memory"]["reason"]
    assert "call of one batch: 1024 rows ran" in reason
    assert "wrong" not in reason


def test_a_device_that_runs_out_of_memory(script, run, monkeypatch):
    compiled = Program._compile

    def limited(program, size, weights):
        if size > 256:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compiled(program, size, weights)

    monkeypatch.setattr(Program, "_compile", limited)
    status, said = run(out_of_memory(script))
    assert status == 0
    ways = [said["parts"]["out of memory"]["found"][way] for way in script.allocator.WAYS]
    assert [(way["largest_batch_after"], way["right"]) for way in ways] == [(256, True)] * len(ways)


def test_a_law_that_does_not_hold_is_found(script):
    def mixing(model, keys, inputs):
        return {"y": inputs["x"] - inputs["x"].mean()}

    executor = script.laws.Executor(
        None,
        {"mixing": Endpoint(mixing, {"x": script.allocator.ENDPOINTS["hungry"].inputs["x"]})},
        batch_sizes=(1, 8),
    )
    x = np.random.default_rng(0).random(13, np.float32)
    case = script.laws.Case(executor, "mixing", {"x": x})
    finding = script.laws.independence(case, 8, strict=True)
    assert {"padding changes bits", "neighbours changes bits"} < set(finding.broken)
    assert finding.facts["tolerances_across_batch_sizes"] > 1
