"""Every verb of the protocol, by the stock client, over a real socket."""

import gzip
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
from flax import nnx
from served import error_of, live
from tritonclient.utils import InferenceServerException

from artifex import __version__
from artifex.serving import create_app

X = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
ROW = X[:1]  # always a batch of its own, so that its bits are known


@pytest.fixture(scope="module")
def server(pipeline, compiled_plain):
    with live(create_app({"tiny": pipeline, "plain": compiled_plain}, max_rows=16)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.address, network_timeout=30) as client:
        yield client


def tensor(name, array, datatype="FP32", *, binary=True):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def test_server_verbs(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "artifex"
    assert metadata["version"] == __version__
    assert {"binary_tensor_data", "statistics", "model_repository", "generate"} <= {*metadata["extensions"]}


@pytest.mark.parametrize("version", ["", "3"])
def test_model_verbs(client, version):
    assert client.is_model_ready("tiny.encode", version)
    metadata = client.get_model_metadata("tiny.encode", version)
    assert metadata["name"] == "tiny.encode"
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8, 8, 1]}]
    assert {tensor["name"]: tensor["shape"] for tensor in metadata["outputs"]} == {
        "mean": [-1, 4],
        "log_var": [-1, 4],
    }
    config = client.get_model_config("tiny.encode", version)
    assert config["max_batch_size"] == 16
    (x,) = config["input"]
    assert (x["name"], x["data_type"], x["dims"], x["optional"]) == ("x", "TYPE_FP32", [8, 8, 1], False)


def test_a_models_own_name_is_its_generate(client):
    metadata = client.get_model_metadata("tiny")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["temperature", "seed"]
    assert metadata["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8, 8, 1]}]


@pytest.mark.parametrize("verb", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
@pytest.mark.parametrize(("model", "version"), [("tiny.encode", "4"), ("nobody", ""), ("tiny.paint", "")])
def test_what_is_not_there_is_404(client, verb, model, version):
    with pytest.raises(InferenceServerException) as raised:
        getattr(client, verb)(model, version)
    assert raised.value.status() == "404"
    assert not client.is_model_ready(model, version)
    with pytest.raises(InferenceServerException) as raised:
        client.infer(model, [tensor("x", X)], model_version=version)
    assert raised.value.status() == "404"


def test_load_unload_and_index(server, client):
    def states(**filters):
        index = server.client.post("/v2/repository/index", json=filters).json()
        return {model["name"]: (model["version"], model["state"]) for model in index}

    assert {model["name"] for model in client.get_model_repository_index()} == {"tiny", "plain"}
    assert states() == {"tiny": ("3", "READY"), "plain": ("1", "READY")}
    client.unload_model("plain")
    try:
        assert states() == {"tiny": ("3", "READY"), "plain": ("", "UNAVAILABLE")}
        assert states(ready=True) == {"tiny": ("3", "READY")}
        assert client.is_server_ready()
        assert not client.is_model_ready("plain.double")
        with pytest.raises(InferenceServerException) as raised:
            client.infer("plain.double", [tensor("x", np.ones((1, 3), np.float32))])
        assert raised.value.status() == "503"
    finally:
        client.load_model("plain")
    assert states(ready=True) == {"tiny": ("3", "READY"), "plain": ("1", "READY")}
    result = client.infer("plain.double", [tensor("x", np.ones((1, 3), np.float32))])
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 3), 2, np.float32))


@pytest.mark.parametrize("verb", ["load_model", "unload_model"])
def test_an_unknown_model_cannot_be_loaded_or_unloaded(client, verb):
    with pytest.raises(InferenceServerException) as raised:
        getattr(client, verb)("nobody")
    assert raised.value.status() == "404"


def test_a_model_is_not_loaded_with_a_config_of_the_client(client):
    with pytest.raises(InferenceServerException) as raised:
        client.load_model("tiny", config="{}")
    assert raised.value.status() == "501"


def test_statistics_count(client):
    def count():
        (stats,) = client.get_inference_statistics("tiny.reconstruct", "3")["model_stats"]
        assert (stats["name"], stats["version"]) == ("tiny.reconstruct", "3")
        totals = stats["inference_stats"]
        return [stats["inference_count"], totals["success"]["count"], totals["fail"]["count"]], stats

    before, _ = count()
    client.infer("tiny.reconstruct", [tensor("x", ROW)])
    with pytest.raises(InferenceServerException):
        client.infer("tiny.reconstruct", [tensor("z", ROW)])
    after, stats = count()
    assert np.subtract(after, before).tolist() == [1, 1, 1]
    assert stats["last_inference"] > 1e12
    parts = stats["inference_stats"]
    spent = sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < spent <= parts["success"]["ns"]
    everything = client.get_inference_statistics()["model_stats"]
    assert {"tiny.encode", "plain.noise"} < {stats["name"] for stats in everything}


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_trace_settings(),
        lambda client: client.get_trace_settings("tiny"),
        lambda client: client.update_trace_settings(settings={"trace_level": "OFF"}),
        lambda client: client.get_log_settings(),
        lambda client: client.update_log_settings({"log_info": True}),
        lambda client: client.get_system_shared_memory_status(),
        lambda client: client.register_system_shared_memory("r", "/r", 8),
        lambda client: client.unregister_system_shared_memory("r"),
        lambda client: client.get_cuda_shared_memory_status(),
    ],
)
def test_what_this_server_has_not_is_501(client, ask):
    with pytest.raises(InferenceServerException) as raised:
        ask(client)
    assert raised.value.status() == "501"
    assert "no such extension" in raised.value.message()


def test_shared_memory_of_tensors_is_501(client):
    given = triton.InferInput("x", [1, 8, 8, 1], "FP32")
    given.set_shared_memory("region", 256)
    with pytest.raises(InferenceServerException) as raised:
        client.infer("tiny.encode", [given])
    assert raised.value.status() == "501"


@pytest.mark.parametrize("sent", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("got", [True, False, None], ids=["binary out", "JSON out", "mixed out"])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_one_tensor_is_the_same_by_every_way(client, pipeline, sent, got, coding):
    names = ["mean", "log_var"]
    binary = [True, False] if got is None else [got, got]
    result = client.infer(
        "tiny.encode",
        [tensor("x", ROW, binary=sent)],
        outputs=[triton.InferRequestedOutput(n, binary_data=b) for n, b in zip(names, binary, strict=True)],
        request_id="request 1",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    wanted = pipeline.executor("encode", {"x": ROW})
    for name in names:
        found = result.as_numpy(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted[name])
    response = result.get_response()
    assert response["id"] == "request 1"
    assert (response["model_name"], response["model_version"]) == ("tiny.encode", "3")


def test_inputs_may_be_mixed(client, compiled_plain):
    x, temperature = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, 3], np.float32)
    for one, other in [(True, False), (False, True)]:
        inputs = [tensor("x", x, binary=one), tensor("temperature", temperature, binary=other)]
        result = client.infer("plain.scaled", inputs)
        np.testing.assert_array_equal(result.as_numpy("y"), x * temperature[:, None])


def test_only_the_outputs_asked_for_come(client):
    result = client.infer("tiny.encode", [tensor("x", X)], outputs=[triton.InferRequestedOutput("mean")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["mean"]


def test_a_raw_request_is_one_row_without_json(server, pipeline):
    headers = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}
    response = server.client.post("/v2/models/tiny.encode/infer", content=ROW.tobytes(), headers=headers)
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    result = triton.InferenceServerClient.parse_response_body(response.content, header_length=length)
    wanted = pipeline.executor("encode", {"x": ROW})
    for name in ("mean", "log_var"):
        np.testing.assert_array_equal(result.as_numpy(name), wanted[name])


def test_responses_are_compressed_only_as_accepted(server):
    rows = np.zeros((16, 8, 8, 1)).tolist()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [16, 8, 8, 1], "data": rows}]}
    url = "/v2/models/tiny.reconstruct/infer"
    plain = server.client.post(url, json=body, headers={"accept-encoding": "br"})
    assert "content-encoding" not in plain.headers
    decoders = {"gzip": gzip.decompress, "deflate": zlib.decompress}
    for coding, decode in decoders.items():
        request = server.client.build_request("POST", url, json=body, headers={"accept-encoding": coding})
        response = server.client.send(request, stream=True)
        content = b"".join(response.iter_raw())
        response.close()
        assert response.headers["content-encoding"] == coding
        assert len(content) < len(plain.content)
        assert decode(content) == plain.content
    refused = server.client.post(url, json=body, headers={"accept-encoding": "gzip;q=0, deflate;q=0"})
    assert "content-encoding" not in refused.headers


def test_async_infer(client, compiled_plain):
    requests = [np.full((n, 3), n, np.float32) for n in range(1, 5)]
    pending = [client.async_infer("plain.double", [tensor("x", x)]) for x in requests]
    for x, future in zip(requests, pending, strict=True):
        np.testing.assert_array_equal(future.get_result().as_numpy("y"), 2 * x)


def test_seed_and_options_are_parameters_and_the_seed_comes_back(client, pipeline):
    def generate(**parameters):
        result = client.infer("tiny", [], parameters={"num_samples": 1, **parameters})
        return result.as_numpy("x"), result.get_response()["parameters"]["seed"]

    first, seed = generate()
    again, told = generate(seed=seed)
    assert told == seed
    np.testing.assert_array_equal(again, first)
    other, _ = generate()
    assert np.abs(other - first).max() > 1e-3
    wanted = pipeline.executor("generate", key=nnx.Rngs(seed).sample(), num_rows=1)["x"]
    np.testing.assert_array_equal(first, wanted)


def test_temperature_and_seeds_are_tensors(client, pipeline):
    seed = tensor("seed", np.array([5, 6], np.int64), "INT64")
    temperature = tensor("temperature", np.array([0.25, 1], np.float32))
    result = client.infer("tiny", [temperature, seed])
    cold = client.infer("tiny", [tensor("temperature", np.array([0.25], np.float32))], parameters={"seed": 5})
    hot = client.infer("tiny", [], parameters={"seed": 6})
    np.testing.assert_allclose(result.as_numpy("x")[0], cold.as_numpy("x")[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("x")[1], hot.as_numpy("x")[0], rtol=1e-5, atol=1e-6)
    assert "parameters" not in result.get_response()


def test_schedule_policy_and_options(client):
    x = np.full((1, 3), 3, np.float32)
    result = client.infer(
        "plain.double", [tensor("x", x)], timeout=20_000_000, priority=2, parameters={"power": 2}
    )
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x**2)


@pytest.mark.parametrize("name", ["num", "model", "", "key", "num_rows", "first_row"])
def test_an_unknown_parameter_is_an_error(server, name):
    body = {"parameters": {name: 1}, "inputs": []}
    response = server.client.post("/v2/models/tiny/infer", json=body)
    assert response.status_code == 400
    assert "unknown parameter" in error_of(response)
