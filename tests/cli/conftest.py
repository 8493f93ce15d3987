"""The command line in this process and in one of its own, and a model that compiles fast."""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main
import typer.testing
from flax import nnx
from forked import Python
from shared import randomised
from typer.testing import CliRunner

from artifex.cli import app
from artifex.generative_models.inference import export_model
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.models.vae import VAE

MAIN = "from artifex.cli import main; main()"

# Typer makes all commands of their functions for each run, which takes longer than most runs that fail.
typer.testing._get_command = functools.cache(typer.main.get_command)


@pytest.fixture(scope="session")
def model(tiny_vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported, untrained model of 8 x 8 pictures and 4 latents."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    return export_model(tiny_vae, path, step=3, training_steps=5, final_loss=1.5)


@pytest.fixture(scope="session")
def tiny_vae() -> VAE:
    """What `model` has exported."""
    return randomised(lambda: VAE((8, 8, 1), 4, [4], [4], rngs=nnx.Rngs(0)))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands of a test run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small() -> np.ndarray:
    """Pictures for `model`, uint8 [70, 8, 8, 1]."""
    return np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)


@pytest.fixture(autouse=True)
def _events_go_where_they_went() -> Iterator[None]:
    log = logging.getLogger("artifex.serving")
    handlers, level, propagate, disabled = (
        log.handlers[:],
        log.level,
        log.propagate,
        logging.root.manager.disable,
    )
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)  # which, unlike the attribute, has loggers forget what they had found out
    logging.disable(disabled)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in this process, which says nothing of its progress; returns its stdout."""
    monkeypatch.setattr("artifex.cli.benchmark._LINE_SECONDS", 1e9)

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return result.stdout

    return run


@pytest.fixture
def exports_unsearched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting does not trace each endpoint for arrays that it captured, which tests of exporting have."""
    monkeypatch.setattr(exporting, "_refuse_captured_weights", lambda model: None)


@pytest.fixture
def failing_cli() -> Callable[..., str]:
    """Runs a command that fails in this process; returns the one line it says."""

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        prefix = "artifex: error: "
        assert line.startswith(prefix)
        return line.removeprefix(prefix)

    return run


@pytest.fixture
def spawn() -> Callable[..., Python]:
    """Starts a command in a process of its own, after some code."""

    def start(*args: object, before: str = "") -> Python:
        return Python(["-c", f"{before}\n{MAIN}", *args])

    return start
