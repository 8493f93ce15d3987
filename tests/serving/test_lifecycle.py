"""`artifex serve` in a process of its own: readiness, signals, kills, TLS."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
import threading

import forked
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from served import Process, read_answer
from shared import TIMEOUT

from artifex.serving import lifecycle

X = np.linspace(0, 1, 64, dtype=np.float32)
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": X.tolist()}]}
ENCODE = "/v2/models/tiny.encode/infer"
# Holds what is run after the warm-up for ever, and says so.
HOLDS = """
import threading
from artifex.generative_models.inference.executor.executor import Executor
def run(self, job):
    print("held", flush=True)
    threading.Event().wait()
Executor.run = run
"""
# Holds the warm-up until it reads a line.
WAITS = """
import sys
from artifex.serving.plane import loaded_model
warm_up = loaded_model._warm_up
def waiting(executor, progress):
    print("warming", flush=True)
    sys.stdin.readline()
    warm_up(executor, progress)
loaded_model._warm_up = waiting
"""
# A program that goes on after its server, which is told to end once its heap has been frozen.
EMBEDS = """
import gc, os, signal, sys
from artifex.serving import create_app, lifecycle, run_server
model, was_frozen, collected = sys.argv[1], "frozen" in sys.argv, "collects" in sys.argv
gc.unfreeze()
if was_frozen:
    gc.freeze()
(gc.enable if collected else gc.disable)()
settle = lifecycle._settle_heap
def settled():
    settle()
    assert gc.get_freeze_count() and not gc.isenabled()
    os.kill(os.getpid(), signal.SIGTERM)
lifecycle._settle_heap = settled
assert run_server(create_app([model], batch_size=1), port=0) == 0
assert gc.isenabled() == collected
assert bool(gc.get_freeze_count()) == was_frozen
"""


@pytest.fixture
def held(made):
    """A server that holds one request, with the thread that waits for its answer."""
    processes = []

    def make(*args):
        process = Process(made, "--batch-size", 1, *args, before=HOLDS)
        processes.append(process)
        process.ready()
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=TIMEOUT)
        connection.request("POST", ENCODE, json.dumps(REQUEST))
        assert process.popen.stdout.readline() == "held\n"
        process.connection = connection
        return process

    yield make
    for process in processes:
        process.connection.close()
        process.__exit__()


def mean(url, **settings):
    response = httpx.post(url + ENCODE, json=REQUEST, timeout=TIMEOUT, **settings)
    assert response.status_code == 200
    return {output["name"]: output["data"] for output in response.json()["outputs"]}["mean"]


def test_it_is_ready_when_all_is_compiled_and_not_before(made):
    with Process(made, "--batch-size", 2, before=WAITS, stdin=subprocess.PIPE) as server:
        assert server.popen.stdout.readline() == "warming\n"
        assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
        early = httpx.post(server.url + ENCODE, json=REQUEST)
        assert early.status_code == 503
        assert int(early.headers["retry-after"]) >= 1
        assert server.grpc_port
        server.popen.stdin.write("\n")
        server.popen.stdin.flush()
        server.ready()
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        warm_ups = [event for event in server.events if event.get("event") == "warm-up"]
        assert warm_ups[-1]["done"] == warm_ups[-1]["total"] == 8
        metrics = httpx.get(f"{server.url}/metrics").text
        mean(server.url)
        compiles = [line for line in metrics.splitlines() if line.startswith("artifex_compiles{")]
        again = httpx.get(f"{server.url}/metrics").text.splitlines()
        assert [line for line in again if line.startswith("artifex_compiles{")] == compiles
        assert len(compiles) == 1
        server.popen.stdin.close()
        assert server.stop() == 0
        assert [e["event"] for e in server.events[-3:]] == ["signal", "draining", "stopped"]


def test_it_says_nothing_but_its_events_whatever_clients_send(made):
    with Process(made, "--batch-size", 1) as server:
        server.ready()
        for garbage in (b"\x16\x03\x01\x02", b"GET / HTTP/9\r\n\r\n", b"GET /\n HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as connection:
                connection.sendall(garbage)
                assert connection.recv(12) == b"HTTP/1.1 400"
            with socket.create_connection(("127.0.0.1", server.grpc_port), TIMEOUT) as connection:
                connection.sendall(garbage + b"\0" * 100)
                while connection.recv(1000):
                    pass
        broken = {"content": b"garbage", "headers": {"content-type": "multipart/form-data; boundary=x"}}
        assert httpx.post(f"{server.url}/v2/models/tiny/generate", **broken).status_code == 400
        mean(server.url)
        assert server.stop() == 0
        assert [event["line"] for event in server.events if "line" in event] == []


class Client(threading.Thread):
    """Sends requests on one connection, one after the other, until one is refused."""

    def __init__(self, server, endpoint):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        self.endpoint = endpoint
        self.statuses = []
        self.error = None
        self.warm = threading.Event()

    def run(self):
        try:
            while not self.statuses or self.statuses[-1] == 200:
                body = json.dumps(
                    REQUEST if self.endpoint == "encode" else {"parameters": {"num_samples": 5}}
                )
                self.connection.request("POST", f"/v2/models/tiny.{self.endpoint}/infer", body)
                response = self.connection.getresponse()
                json.loads(response.read())
                self.statuses.append(response.status)
                if len(self.statuses) >= 5:
                    self.warm.set()
        except Exception as error:
            self.error = error
        finally:
            self.warm.set()
            self.connection.close()


def test_sigterm_under_load_loses_no_request(made):
    with Process(made, "--batch-size", 8) as server:
        server.ready()
        clients = [Client(server, endpoint) for endpoint in ("encode", "generate") * 4]
        for client in clients:
            client.start()
        for client in clients:
            assert client.warm.wait(TIMEOUT)
        assert server.stop() == 0
        for client in clients:
            client.join(TIMEOUT)
            assert client.error is None
            assert client.statuses[:-1] == [200] * (len(client.statuses) - 1)
            assert client.statuses[-1] == 503


def test_what_was_taken_is_finished_within_the_grace_or_given_up(held):
    server = held("--grace", 0.3)
    assert server.stop() == 1
    assert server.events[-1]["event"] == "stopped"
    assert "draining" in [event.get("event") for event in server.events]


def test_while_it_drains_it_is_not_ready_and_a_second_signal_ends_it(held):
    server = held("--grace", 600)
    server.signal()
    server.wait_for("draining")
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    ready = httpx.get(f"{server.url}/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    refused = httpx.post(server.url + ENCODE, json=REQUEST)
    assert refused.status_code == 503
    assert "drains" in refused.json()["error"]
    server.signal(signal.SIGINT)
    assert server.wait() == 128 + signal.SIGINT


def test_sigterm_before_it_is_ready_ends_it(made):
    with Process(made, "--batch-size", 2, before=WAITS, stdin=subprocess.PIPE) as server:
        assert server.popen.stdout.readline() == "warming\n"
        server.wait_for("listening")
        server.signal()
        server.wait_for("draining")
        server.popen.stdin.close()  # what the warm-up waits for
        assert server.wait() == 0


def test_behind_proxies_links_are_those_that_clients_see(made):
    sent = {"host": "example.org", "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    proxies = ["--root-path", "/models/", "--proxy-headers", "--forwarded-allow-ips", "192.0.2.1,127.0.0.2"]
    with Process(made, "--batch-size", 1, "--access-log", "--keep-alive", 1, *proxies) as server:
        server.ready()
        for source, url in (("127.0.0.1", "http://example.org"), ("127.0.0.2", "https://example.org")):
            transport = httpx.HTTPTransport(local_address=source)
            with httpx.Client(base_url=server.url, headers=sent, transport=transport) as client:
                for prefix in ("", "/models"):
                    openapi = client.get(f"{prefix}/openapi.json").json()
                    assert openapi["servers"] == [{"url": f"{url}/models"}]
                    for page in ("/", "/docs"):
                        assert f"{url}/models/" in client.get(prefix + page).text
                    assert client.post(prefix + ENCODE, json=REQUEST).status_code == 200
                assert client.get("/models").text == client.get("/").text
        told = {event["client"] for event in server.events if event.get("event") == "request"}
        assert told == {"127.0.0.1", "203.0.113.9"}
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as idle:
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(idle, "GET").status == 200
            assert idle.recv(1) == b""  # closed after a second
        assert server.stop() == 0


def test_a_name_is_listened_on_at_all_its_addresses(monkeypatch):
    families = {"127.0.0.1": socket.AF_INET, "127.0.0.2": socket.AF_INET, "2001:db8::1": socket.AF_INET6}
    found = [(family, socket.SOCK_STREAM, 6, "", (name, 0)) for name, family in families.items()]
    found[2] = (*found[2][:4], ("2001:db8::1", 0, 0, 0))  # which is not this machine's
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **settings: [found[2], *found[:2], found[0]])
    listeners = lifecycle._listen("name", 0)
    try:
        (first, port), second = (listener.getsockname() for listener in listeners)
        assert first == "127.0.0.1"
        assert second == ("127.0.0.2", port)
    finally:
        for listener in listeners:
            listener.close()


def test_a_log_that_nobody_reads_holds_up_nothing(made):
    command = ["-c", "from artifex.cli import main; main()", "serve", made, "--batch-size", 1]
    options = ["--port", 0, "--grpc-port", 0, "--access-log"]
    with forked.Python([*command, *options]) as server:
        try:
            url = None
            for line in server.stderr:
                event = json.loads(line)
                url = event.get("url", url)
                if event["event"] == "ready":
                    break
            with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
                for _ in range(40):  # lines of 8 KB; a pipe holds 64
                    assert client.get("/" + 8000 * "a").status_code == 404
                assert client.post(ENCODE, json=REQUEST).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(TIMEOUT) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("heap", [["collects"], ["frozen"]])
def test_a_program_that_goes_on_has_its_garbage_collection_back(made, heap):
    forked.run(["-c", EMBEDS, made, *heap], check=True, timeout=TIMEOUT)


def test_after_kill_it_starts_again_on_the_same_port_and_answers_the_same(made):
    with Process(made, "--batch-size", 2) as first:
        first.ready()
        port, wanted = first.port, mean(first.url)
        with socket.create_connection(("127.0.0.1", port)) as open_connection:
            open_connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(open_connection, "GET").status == 200  # so that it was taken
            first.signal(signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL
            assert open_connection.recv(1) == b""
    with Process(made, "--batch-size", 2, "--port", port) as second:
        ready = second.wait_for("ready")
        assert second.port == port
        assert ready["compiled"] == 0
        assert mean(second.url) == wanted
        assert second.stop() == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, "-days", "2", *names, *files], check=True, capture_output=True
    )
    return folder


def test_tls_is_for_http_and_grpc(made, certificate):
    pair = ["--ssl-certfile", certificate / "cert.pem", "--ssl-keyfile", certificate / "key.pem"]
    with Process(made, "--batch-size", 1, *pair) as server:
        server.ready()
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=certificate / "cert.pem")
        wanted = mean(server.url, verify=context)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/v2")
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/v2")
        given = tritonclient.grpc.InferInput("x", [1, 8, 8, 1], "FP32")
        given.set_data_from_numpy(X.reshape(1, 8, 8, 1))
        with tritonclient.grpc.InferenceServerClient(
            f"localhost:{server.grpc_port}", ssl=True, root_certificates=str(certificate / "cert.pem")
        ) as client:
            result = client.infer("tiny.encode", [given])
        np.testing.assert_array_equal(result.as_numpy("mean").ravel(), np.float32(wanted))
        assert server.stop() == 0
