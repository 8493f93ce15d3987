"""Commands in processes of their own, one after another, with a cache between them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from denoisers import denoiser
from every_family import FAMILIES
from forked import Python

from artifex.generative_models.inference import export_model

Spawn = Callable[..., Python]
pytestmark = pytest.mark.usefixtures("compiles_anew")

# Forgets what the processes of the tests have imported before they begin.
FRESH = """
import sys
for name in [*sys.modules]:
    if name.partition(".")[0] in ("flax", "orbax"):
        del sys.modules[name]
"""

# Writes down which libraries a command imported and what JAX compiled for it.
WATCHED = """
import atexit, json, sys, jax
seen = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
def write():
    libraries = [name for name in ("flax", "orbax.checkpoint") if name in sys.modules]
    compiled = [name for name in seen if "backend_compile" in name or "mlir" in name]
    json.dump({"libraries": libraries, "compiled": compiled}, open("seen.json", "w"))
atexit.register(write)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def watched(spawn: Spawn) -> Callable[..., dict[str, list[str]]]:
    def run(*args: object) -> dict[str, list[str]]:
        process = spawn(*args, before=FRESH + WATCHED)
        _, stderr = process.communicate()
        assert (process.returncode, stderr) == (0, "")
        return json.loads(Path("seen.json").read_text())

    return run


NOTHING: dict[str, list[str]] = {"libraries": [], "compiled": []}


def test_a_second_start_imports_no_flax_and_compiles_nothing(
    model: Path, watched: Callable[..., dict[str, list[str]]]
):
    def started(*args: object) -> dict[str, list[str]]:
        code = f"{WATCHED}\nfrom artifex.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, args)]
        process = subprocess.run(command, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        return json.loads(Path("seen.json").read_text())

    first = watched("generate", model, "-n", 40, "-o", "first.png")
    assert first["libraries"] == ["flax", "orbax.checkpoint"]
    assert first["compiled"]
    assert started("generate", model, "-n", 40, "-o", "second.png") == NOTHING
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()
    assert watched("generate", model, "-n", 64, "-o", "third.png", "--seed", 4) == NOTHING


def test_commands_share_a_snapshot(model: Path, small, watched: Callable[..., dict[str, list[str]]]):
    import numpy as np

    np.save("in.npy", small)
    for command in (
        ("encode", model, "in.npy", "-o", "z.npy", "--batch-size", 8),
        ("decode", model, "z.npy", "-o", "out.npy", "--batch-size", 8),
    ):
        assert watched(*command) != NOTHING
        assert watched(*command) == NOTHING


def test_a_second_start_of_a_model_that_takes_steps(
    tmp_path: Path, watched: Callable[..., dict[str, list[str]]], exports_unsearched: None
):
    drawer = export_model(denoiser(), tmp_path / "drawer", step=1)
    command = ("generate", drawer, "-n", 2, "-o", "out.npy", "--batch-size", 2)
    assert watched(*command) != NOTHING
    assert watched(*command, "--seed", 2, "--set", "label=1,3", "--set", "sampler=euler") == NOTHING


def test_a_second_start_of_a_model_that_calls_lapack(tmp_path: Path, spawn: Spawn, exports_unsearched: None):
    flow = export_model(FAMILIES["realnvp"](), tmp_path / "flow", step=1)
    drawn = []
    for _ in range(2):
        process = spawn("generate", flow, "-n", 2, "-o", "out.png", "--batch-size", 2)
        process.communicate()
        assert process.returncode == 0
        drawn.append(Path("out.png").read_bytes())
        Path("out.png").unlink()
    assert drawn[0] == drawn[1]


def test_a_refused_directory_is_one_line_and_no_failure(model: Path, spawn: Spawn, cache: Path):
    cache.mkdir()
    cache.chmod(0o770)
    process = spawn("generate", model, "-n", 2, "-o", "out.npy")
    stdout, stderr = process.communicate()
    assert process.returncode == 0
    assert stdout.startswith("2 samples in ")
    (line,) = stderr.splitlines()
    assert line.startswith(f"artifex: warning: the cache directory {cache} must be yours")
    assert not any(cache.iterdir())


def test_a_warm_start_resumes_what_a_cold_one_began(
    model: Path, spawn: Spawn, watched: Callable[..., dict[str, list[str]]]
):
    stop = (
        "from artifex.generative_models.inference.offline.npy import NpyWriter\n"
        "def fail(self): raise OSError('the cable was pulled')\n"
        "NpyWriter._finish = fail"
    )
    process = spawn("generate", model, "-n", 8, "-o", "out.npy", before=stop)
    assert "the cable was pulled" in process.communicate()[1]
    assert watched("generate", model, "-n", 8, "-o", "out.npy", "--resume") == NOTHING
