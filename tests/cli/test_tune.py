import json
from collections.abc import Callable
from pathlib import Path

import pytest
from brief import measure_briefly
from PIL import Image

from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.measure import roofline

Cli = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_cache_and_short_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    measure_briefly(monkeypatch.setattr)
    monkeypatch.setattr(roofline, "machine_ceilings", lambda: roofline.Ceilings(1e11, 1e10))


def tuned_of(model: Path) -> dict:
    return Executor(load_exported_model(model)[0]).tuned


def test_tune_keeps_what_it_finds(model: Path, cli: Cli):
    shown = cli("tune", model, "--endpoint", "decode", "--max-batch-size", 2)
    lines = shown.splitlines()
    (chosen,) = [line for line in lines if line.endswith("chosen")]
    size = int(chosen.split()[0])
    assert lines[0].startswith(f"decode: {size} rows a batch")
    assert {int(line.split()[0]) for line in lines if line.split() and line.split()[0].isdigit()} <= {1, 2}
    assert "used from now on" in lines
    assert tuned_of(model)["decode"].batch_size == size


def test_tune_can_only_look(model: Path, cli: Cli):
    shown = cli("tune", model, "--endpoint", "decode", "--max-batch-size", 1, "--no-store")
    assert "not kept: not asked for" in shown
    assert tuned_of(model) == {}


def test_tune_finds_something_for_every_endpoint(model: Path, cli: Cli, folder: Path):
    said = cli("tune", model, "--max-batch-size", 1, "--json", "--plot", "curve.png", "--no-store")
    (line,) = said.splitlines()
    facts = json.loads(line)
    names = ["encode", "decode", "reconstruct", "generate", "elbo"]
    assert [report["endpoint"] for report in facts["endpoints"]] == names
    assert all(report["chosen"] in [strip(t) for t in report["trials"]] for report in facts["endpoints"])
    assert facts["plot"] == str(folder / "curve.png")
    with Image.open("curve.png") as picture:
        assert picture.size == (1760, 800)


def strip(trial: dict) -> dict:
    return {name: value for name, value in trial.items() if name != "pareto"}


def test_tune_says_where_it_could_not_keep_the_result(model: Path, cli: Cli, tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    shown = cli("tune", model, "--endpoint", "decode", "--max-batch-size", 1)
    assert "not kept: the cache directory" in shown


def test_a_command_runs_in_tuned_batches(model: Path, cli: Cli, folder: Path):
    cli("tune", model, "--endpoint", "generate", "--max-batch-size", 2)
    cli("generate", model, "-n", 3, "-o", "tuned.npy")
    cli("generate", model, "-n", 3, "-o", "asked.npy", "--batch-size", 2)
    assert Path("tuned.npy").read_bytes() == Path("asked.npy").read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--endpoint", "sing"), "no endpoint 'sing'"),
        (("--plot", "curve.jpg"), "expected a .png"),
    ],
)
def test_bad_input(model: Path, failing_cli: Cli, args: tuple[str, ...], message: str):
    assert message in failing_cli("tune", model, *args)
