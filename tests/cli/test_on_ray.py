"""The commands on Ray: what they write, what they refuse, and how a server ends."""

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.http as triton
from distributed_ray import RAY_WARNS
from forked import Python
from PIL import Image
from served import Process

pytestmark = RAY_WARNS


def write_parquet(folder: Path, pictures: np.ndarray) -> None:
    """Two files, of encoded pictures in row groups of 11."""
    folder.mkdir()
    encoded = []
    for picture in pictures:
        Image.fromarray(picture[..., 0]).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    for name, part in (("a", encoded[:30]), ("b", encoded[30:])):
        table = pa.table({"image": pa.array(part, pa.binary()), "label": list(range(len(part)))})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=11)


@pytest.mark.slow
def test_encode_on_ray_writes_what_encode_does(
    ray: ModuleType, model: Path, small: np.ndarray, cli: Callable[..., str], spawn: Callable[..., Python]
):
    write_parquet(Path("pictures"), small)
    address = ray.get_runtime_context().gcs_address
    args = ["encode", model, "pictures", "--batch-size", 4]
    cli(*args, "-o", "plain.npy")
    on_ray = ["--engine", "ray", "--ray-address", address, "--actors", 1, "--json"]
    with spawn(*args, "-o", "ray.npy", *on_ray) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    facts = json.loads(stdout)
    assert (facts["rows"], facts["resumed_at"], facts["num_actors"]) == (70, 0, 1)
    assert facts["output"] == str(Path("ray.npy").absolute())
    assert Path("ray.npy").read_bytes() == Path("plain.npy").read_bytes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--actors", 2], "the number of processes goes with --engine ray"),
        (["--actor-gpus", 0.5], "the --actor-gpus goes with --engine ray"),
        (["--engine", "ray", "--devices", 2], "--devices does not go with --engine ray"),
        (["--engine", "ray", "--ray-address", "ray://a:1"], "expected HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(
    model: Path, small: np.ndarray, failing_cli: Callable[..., str], args: list[object], words: str
):
    np.save("x.npy", small)
    assert words in failing_cli("encode", model, "x.npy", *args)
    assert words in failing_cli("generate", model, "-o", "x.npy", *args)


def test_server_options_that_do_not_go_together(model: Path, failing_cli: Callable[..., str]):
    assert "the number of processes goes with" in failing_cli("serve", model, "--replicas", 2)
    assert "--max-replicas goes with" in failing_cli("serve", model, "--max-replicas", 2)
    assert "--access-log does not go" in failing_cli("serve", model, "--engine", "ray", "--access-log")
    assert "no model 'nobody'" in failing_cli("serve", "nobody", "--engine", "ray")


def test_ray_is_not_imported_where_it_is_not_asked_for(model: Path):
    code = (
        "import sys; from artifex.cli import app; from typer.testing import CliRunner\n"
        f"CliRunner().invoke(app, ['generate', {str(model)!r}, '-n', '1', '-o', 'x.npy'])\n"
        "print({name.split('.')[0] for name in sys.modules} & {'ray', 'pyarrow', 'pandas'})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
    assert len(np.load("x.npy")) == 1


@pytest.mark.slow
def test_serve_on_ray_answers_and_drains(ray: ModuleType, model: Path, small: np.ndarray):
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        port, grpc_port = a.getsockname()[1], b.getsockname()[1]
    ports = ["--port", port, "--grpc-port", grpc_port]
    address = ray.get_runtime_context().gcs_address
    on_ray = ["--engine", "ray", "--ray-address", address, "--actor-cpus", 0.5]
    with Process(model, "--batch-size", 1, *on_ray, *ports) as server:
        assert server.ready().url == f"http://127.0.0.1:{port}"
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            x = triton.InferInput("x", [1, 8, 8, 1], "UINT8").set_data_from_numpy(small[:1])
            assert client.infer("tiny.encode", [x]).as_numpy("mean").shape == (1, 4)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        events = [event["event"] for event in server.events if "event" in event]
        assert events == ["loading", "listening", "ready", "draining", "stopped"]
