"""The gRPC front end over real sockets, asked by Triton's own client."""

import asyncio
import struct

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from shared import TIMEOUT
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from artifex.serving.grpc.messages import SERVICE
from artifex.serving.grpc.service import create_grpc_server
from artifex.serving.plane.descriptions import server_metadata
from artifex.serving.plane.statuses import UnauthorizedError

KEY = {"authorization": "Bearer key"}
METADATA = tuple(KEY.items())
MAX_BYTES = 1 << 16
RNG = np.random.default_rng(0)
X = RNG.random((2, 8, 8, 1), np.float32)
ROWS = RNG.random((5, 3), np.float32)


def authorize(authorization):
    if authorization != "Bearer key":
        raise UnauthorizedError("expected a key")


async def started(plane, address="127.0.0.1:0"):
    server, port = create_grpc_server(plane, address, authorize=authorize, max_message_bytes=MAX_BYTES)
    await server.start()
    return server, port


@pytest.fixture(scope="module")
def port(runner, plane):
    server, port = runner.run(started(plane))
    yield port
    runner.run(server.stop(None))


@pytest.fixture(scope="module")
def client(port):
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.fixture
def call(runner, client):
    """Calls a method of the client in a thread."""

    def call(verb, *arguments, headers=KEY, **keywords):
        method = getattr(client, verb)
        return runner.run(asyncio.to_thread(method, *arguments, headers=headers, **keywords))

    return call


@pytest.fixture
def send(runner, port):
    """Sends a message to a verb as it is."""

    async def send(verb, message, metadata, **options):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", **options) as channel:
            return await getattr(GRPCInferenceServiceStub(channel), verb)(message, metadata=metadata)

    def run(message, verb="ModelInfer", metadata=METADATA, **options):
        return runner.run(asyncio.wait_for(send(verb, message, metadata, **options), TIMEOUT))

    return run


def tensor(name, array, datatype="FP32"):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def encode(**changes):
    """A request of `tiny.encode` for one row, with raw contents."""
    fields = {
        "model_name": "tiny.encode",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 1]}],
        "raw_input_contents": [X[:1].tobytes()],
    }
    return service_pb2.ModelInferRequest(**{**fields, **changes})


def test_state_and_descriptions(call, plane):
    assert call("is_server_live", headers=None)
    assert call("is_server_ready", headers=None)
    assert call("is_model_ready", "tiny")
    assert call("is_model_ready", "tiny.encode", "3")
    assert call("get_server_metadata", as_json=True) == server_metadata()
    metadata = call("get_model_metadata", "tiny.encode")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 8, 8, 1])]
    assert sorted(t.name for t in metadata.outputs) == ["log_var", "mean"]
    assert list(metadata.versions) == ["3"]
    config = call("get_model_config", "tiny").config
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "jax", 16)
    assert [(t.name, t.data_type, t.optional) for t in config.input] == [
        ("temperature", 11, True),
        ("seed", 9, True),
    ]
    assert list(config.output[0].dims) == [8, 8, 1]
    assert list(config.dynamic_batching.preferred_batch_size) == [2]


def test_repository(call, send):
    def state():
        models = call("get_model_repository_index", as_json=True)["models"]
        return next(model for model in models if model["name"] == "tiny")

    assert state() == {"name": "tiny", "version": "3", "state": "READY"}
    try:
        call("unload_model", "tiny")
        assert state() == {"name": "tiny", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert not call("is_model_ready", "tiny")
        with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*unloaded"):
            call("infer", "tiny", [])
        ready = send(service_pb2.RepositoryIndexRequest(ready=True), "RepositoryIndex").models
        assert "tiny" not in [model.name for model in ready]
    finally:
        call("load_model", "tiny")
    assert call("is_model_ready", "tiny")
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*unknown model 'other'"):
        call("load_model", "other")


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("load_model", {"model_name": "tiny", "config": "{}"}),
        ("get_trace_settings", {}),
        ("get_log_settings", {}),
        ("get_system_shared_memory_status", {}),
    ],
)
def test_what_there_is_not(call, verb, arguments):
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        call(verb, **arguments)


def test_statistics(call):
    def counts():
        (stats,) = call("get_inference_statistics", "tiny.reconstruct").model_stats
        return stats.inference_count, stats.inference_stats.success.count, stats.inference_stats.fail.count

    before = counts()
    call("infer", "tiny.reconstruct", [tensor("x", X)])
    with pytest.raises(InferenceServerException):
        call("infer", "tiny.reconstruct", [tensor("y", X)])
    assert counts() == (before[0] + 2, before[1] + 1, before[2] + 1)
    assert len(call("get_inference_statistics").model_stats) > 1


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference_is_the_executors(call, pipeline, compression):
    result = call("infer", "tiny.encode", [tensor("x", X)], request_id="a", compression_algorithm=compression)
    for i in range(2):  # on two devices, a row each
        expected = pipeline.executor("encode", {"x": X[i : i + 1]})
        for name in ("mean", "log_var"):
            np.testing.assert_array_equal(result.as_numpy(name)[i], np.asarray(expected[name][0]))
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("tiny.encode", "3", "a")
    assert not response.parameters
    assert len(response.raw_output_contents) == len(response.outputs) == 2


def test_typed_contents_and_chosen_outputs(send, ask):
    entry = {
        "name": "x",
        "datatype": "FP32",
        "shape": [2, 8, 8, 1],
        "contents": {"fp32_contents": X.reshape(-1).tolist()},
        "parameters": {"binary_data_size": {"int64_param": X.nbytes}},
    }
    wanted = [{"name": "mean", "parameters": {"binary_data": {"bool_param": True}}}]
    response = send(encode(inputs=[entry], raw_input_contents=[], outputs=wanted))
    (output,), (raw,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype, list(output.shape)) == ("mean", "FP32", [2, 4])
    mean = np.frombuffer(raw, np.float32).reshape(2, 4)
    np.testing.assert_array_equal(mean, ask("tiny.encode", {"x": X}).outputs["mean"])


def test_parameters(call, ask):
    temperature = np.array([0.5], np.float32)
    result = call(
        "infer",
        "tiny",
        [tensor("temperature", temperature)],
        parameters={"seed": 7, "num_samples": 2},
        priority=1,
        timeout=int(1e6 * TIMEOUT),
    )
    expected = ask("tiny", {"temperature": temperature}, seed=7, num_samples=2).outputs["x"]
    np.testing.assert_array_equal(result.as_numpy("x"), expected)
    assert result.get_response().parameters["seed"].int64_param == 7
    drawn = call("infer", "tiny", []).get_response().parameters["seed"].int64_param
    np.testing.assert_array_equal(
        call("infer", "tiny", [tensor("seed", np.array([drawn]), "INT64")]).as_numpy("x"),
        ask("tiny", seed=drawn).outputs["x"],
    )
    squared = call("infer", "plain.double", [tensor("x", ROWS)], parameters={"power": 2})
    np.testing.assert_array_equal(squared.as_numpy("y"), 2 * ROWS**2)


X_ENTRY = {"name": "x", "datatype": "FP32", "shape": [1, 8, 8, 1]}
TYPED = {"fp32_contents": X[0].reshape(-1).tolist()}
REGION = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 256}}
BAD = {
    "model": ({"model_name": "other"}, "NOT_FOUND", "unknown model 'other'"),
    "version": ({"model_version": "9"}, "NOT_FOUND", "no version '9'"),
    "name": ({"inputs": [X_ENTRY | {"name": "y"}]}, "INVALID_ARGUMENT", "unknown input 'y'"),
    "long words": ({"parameters": {"ß" * 9000: {"int64_param": 1}}}, "INVALID_ARGUMENT", "ßß…"),
    "twice": ({"inputs": [X_ENTRY] * 2, "raw_input_contents": [X[:1].tobytes()] * 2},
              "INVALID_ARGUMENT", "there twice"),
    "few bytes": ({"raw_input_contents": [b"1234"]}, "INVALID_ARGUMENT", "takes 256 bytes, got 4"),
    "too much raw": ({"raw_input_contents": [b""] * 2}, "INVALID_ARGUMENT", "all 1 inputs or none, got 2"),
    "raw alone": ({"inputs": []}, "INVALID_ARGUMENT", "no input"),
    "both": ({"inputs": [X_ENTRY | {"contents": TYPED}]}, "INVALID_ARGUMENT", "both"),
    "neither": ({"raw_input_contents": []}, "INVALID_ARGUMENT", "0 elements"),
    "datatype": ({"inputs": [X_ENTRY | {"datatype": "FP8"}]}, "INVALID_ARGUMENT", "unknown datatype"),
    "shape": ({"inputs": [X_ENTRY | {"shape": [-1, 8, 8, 1]}]}, "INVALID_ARGUMENT", "sizes from 0"),
    "rank": ({"inputs": [X_ENTRY | {"shape": [1, 64]}]}, "INVALID_ARGUMENT", "x"),
    "nan": ({"raw_input_contents": [np.full((8, 8), np.nan, np.float32).tobytes()]},
            "INVALID_ARGUMENT", "finite"),
    "output": ({"outputs": [{"name": "y"}]}, "INVALID_ARGUMENT", "y"),
    "output twice": ({"outputs": [{"name": "mean"}] * 2}, "INVALID_ARGUMENT", "asked for twice"),
    "parameter": ({"parameters": {"sequence_id": {"int64_param": 1}}}, "INVALID_ARGUMENT", "sequence_id"),
    "input's": ({"inputs": [X_ENTRY | {"parameters": {"a": {"bool_param": True}}}]},
                "INVALID_ARGUMENT", "unknown 'a'"),
    "shared memory": ({"inputs": [X_ENTRY | {"parameters": REGION}], "raw_input_contents": []},
                      "UNIMPLEMENTED", "shared memory"),
    "shared output": ({"outputs": [{"name": "mean", "parameters": REGION}]},
                      "UNIMPLEMENTED", "shared memory"),
    "classes": ({"outputs": [{"name": "mean", "parameters": {"classification": {"int64_param": 2}}}]},
                "UNIMPLEMENTED", "classification"),
    "rows": ({"inputs": [X_ENTRY | {"shape": [17, 8, 8, 1]}], "raw_input_contents": [bytes(17 * 256)]},
             "RESOURCE_EXHAUSTED", "17 rows"),
    "size": ({"raw_input_contents": [bytes(MAX_BYTES)]}, "RESOURCE_EXHAUSTED", "larger than max"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "words"), BAD.values(), ids=BAD)
def test_bad_requests(send, changes, status, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        send(encode(**changes))
    assert caught.value.code() is grpc.StatusCode[status]
    assert words in caught.value.details()
    assert send(encode()).outputs


def test_what_decompresses_to_more_is_refused(send):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        send(encode(raw_input_contents=[bytes(1 << 24)]), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_is_no_message(runner, port):
    async def send():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")(b"\xff\xff", metadata=METADATA)

    with pytest.raises(grpc.aio.AioRpcError, match="the message is no ModelInferRequest") as caught:
        runner.run(send())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_internal_error_says_nothing(send, plane, monkeypatch, caplog):
    monkeypatch.setattr(plane, "infer", lambda request: 1 / 0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        send(encode())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "division" not in caught.value.details()
    (record,) = [r for r in caplog.records if r.getMessage() == "internal error"]
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer other"),)])
@pytest.mark.parametrize("verb", ["ModelInfer", "ServerMetadata", "RepositoryModelUnload"])
def test_without_the_key(send, verb, metadata):
    request_class = getattr(service_pb2, f"{verb}Request")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        send(request_class(), verb, metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_address_that_is_taken(runner, plane, port):
    with pytest.raises(OSError, match="cannot be listened on"):
        runner.run(started(plane, f"127.0.0.1:{port}"))


def test_clients_may_ping_as_often_as_they_like(runner, plane):
    frame = struct.Struct("!HBBBI")  # of HTTP/2: length, type, flags, stream
    settings, ping, goaway = 4, 6, 7

    async def use():
        server, port = create_grpc_server(plane, "127.0.0.1:0", max_message_bytes=MAX_BYTES)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame.pack(0, 0, settings, 0, 0)
        writer.write(sent)
        kinds = []
        while kinds.count(ping) < 20 and goaway not in kinds:
            if not kinds or kinds[-1] == ping:
                writer.write(frame.pack(0, 8, ping, 0, 0) + bytes(8))
            length, more, kind, *_ = frame.unpack(await reader.readexactly(frame.size))
            await reader.readexactly((length << 8) + more)
            kinds.append(kind)
        writer.close()
        await server.stop(None)
        return kinds

    assert goaway not in runner.run(asyncio.wait_for(use(), TIMEOUT))


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("content_type", {"string_param": "np"}),
        ("headers", {"string_param": "{}"}),
        ("timeout", {}),
        ("a", {}),
    ],
)
def test_parameters_without_a_value_or_an_effect_mean_nothing(send, name, parameter):
    said = {"parameters": {name: parameter}}
    answer = send(encode(**said, inputs=[X_ENTRY | said], outputs=[{"name": "mean"} | said]))
    wanted = send(encode(outputs=[{"name": "mean"}]))
    assert answer.raw_output_contents == wanted.raw_output_contents
