"""`artifex serve` where it fails before, or instead of, serving: a line says why."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Python
from typer.testing import CliRunner

from artifex.cli import app
from artifex.cli.serve import _named
from artifex.serving import create_app

Fails = Callable[..., str]
PORTS = ["--port", "0", "--grpc-port", "0"]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of a certificate and its key, and one key with a password."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("a", "b"):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=localhost", *files)
    openssl("ec", "-aes128", "-passout", "pass:x", "-in", f"{folder}/a.key", "-out", f"{folder}/locked.key")
    return folder


def test_a_taken_port_is_one_line(model: Path, failing_cli: Fails, taken: int):
    said = failing_cli("serve", model, "--port", taken, "--grpc-port", 0)
    assert said == f"127.0.0.1:{taken}: Address already in use"


def test_a_taken_port_of_grpc_is_one_line(model: Path, failing_cli: Fails, taken: int):
    said = failing_cli("serve", model, "--port", 0, "--grpc-port", taken)
    assert str(taken) in said


def test_an_address_that_is_not_ours_is_one_line(model: Path, failing_cli: Fails):
    assert "192.0.2.1" in failing_cli("serve", model, "--host", "192.0.2.1", *PORTS)
    assert "nowhere.invalid" in failing_cli("serve", model, "--host", "nowhere.invalid", *PORTS)


def serve_events(*args: object) -> list[dict[str, object]]:
    """What a server says that ends by itself with status 1."""
    result = CliRunner().invoke(app, ["serve", *map(str, args), *PORTS], catch_exceptions=False)
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]


@pytest.mark.parametrize("command", ["inspect", "reconstruct", "serve"])
def test_devices_that_are_not_there_are_one_line(model: Path, spawn: Callable[..., Python], command: str):
    before = "import jax; jax.config.update('jax_platforms', 'cuda')"
    args = {"reconstruct": ["a.npy", "-o", "b.npy"], "serve": PORTS}.get(command, [])
    process = spawn(command, model, *args, before=before)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    *_, said = [line for line in stderr.splitlines() if "cuda" in line]
    assert "Traceback" not in stderr
    assert "reason" in said if command == "serve" else stderr == f"{said}\n"


def test_an_unknown_model_ends_the_server_and_says_why():
    events = serve_events("nobody")
    (failed,) = [event for event in events if event["event"] == "loading failed"]
    assert failed["model"] == "nobody"
    assert "mnist-vae" in str(failed["reason"])  # what there is
    assert "traceback" not in failed
    assert events[-1]["event"] == "stopped"


def test_a_damaged_model_ends_the_server_and_says_why(model: Path, folder: Path):
    export = Path(shutil.copytree(model, folder / "damaged"))
    (export / "config.json").write_text("{")
    (failed,) = [e for e in serve_events(export) if e["event"] == "loading failed"]
    assert "config.json" in str(failed["reason"])


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a/tiny", "b/tiny"], "two models are called tiny"),
        (["x=a", "x=b"], "two models are called x"),
        (["a b=tiny"], "'a b' cannot be a model's name"),
        (["=tiny"], "cannot be a model's name"),
    ],
)
def test_wrong_names_are_one_line(failing_cli: Fails, models: list[str], words: str):
    assert words in failing_cli("serve", *models, *PORTS)


def test_a_certificate_comes_with_its_key(model: Path, failing_cli: Fails, certificates: Path):
    crt, key = certificates / "a.crt", certificates / "a.key"
    for args in (["--ssl-certfile", crt], ["--ssl-keyfile", key]):
        assert "both --ssl-certfile and --ssl-keyfile" in failing_cli("serve", model, *args, *PORTS)


@pytest.mark.parametrize(
    ("crt", "key", "more"),
    [
        ("a.crt", "b.key", []),
        ("a.key", "a.key", []),
        ("a.crt", "locked.key", ["--ssl-keyfile-password", "wrong"]),
        ("a.crt", "a.key", ["--ssl-ca-certs", "a.key"]),
    ],
    ids=["another's key", "no certificate", "wrong password", "no authority"],
)
def test_a_certificate_and_key_that_do_not_fit_are_one_line(
    model: Path, failing_cli: Fails, certificates: Path, crt: str, key: str, more: list[str]
):
    more = [str(certificates / arg) if arg.startswith("a.") else arg for arg in more]
    args = ["--ssl-certfile", certificates / crt, "--ssl-keyfile", certificates / key, *more]
    assert "do not fit" in failing_cli("serve", model, *args, *PORTS)


def test_a_certificate_that_is_not_there_is_one_line(model: Path, failing_cli: Fails, certificates: Path):
    args = ["--ssl-certfile", certificates / "none.crt", "--ssl-keyfile", certificates / "a.key"]
    assert "none.crt" in failing_cli("serve", model, *args, *PORTS)


def test_a_locked_key_needs_its_password_and_no_terminal(
    model: Path, certificates: Path, spawn: Callable[..., Python]
):
    args = ["--ssl-certfile", certificates / "a.crt", "--ssl-keyfile", certificates / "locked.key"]
    process = spawn("serve", model, *args, *PORTS)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert "password" in stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--port", -1), ("--port", 65536), ("--max-rows", 0), ("--timeout", -1), ("--grace", -1)],
)
def test_options_out_of_range_are_usage_errors(option: str, value: int):
    result = CliRunner().invoke(app, ["serve", "tiny", option, str(value)])
    assert result.exit_code == 2


class Missing:
    """Finds nothing of a package, as if it were not installed."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "orjson", "prometheus_client", "grpc"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, failing_cli: Fails, monkeypatch: pytest.MonkeyPatch, model: Path
):
    serving = "artifex.serving"
    for name in [*sys.modules]:
        if name.startswith(serving) or name.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(missing), *sys.meta_path])
    said = failing_cli("serve", model, *PORTS)
    assert said == f"{missing} is not installed: pip install 'artifex[serve]'"


def test_models_go_by_the_names_that_were_typed(folder: Path):
    Path(".hidden/abc").mkdir(parents=True)
    Path("current").symlink_to(".hidden/abc")
    models = ["current", ".hidden/abc/", "a=current", "b=nowhere:make", "nowhere:model"]
    assert _named(models) == {
        "current": "current",
        "abc": ".hidden/abc/",
        "a": "current",
        "b": "nowhere:make",
        "model": "nowhere:model",
    }
    assert list(create_app(["current", ".hidden/abc"]).plane.repository.entries) == ["current", "abc"]
