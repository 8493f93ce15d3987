"""Models are replaced while requests run: none fails, and none is answered by half a model."""

import http.client
import json
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from served import Process, live
from shared import TIMEOUT, TOLERANCE

from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.inference import Executor, export_model
from artifex.generative_models.models.vae import VAE
from artifex.serving import create_app

X = np.linspace(0, 1, 64, dtype=np.float32)
ENCODE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": X.tolist()}]}
GENERATE = {"parameters": {"seed": 7}}
STEPS = (3, 4, 5, 6)


def vae(step):
    return VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(step))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An export of each step, of the same shapes and with weights of its own."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        step: export_model(vae(step), folder / str(step), step=step, training_steps=9, final_loss=1.0)
        for step in STEPS
    }


@pytest.fixture(scope="module")
def wanted():
    """What each version gives."""
    first, outputs = None, {}
    for step in STEPS:
        executor = Executor(vae(step), batch_sizes=(1,))
        if first is not None:
            executor.reuse_executables(first)
        first = executor
        outputs[str(step)] = {
            "encode": executor("encode", {"x": X.reshape(1, 8, 8, 1)})["mean"].ravel(),
            "generate": executor("generate", key=nnx.Rngs(7).sample(), num_rows=1)["x"].ravel(),
            "stream": executor("generate", key=nnx.Rngs(7).sample(), num_rows=20)["x"].reshape(20, -1),
        }
    return outputs


@pytest.fixture
def served_export(exports, tmp_path):
    """The export that a server has, and what puts another one in its place."""
    path = tmp_path / "tiny"
    shutil.copytree(exports[STEPS[0]], path)
    count = iter(range(100))

    def replace(other: Path):
        new, old = tmp_path / f"new {next(count)}", tmp_path / f"old {next(count)}"
        shutil.copytree(other, new)
        path.rename(old)
        new.rename(path)

    return path, replace


class Client(threading.Thread):
    """Asks on one connection, one request after the other, and remembers what each version said."""

    def __init__(self, port, endpoint):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self.endpoint = endpoint
        self.answers = {}  # version: flat outputs
        self.failures = []
        self.stopping = False
        self.changed = threading.Condition()

    def run(self):
        body = json.dumps(ENCODE if self.endpoint == "encode" else GENERATE)
        try:
            while not self.stopping:
                self.connection.request("POST", f"/v2/models/tiny.{self.endpoint}/infer", body)
                response = self.connection.getresponse()
                content = json.loads(response.read())
                with self.changed:
                    if response.status == 200:
                        outputs = {output["name"]: output["data"] for output in content["outputs"]}
                        said = outputs["mean" if self.endpoint == "encode" else "x"]
                        self.answers.setdefault(content["model_version"], []).append(said)
                    else:
                        self.failures.append(content)
                    self.changed.notify_all()
                time.sleep(0.005)  # rather than take the cores from what loads
        except Exception as error:
            with self.changed:
                self.failures.append(error)
                self.changed.notify_all()
        finally:
            self.connection.close()

    def wait_for(self, version, more=3):
        """Waits for some more answers of a version."""
        with self.changed:
            before = len(self.answers.get(version, []))
            assert self.changed.wait_for(
                lambda: self.failures or len(self.answers.get(version, [])) >= before + more, TIMEOUT
            )
            assert not self.failures

    def stop(self):
        self.stopping = True
        self.join(TIMEOUT)
        assert not self.is_alive()


def load(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    connection.request("POST", "/v2/repository/models/tiny/load")
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


@pytest.mark.parametrize("by", ["load", "watch"])
def test_reloads_under_load_lose_and_mix_nothing(by, exports, wanted, served_export):
    path, replace = served_export
    options = ["--watch"] if by == "watch" else []
    with Process(path, "--batch-size", 2, *options) as server:
        server.ready()
        clients = [Client(server.port, endpoint) for endpoint in ("encode", "generate") * 2]
        for client in clients:
            client.start()
            client.wait_for("3")
        for step in STEPS[1:3]:
            replace(exports[step])
            if by == "load":
                assert load(server) == (200, {})
            assert server.wait_for("ready", version=str(step))["compiled"] == 0
            for client in clients:
                client.wait_for(str(step))

        damaged = path / "config.json"
        whole = damaged.read_text()
        damaged.write_text("{")
        if by == "load":
            status, content = load(server)
            assert status == 503
            assert str(path) not in content["error"]
        server.wait_for("loading failed")
        for client in clients:
            client.wait_for("5")  # it goes on
        damaged.write_text(whole)

        with setup_checkpoint_manager(path / "checkpoints")[0] as manager:
            save_checkpoint(manager, vae(6), 6)
        if by == "load":
            assert load(server) == (200, {})
        assert server.wait_for("ready", version="6")["compiled"] == 0
        for client in clients:
            client.wait_for("6")
            client.stop()
            assert client.failures == []
            assert {*client.answers} == {"3", "4", "5", "6"}
            for version, answers in client.answers.items():
                right = np.broadcast_to(wanted[version][client.endpoint], np.shape(answers))
                np.testing.assert_allclose(np.array(answers, np.float32), right, **TOLERANCE)
        assert server.stop() == 0


def test_versions_can_be_told_apart(wanted):
    for endpoint in ("encode", "generate"):
        outputs = [wanted[str(step)][endpoint] for step in STEPS]
        for i, one in enumerate(outputs):
            assert all(np.abs(one - other).max() > 1e-2 for other in outputs[:i])


def test_a_stream_that_began_before_a_reload_ends_with_the_old_weights(
    exports, wanted, served_export, monkeypatch
):
    path, replace = served_export
    permits = threading.Semaphore(0)
    run = Executor.run

    def gated(self, job):
        if job.program.name == "generate":
            assert permits.acquire(timeout=TIMEOUT)
        return run(self, job)

    monkeypatch.setattr(Executor, "run", gated)
    with live(create_app([path], batch_size=2)) as server:
        body = b'{"num_samples": 20, "seed": 7}'
        head = b"POST /v2/models/tiny/generate_stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        with server.connect(head % len(body) + body) as connection:
            permits.release()
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            first = response.readline() + response.readline()
            replace(exports[4])
            assert server.client.post("/v2/repository/models/tiny/load").status_code == 200
            new = server.client.post("/v2/models/tiny.encode/infer", json=ENCODE).json()
            assert new["model_version"] == "4"
            permits.release(1000)
            events = (first + response.read()).split(b"\n\n")[:-1]
        rows = [json.loads(event.removeprefix(b"data: ")) for event in events]
        assert [(row["index"], row["model_version"]) for row in rows] == [(i, "3") for i in range(20)]
        x = np.array([row["x"] for row in rows], np.float32).reshape(20, -1)
        np.testing.assert_allclose(x, wanted["3"]["stream"], **TOLERANCE)
        answer = server.client.post("/v2/models/tiny/generate", json={"seed": 7}).json()
        assert answer["model_version"] == "4"
        x = np.array(answer["x"], np.float32).ravel()
        np.testing.assert_allclose(x, wanted["4"]["generate"], **TOLERANCE)


def test_a_request_that_waits_during_a_reload_is_answered_by_the_weights_it_was_taken_for(
    exports, wanted, served_export, monkeypatch
):
    path, replace = served_export
    opened, held = threading.Event(), threading.Event()
    run = Executor.run

    def gated(self, job):
        held.set()
        assert opened.wait(TIMEOUT)
        return run(self, job)

    monkeypatch.setattr(Executor, "run", gated)
    with live(create_app([path], batch_size=1)) as server:
        body = json.dumps(ENCODE).encode()
        head = b"POST /v2/models/tiny.encode/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        connections: list[socket.socket] = [server.connect(head % len(body) + body) for _ in range(8)]
        assert held.wait(TIMEOUT)
        while (
            server.app.plane.repository.entries["tiny"].loaded.batcher.stats()["encode"].queued_requests < 4
        ):
            pass  # most wait in the queue
        replace(exports[4])
        assert server.client.post("/v2/repository/models/tiny/load").status_code == 200
        opened.set()
        versions = []
        for connection in connections:
            with connection:
                response = http.client.HTTPResponse(connection, method="POST")
                response.begin()
                content = json.loads(response.read())
            versions.append(content["model_version"])
            mean = {output["name"]: output["data"] for output in content["outputs"]}["mean"]
            np.testing.assert_allclose(
                np.array(mean, np.float32), wanted[content["model_version"]]["encode"], **TOLERANCE
            )
        assert versions.count("3") >= 5
