import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from forked import Python
from shared import decode, encode, randomised

from artifex import Endpoint, TensorSpec, __version__
from artifex.generative_models.core import directories
from artifex.generative_models.core.checkpointing import (
    load_checkpoint,
    save_checkpoint,
    setup_checkpoint_manager,
)
from artifex.generative_models.core.errors import ConfigError, ExportError, UnknownModelTypeError
from artifex.generative_models.inference import export_model, load_exported_model
from artifex.generative_models.inference.formats import exporting
from artifex.generative_models.models.classifier import Classifier
from artifex.generative_models.models.vae import VAE


@pytest.fixture(scope="module")
def model() -> VAE:
    return randomised(lambda: VAE((8, 8, 1), 4, [16], [4], rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def other(model: VAE) -> VAE:
    """The same model with other weights."""
    graphdef, state = nnx.split(model)
    values = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(1), state)
    return nnx.merge(graphdef, jax.device_put(values))


def export(model: Any, directory: Any, *, step: int = 1, **facts: Any) -> Path:
    return export_model(model, directory, step=step, **{"training_steps": 10, "final_loss": 0.5} | facts)


def weights(model: nnx.Module) -> dict[str, np.ndarray]:
    return {str(path): np.asarray(leaf) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same_weights(found: nnx.Module, wanted: nnx.Module, factor: float = 1) -> None:
    expected = {path: leaf * np.float32(factor) for path, leaf in weights(wanted).items()}
    jax.tree.map(np.testing.assert_array_equal, weights(found), expected)


def test_sources_that_are_not_installed_export_too(
    tmp_path: Path, model: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(name: str) -> str:
        if name == "artifex":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(exporting, "version", known)
    assert load_exported_model(export(model, tmp_path / "a"))[2]["versions"]["artifex"] == __version__


def test_round_trip(tmp_path: Path, model: VAE, pictures: np.ndarray) -> None:
    directory = export(
        model, tmp_path / "a" / "b", step=7, image_range=(-1, 1), dataset="digits", quality={"nll": 1.25}
    )
    loaded, config, metadata = load_exported_model(directory)
    assert directory == tmp_path / "a" / "b"
    assert config == model.config
    assert metadata == {
        "model_type": "vae",
        "step": 7,
        "training_steps": 10,
        "final_loss": 0.5,
        "image_range": [-1.0, 1.0],
        "dataset": "digits",
        "quality": {"nll": 1.25},
        "versions": {
            "artifex": __version__,
            **{name: version(name) for name in ("jax", "flax", "orbax-checkpoint")},
        },
    }
    assert_same_weights(loaded, model)
    x = pictures[:3, 10:18, 10:18]
    for name, value in encode(model, x).items():
        np.testing.assert_array_equal(encode(loaded, x)[name], value)
    z = encode(model, x)["mean"]
    np.testing.assert_array_equal(decode(loaded, z), decode(model, z))
    assert [path.name for path in directory.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "rename"])
def test_an_export_is_replaced(
    tmp_path: Path, model: VAE, other: VAE, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(directories, "_exchange", lambda a, b: False)
    export(model, tmp_path / "export")
    export(other, tmp_path / "export", step=2, final_loss=0.25)
    loaded, _, metadata = load_exported_model(tmp_path / "export")
    assert (metadata["step"], metadata["final_loss"]) == (2, 0.25)
    assert_same_weights(loaded, other)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_what_is_no_export_is_left_alone(tmp_path: Path, model: VAE, kind: str) -> None:
    target = tmp_path / "precious"
    match kind:
        case "file":
            target.write_text("thesis")
        case "directory":
            (target / "thesis").mkdir(parents=True)
        case "dangling link":
            target.symlink_to(tmp_path / "away")
    before = [(path, path.is_symlink(), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")]
    with pytest.raises(ExportError, match=r"precious exists and is not an export; remove it"):
        export(model, target)
    assert [(path, path.is_symlink(), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")] == before


def test_a_parent_that_cannot_be_written(tmp_path: Path, model: VAE) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        export(model, tmp_path / "file" / "export")
    with pytest.raises(OSError, match="File name too long"):
        export(model, tmp_path / ("x" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_relative_and_home_directories(tmp_path: Path, model: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert export(model, "here") == tmp_path / "here"
    assert export(model, "~/there") == tmp_path / "home" / "there"
    for directory in ("here", "~/there"):
        assert_same_weights(load_exported_model(directory)[0], model)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"final_loss": float("nan")}, "metadata.json: Out of range float"),
        ({"final_loss": float("inf")}, "metadata.json: Out of range float"),
        ({"quality": object()}, "metadata.json: Object of type object is not JSON"),
        ({"image_range": (1, 0)}, "image_range: expected low < high"),
        ({"image_range": (0, 1, 2)}, r"image_range: expected \[low, high\]"),
    ],
)
def test_facts_without_a_form_in_json(
    tmp_path: Path, model: VAE, facts: dict[str, Any], message: str
) -> None:
    export(model, tmp_path / "export")
    with pytest.raises(ConfigError, match=message):
        export(model, tmp_path / "export", **facts)
    assert load_exported_model(tmp_path / "export")[2]["final_loss"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_model_whose_function_has_closed_over_weights(tmp_path: Path) -> None:
    table = np.ones((4, 10_000), np.float32)

    class Lookup(nnx.Module):
        config: dict[str, Any] = {}  # noqa: RUF012 - of the class, as it has no arguments

        def endpoints(self) -> dict[str, Endpoint]:
            row = TensorSpec((4,), np.float32)
            return {"run": Endpoint(lambda model, keys, inputs: {"y": inputs["x"] @ table}, {"x": row})}

    with pytest.raises(ExportError, match=r"run: its function has closed over 0\.2 MB of arrays"):
        export(Lookup(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_no_family(tmp_path: Path) -> None:
    class Mine(VAE):
        pass

    mine = randomised(lambda: Mine((8, 8, 1), 4, [4], [4], rngs=nnx.Rngs(0)))
    with pytest.raises(
        UnknownModelTypeError,
        match=r"Mine is no installed family \(autoencoder_tiny, .*\); add it",
    ):
        export(mine, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# A process that forks another for each line it reads. The other doubles the weights of the export in a
# directory and writes them over it (`export`), or as step 2 beside step 1 (`save`): until the system has
# been asked for so many changes of files, when it kills itself with SIGKILL (`change`); or until so many
# microseconds are over (`time`); or with files limited to so many bytes, and then without (`limit`).
WRITER = """
import os, resource, signal, sys, threading
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.inference import export_model, load_exported_model
from artifex.generative_models.inference.formats import exporting

CHANGES = {"os.mkdir", "os.rename", "shutil.rmtree", "ctypes.dlsym"}  # the last one for renameat2


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_change(number):
    def hook(event, args):
        nonlocal number
        if event in CHANGES or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            if number == 0:
                kill()
            number -= 1

    sys.addaudithook(hook)


def limit_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def run(root, what, how, number):
    model = load_exported_model(root / "export")[0]
    nnx.update(model, jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(2), nnx.state(model)))
    manager, _ = setup_checkpoint_manager(root / "steps")

    def write():
        if what == "export":
            export_model(model, root / "export", step=2, training_steps=2, final_loss=0.5)
        else:
            save_checkpoint(manager, model, 2)

    if how == "change":
        kill_at_change(number)
    if how == "time":
        threading.Timer(number / 1e6, kill).start()
    if how == "limit":
        limit_files(number)
        try:
            write()
        except Exception as error:  # printed for the parent, which says which one it must be
            names = sorted(str(path.relative_to(root)) for path in root.rglob("*tmp*"))
            print(f"{type(error).__name__}: {names}".replace("\\n", " "), flush=True)
        limit_files(resource.RLIM_INFINITY)
    write()


for line in sys.stdin:
    root, what, how, number = line.split()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            run(Path(root), what, how, int(number))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(f"exit {status}", flush=True)
"""


@pytest.fixture(scope="module")
def process() -> Iterator[Python]:
    with Python(["-c", WRITER], stdin=subprocess.PIPE) as process:
        yield process


class Writer:
    """WRITER on a directory with an export of `model`, and with its weights as step 1."""

    def __init__(self, process: Python, root: Path, model: Classifier):
        self.process = process
        self.root = root
        self.model = model
        export(model, root / "export")
        with setup_checkpoint_manager(root / "steps")[0] as manager:
            save_checkpoint(manager, model, 1)

    def run(self, what: str, how: str, number: int) -> tuple[list[str], int]:
        """Returns what it printed and its exit status."""
        self.process.stdin.write(f"{self.root} {what} {how} {number}\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith("exit "):
                return lines, int(line.removeprefix("exit "))
            lines.append(line.strip())
        raise EOFError("the writer is gone; its traceback is on stderr")

    def check_whole(self, what: str) -> int:
        """The old weights are there or the new ones, nothing between. Returns which, 1 or 2."""
        if what == "export":
            loaded, config, metadata = load_exported_model(self.root / "export")
            assert config == self.model.config
            step = metadata["step"]
        else:
            with setup_checkpoint_manager(self.root / "steps", create=False)[0] as manager:
                loaded, step = load_checkpoint(manager, self.model)
                assert_same_weights(load_checkpoint(manager, self.model, 1)[0], self.model)
        assert_same_weights(loaded, self.model, factor=step)
        return step

    def restore(self, what: str) -> None:
        if what == "export":
            export(self.model, self.root / "export")
        else:
            with setup_checkpoint_manager(self.root / "steps", create=False)[0] as manager:
                manager.delete(2)


@pytest.fixture(scope="module")
def small() -> Classifier:
    """A model of few layers and endpoints, which each export traces; its largest kernel has 8 KiB."""
    return randomised(lambda: Classifier((8, 8, 1), 3, [16], 8, rngs=nnx.Rngs(0)))


@pytest.fixture
def writer(process: Python, tmp_path: Path, small: Classifier) -> Writer:
    return Writer(process, tmp_path, small)


exchanges = pytest.mark.skipif(
    sys.platform != "linux", reason="two renames leave a moment without an export, and the hook knows Linux"
)


@exchanges
@pytest.mark.parametrize("what", ["export", "save"])
def test_killed_at_any_change_of_a_file(writer: Writer, what: str) -> None:
    seen = []
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        _, status = writer.run(what, "change", len(seen))
        seen.append(writer.check_whole(what))
        if seen[-1] == 2:
            writer.restore(what)
    assert status == 0
    assert len(seen) > 8
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


@exchanges
@pytest.mark.parametrize("what", ["export", "save"])
def test_killed_at_random_moments(writer: Writer, what: str) -> None:
    microseconds = np.random.default_rng(0).integers(100_000, size=3)  # which is what writing takes
    for number in microseconds:
        _, status = writer.run(what, "time", number)
        assert status in (0, -signal.SIGKILL)
        if writer.check_whole(what) == 2:
            writer.restore(what)


@pytest.mark.parametrize("what", ["export", "save"])
@pytest.mark.parametrize("size", [0, 400, 6000])
def test_disk_full(writer: Writer, what: str, size: int) -> None:
    lines, status = writer.run(what, "limit", size)
    assert lines in (["OSError: []"], ["CheckpointError: []"])
    assert status == 0, "the second attempt, with room on the disk"
    assert writer.check_whole(what) == 2
