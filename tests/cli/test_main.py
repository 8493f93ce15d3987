import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Python
from typer.testing import CliRunner

from artifex import __version__
from artifex.cli import app

COMMANDS = [
    *("demo", "inspect", "generate", "encode", "decode", "reconstruct", "interpolate", "export"),
    *("convert", "check", "benchmark", "evaluate", "tune", "serve"),
]
HEAVY = ["jax", "numpy", "flax", "orbax", "PIL"]


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]):
    code = (
        "import sys; from artifex.cli import app; app(sys.argv[1:], standalone_mode=False); "
        f"heavy = {HEAVY} & sys.modules.keys(); print('heavy:', heavy)"
    ).replace(str(HEAVY), f"set({HEAVY})")
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.endswith("heavy: set()\n")


def test_commands():
    assert [command.callback.__name__ for command in app.registered_commands if command.callback] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_explained(command: str, cli: Callable[..., str]):
    assert "Usage:" in cli(command, "--help")


def test_version(cli: Callable[..., str]):
    assert cli("--version") == f"artifex {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["generate"],
        ["generate", "tiny", "--no-such-option"],
        ["generate", "tiny", "--num-samples", "0"],
        ["generate", "tiny", "--temperature", "-1"],
        ["generate", "tiny", "--temperature", "nan"],
        ["generate", "tiny", "--seed", "4294967296"],
        ["generate", "tiny", "--devices", "some"],
        ["generate", "tiny", "--devices", "0"],
        ["generate", "tiny", "--dtype", "int8"],
        ["encode", "tiny"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_with_2(args: list[str]):
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_debug_shows_the_traceback_and_the_line():
    result = CliRunner().invoke(app, ["--debug", "generate", "no-such-model"])
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "ConfigError" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("artifex: error: no model 'no-such-model'")


def test_a_bug_keeps_its_traceback(model: Path, monkeypatch: pytest.MonkeyPatch):
    def bug(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("artifex.cli.run.load_pipeline", bug)
    result = CliRunner().invoke(app, ["generate", str(model)])
    assert isinstance(result.exception, ZeroDivisionError)
    assert "artifex: error" not in result.stderr


def test_nothing_but_the_result_reaches_the_terminal(model: Path, spawn: Callable[..., Python]):
    noise = (
        "import atexit, logging, warnings; "
        "from artifex.generative_models.inference import pipeline; load = pipeline.load_pipeline\n"
        "def noisy(*args, **kwargs):\n"
        "    warnings.warn('noise'); logging.getLogger('absl').warning('noise')\n"
        "    return load(*args, **kwargs)\n"
        "pipeline.load_pipeline = noisy"
    )
    process = spawn("generate", model, "-n", 1, before=noise)
    stdout, stderr = process.communicate()
    assert process.returncode == 0
    assert stdout.startswith("1 sample in ")
    assert stdout.count("\n") == 1
    assert stderr == ""


def test_reader_that_leaves_early_is_no_error(model: Path, spawn: Callable[..., Python]):
    process = spawn("inspect", model)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1
