"""`artifex check`: a table, or one line of JSON, and an exit status."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gate import ROW
from typer.testing import CliRunner

from artifex.cli import app
from artifex.generative_models.core import Endpoint
from artifex.generative_models.inference import Executor, InferencePipeline

Cli = Callable[..., str]


def centred(model, keys, inputs):
    return {"y": inputs["x"] - inputs["x"].mean(axis=0, keepdims=True)}


@pytest.fixture
def crooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose rows look at each other."""
    executor = Executor(None, {"centred": Endpoint(centred, {"x": ROW})})
    monkeypatch.setattr("artifex.cli.run.load_model", lambda name: InferencePipeline(executor))


def test_a_good_model_keeps_every_law(model: Path, cli: Cli):
    lines = cli("check", model, "--endpoint", "decode").splitlines()
    assert lines[0].split() == ["Endpoint", "Law", "Holds"]
    assert len(lines) == 7
    assert all(line.startswith("decode ") and " yes" in line for line in lines[1:])
    facts = json.loads(cli("check", model, "--endpoint", "decode", "--json"))
    assert facts["holds"]
    assert len(facts["findings"]) == 6


def test_a_broken_law_is_exit_status_1(crooked: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["check", "crooked"])
    assert shown.exit_code == 1
    assert shown.stderr == ""
    (line,) = [line for line in shown.stdout.splitlines() if "the same alone" in line]
    assert "NO" in line
    assert "of the largest value" in line
    said = CliRunner().invoke(app, ["check", "crooked", "--json"])
    assert said.exit_code == 1
    facts = json.loads(said.stdout)
    assert not facts["holds"]
    assert {finding["endpoint"] for finding in facts["findings"]} == {"centred"}


def test_an_unknown_endpoint_says_one_line(model: Path, failing_cli: Cli):
    assert failing_cli("check", model, "--endpoint", "sing").startswith("no endpoint 'sing'; there are")
