"""The application on a real Ray Serve: the clients of `artifex serve` reach it; an update fails nobody."""

import functools
import queue
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from distributed_ray import RAY_WARNS
from flax import nnx
from shared import TIMEOUT, TOLERANCE
from tritonclient.utils import InferenceServerException

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference import InferencePipeline, export_model
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.vae import VAE
from artifex.serving import create_app

with warnings.catch_warnings(action="ignore"):  # Ray's own code uses what others deprecate
    from ray import serve

    from artifex.ray import replicas as ray_serve

pytestmark = [*RAY_WARNS, pytest.mark.slow]


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return a.getsockname()[1], b.getsockname()[1]


def run(models: dict[str, Path], replicas: int) -> None:
    make_app = functools.partial(create_app, {name: str(path) for name, path in models.items()}, batch_size=1)
    built = ray_serve.deployment(make_app, replicas=replicas, num_cpus=0.5, grace=TIMEOUT)
    serve.run(built, name=ray_serve.NAME)


@pytest.fixture(scope="module")
def ports(ray: object, tiny: Path, drawer: Path) -> Iterator[tuple[int, int]]:
    """HTTP and gRPC of two replicas of `tiny` and `drawer`."""
    http, grpc = free_ports()
    services = {"port": grpc, "grpc_servicer_functions": [ray_serve.GRPC_SERVICES]}
    serve.start(http_options={"host": "127.0.0.1", "port": http}, grpc_options=services)
    run({"tiny": tiny, "drawer": drawer}, replicas=2)
    yield http, grpc
    serve.shutdown()


@pytest.fixture
def client(ports: tuple[int, int]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
        yield client


@pytest.fixture
def grpc_client(ports: tuple[int, int]) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        yield client


def tensor(module: object, pictures: np.ndarray) -> object:
    return module.InferInput("x", pictures.shape, "UINT8").set_data_from_numpy(pictures)


def test_tritons_client_over_http(
    client: triton.InferenceServerClient, plain: InferencePipeline, small: np.ndarray
):
    assert client.is_server_ready()
    assert client.get_model_metadata("tiny.encode")["inputs"][0]["shape"] == [-1, 8, 8, 1]
    found = client.infer("tiny.encode", [tensor(triton, small[:4])]).as_numpy("mean")
    np.testing.assert_allclose(found, plain.encode(small[:4]), rtol=1e-4, atol=1e-5)  # in batches of 1
    with pytest.raises(InferenceServerException, match="unknown model 'nobody'"):
        client.infer("nobody", [tensor(triton, small[:1])])


def test_a_seed_is_the_same_samples_on_every_replica(client: triton.InferenceServerClient):
    draws = [
        client.infer("tiny", [], parameters={"num_samples": 2, "seed": 5}).as_numpy("x") for _ in range(12)
    ]
    assert all(np.array_equal(draws[0], draw) for draw in draws)


def test_replicas_are_told_the_fields(
    client: triton.InferenceServerClient, grpc_client: triton_grpc.InferenceServerClient, drawer: Path
):
    raw = InferencePipeline(load_pipeline(drawer, batch_size=1).executor)
    wanted = raw.generate(2, rngs=5, label=[1, 2], temperature=0.5)
    for module, asked in ((triton, client), (triton_grpc, grpc_client)):
        label = module.InferInput("label", [2], "INT64").set_data_from_numpy(np.array([1, 2]))
        found = asked.infer("drawer", [label], parameters={"seed": 5, "temperature": 0.5}).as_numpy("x")
        np.testing.assert_allclose(found, wanted, **TOLERANCE)


def test_tritons_client_over_grpc(
    grpc_client: triton_grpc.InferenceServerClient, client: triton.InferenceServerClient, small: np.ndarray
):
    assert grpc_client.is_server_live()
    assert grpc_client.is_model_ready("tiny.encode")
    assert grpc_client.get_model_metadata("tiny.encode").inputs[0].shape == [-1, 8, 8, 1]
    found = grpc_client.infer("tiny.encode", [tensor(triton_grpc, small[:2])]).as_numpy("mean")
    over_http = client.infer("tiny.encode", [tensor(triton, small[:2])]).as_numpy("mean")
    np.testing.assert_array_equal(found, over_http)
    with pytest.raises(InferenceServerException, match="unknown model 'nobody'") as caught:
        grpc_client.infer("nobody", [tensor(triton_grpc, small[:1])])
    assert "NOT_FOUND" in caught.value.status()


def test_a_stream_over_grpc_is_answered_in_order(
    grpc_client: triton_grpc.InferenceServerClient, client: triton.InferenceServerClient, small: np.ndarray
):
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    grpc_client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        grpc_client.async_stream_infer("tiny.encode", [tensor(triton_grpc, small[number : number + 1])])
    for number in range(20):
        result, error = answers.get(timeout=TIMEOUT)
        assert error is None
        expected = client.infer("tiny.encode", [tensor(triton, small[number : number + 1])]).as_numpy("mean")
        np.testing.assert_array_equal(result.as_numpy("mean"), expected)
    grpc_client.stop_stream()


def test_an_update_fails_no_request(ports: tuple[int, int], tmp_path: Path, small: np.ndarray):
    vae = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(1))
    newer = export_model(vae, tmp_path / "newer", step=9, training_steps=9, final_loss=1)
    versions: list[str] = []
    done = threading.Event()

    def ask() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
            while not done.is_set():
                answer = client.infer("tiny.encode", [tensor(triton, small[:1])]).get_response()
                versions.append(answer["model_version"])
                done.wait(0.02)  # rather than take the cores from those that start

    failures: list[BaseException] = []
    threads = [threading.Thread(target=_noting(ask, failures)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        run({"tiny": newer}, replicas=2)
    finally:
        done.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert failures == []
    assert versions[0] == "3"
    assert versions[-1] == "9"


def _noting(call: object, failures: list[BaseException]) -> object:
    def noting() -> None:
        try:
            call()
        except Exception as error:  # for the test to tell
            failures.append(error)

    return noting


def test_replicas_are_at_least_one():
    make_app = functools.partial(create_app, ["mnist-vae"])
    for replicas, most in ((0, None), (2, 1)):
        with pytest.raises(InputError, match="replicas: expected 1 or more"):
            ray_serve.deployment(make_app, replicas=replicas, max_replicas=most)
    assert ray_serve.deployment(make_app, replicas=1, max_replicas=3)


def test_a_config_file_names_what_create_app_takes():
    assert ray_serve.application({"models": ["mnist-vae"], "batch_size": 8})
    with pytest.raises(InputError, match="args: got an unexpected keyword argument 'model'"):
        ray_serve.application({"models": ["mnist-vae"], "model": 1})
