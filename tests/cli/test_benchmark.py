import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from brief import measure_briefly
from PIL import Image

from artifex.cli import benchmark as command
from artifex.cli.benchmark import progress_on_stderr
from artifex.generative_models.inference.measure import endpoints as benchmark
from artifex.generative_models.inference.measure.roofline import Ceilings

Cli = Callable[..., str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """Rounds so short that their figures mean nothing, and ceilings that are known."""
    measure_briefly(monkeypatch.setattr)
    monkeypatch.setattr(benchmark, "machine_ceilings", lambda: Ceilings(205e9, 57e9))


def test_benchmark_shows_a_table(model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("benchmark", model, "--endpoint", "reconstruct", "--batch-size", 2, "--batch-size", 1)
    lines = shown.splitlines()
    assert lines[0] == f"{model} on cpu, float32"
    assert lines[1].startswith("artifex 0.1.0, jax ")
    assert lines[2] == "measured ceilings: float32 matmul 205 GFLOP/s, copy 57 GB/s"
    (header,) = [i for i, line in enumerate(lines) if line.startswith("endpoint")]
    assert lines[header].split()[-3:] == ["±", "matmul", "roofline"]
    first, second = lines[header + 1 : header + 3]
    assert first.split()[:2] == ["reconstruct", "1"]
    assert second.split()[0] == "2"
    assert max(map(len, lines[header:])) <= 80


def test_benchmark_says_what_not_to_rely_on(model: Path, cli: Cli):
    shown = cli("benchmark", model, "--endpoint", "decode", "--batch-size", 1, "--num-runs", 1)
    assert " ? " in shown
    assert "? too noisy to rely on: close other programs and measure again" in shown


def test_benchmark_tells_one_line_of_json(model: Path, cli: Cli):
    args = ("--endpoint", "encode", "--endpoint", "generate", "--batch-size", 4, "--num-runs", 7)
    said = cli("benchmark", model, *args, "--dtype", "bfloat16", "--devices", 2, "--json")
    (line,) = said.splitlines()
    facts = json.loads(line)
    assert facts["model"] == str(model)
    assert facts["compute_dtype"] == "bfloat16"
    assert facts["num_devices"] == 2
    assert facts["plot"] is None
    assert [(row["endpoint"], row["batch_size"]) for row in facts["rows"]] == [("encode", 4), ("generate", 4)]
    assert all(row["latency"]["num_runs"] == 7 for row in facts["rows"])
    assert all(row["rows_per_second"] > 0 for row in facts["rows"])


def test_benchmark_draws_curves(model: Path, cli: Cli, folder: Path):
    args = ("--endpoint", "encode", "--batch-size", 1, "--batch-size", 2, "--plot", "new/curve.png")
    assert f"curves in {folder / 'new/curve.png'}" in cli("benchmark", model, *args)
    with Image.open("new/curve.png") as picture:
        assert picture.size == (1760, 800)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--endpoint", "sing"], "no endpoint 'sing'; there are encode, decode, reconstruct, generate"),
        (["--devices", "9"], "num_devices: expected 1 to 2"),
        (["--plot", "curve.jpg"], "curve.jpg: expected a .png, got '.jpg'"),
        (["--plot", "file/curve.png"], "file: "),
    ],
)
def test_impossible_benchmarks_say_one_line(
    model: Path, failing_cli: Cli, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "machine_ceilings", lambda: pytest.fail("it measured"))
    Path("file").touch()
    assert failing_cli("benchmark", model, *args).startswith(message)


def test_a_plot_without_matplotlib_says_one_line(
    model: Path, failing_cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "machine_ceilings", lambda: pytest.fail("it measured"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = failing_cli("benchmark", model, "--plot", "curve.png")
    assert said == "a plot needs matplotlib: pip install 'artifex[plot]'"


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    class Terminal:
        def __init__(self):
            self.text = ""

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def isatty(self) -> bool:
            return True

        def flush(self) -> None:
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_on_stderr() as progress:
        assert progress is not None
        progress("encode, 8 rows", 1, 4)
    assert "encode, 8 rows" in terminal.text
    assert "1/4" in terminal.text


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(5.0, ""), (0.0, "artifex: encode, 8 rows (1 of 4 done, 0 s)\n")]
)
def test_a_line_every_few_seconds_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, wanted: str
):
    monkeypatch.setattr(command, "_LINE_SECONDS", seconds)
    with progress_on_stderr() as progress:
        progress("encode, 8 rows", 1, 4)
    assert capsys.readouterr().err == wanted
