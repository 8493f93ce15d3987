"""Streams, clients that leave, and servers that drain, over real sockets."""

import asyncio
import queue
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from shared import TIMEOUT, rows
from tritonclient.grpc.service_pb2 import ModelInferRequest, ServerLiveRequest, ServerReadyRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.serving.grpc import service as front_end
from artifex.serving.grpc.messages import SERVICE, message_class
from artifex.serving.grpc.service import MAX_IN_FLIGHT, create_grpc_server
from artifex.serving.plane.statuses import UnauthorizedError

SERVING, NOT_SERVING = 1, 2


def authorize(authorization):
    if authorization == "wrong":
        raise UnauthorizedError("expected another key")


@pytest.fixture
def served(serving, scaler, runner):
    """Runs a test's coroutine with the data plane over `scaler` and a channel to its server."""

    @asynccontextmanager
    async def server():
        async with serving({"scaler": scaler}) as plane:
            server, port = create_grpc_server(
                plane, "127.0.0.1:0", authorize=authorize, max_message_bytes=1 << 20
            )
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    yield plane, channel, port
            finally:
                await server.stop(None)

    async def bounded(test):
        async with asyncio.timeout(TIMEOUT), server() as (plane, channel, port):
            await test(plane, channel, port)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return lambda test: runner.run(bounded(test))


def request(number=1, **changes):
    """A request whose answer tells its number."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    message = ModelInferRequest(
        model_name="scaler.scale", id=str(number), inputs=[x], raw_input_contents=[rows(1, number).tobytes()]
    )
    message.MergeFrom(ModelInferRequest(**changes))
    return message


def answer(response):
    return np.frombuffer(response.raw_output_contents[0], np.float32)


def stats(plane):
    return plane.repository.entries["scaler"].loaded.batcher.stats().get("scale", BatcherStats())


def present(plane):
    """Rows that are computed or wait."""
    now = stats(plane)
    return now.rows_in_flight + now.queued_rows


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)  # what it waits for is a counter of another thread


def test_a_stream_answers_good_and_bad_in_order(served):
    async def test(plane, channel, port):
        bad = [
            {"model_name": "r"},
            {"raw_input_contents": [b""]},
            {"parameters": {"p": {"bool_param": True}}},
        ]
        messages = [request(i, **(bad[i // 5 % 3] if i % 5 == 2 else {})) for i in range(3 * MAX_IN_FLIGHT)]
        i = -1
        async for response in (answers := GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(messages))):
            i += 1
            assert response.infer_response.id == str(i)
            assert bool(response.error_message) == (i % 5 == 2)
            if not response.error_message:
                np.testing.assert_array_equal(answer(response.infer_response), 2 * rows(1, i)[0])
        assert i == len(messages) - 1
        assert await answers.code() is grpc.StatusCode.OK

    served(test)


def test_the_stock_client_streams(served):
    def ask(port):
        answers = queue.Queue()
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(rows(1, 4))
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            client.async_stream_infer("scaler.scale", [x], enable_empty_final_response=True)
            client.async_stream_infer("other", [x])
            client.async_stream_infer("scaler.scale", [x])
            client.stop_stream()
        return [answers.get_nowait() for _ in range(3)]

    async def test(plane, channel, port):
        (first, _), (_, error), (last, _) = await asyncio.to_thread(ask, port)
        assert "unknown model 'other'" in str(error)
        for result in (first, last):
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * rows(1, 4))
        assert first.get_response().parameters["triton_final_response"].bool_param
        assert "triton_final_response" not in last.get_response().parameters

    served(test)


def test_a_stream_is_read_no_further_while_many_are_in_flight(served, scaler, monkeypatch):
    monkeypatch.setattr(front_end, "MAX_IN_FLIGHT", 3)

    async def test(plane, channel, port):
        calls = []
        monkeypatch.setattr(plane, "infer", lambda r, infer=plane.infer: calls.append(r.id) or infer(r))
        stub = GRPCInferenceServiceStub(channel)
        with scaler.held():
            stream = stub.ModelStreamInfer(request(i) for i in range(9))
            await until(lambda: len(calls) == 3)
            for _ in range(20):  # time enough for the others to be read
                await stub.ServerLive(ServerLiveRequest())
            assert calls == ["0", "1", "2"]
        assert [response.infer_response.id async for response in stream] == [str(i) for i in range(9)]

    served(test)


@pytest.mark.parametrize("how", ["cancel", "deadline", "stream", "disconnect"])
def test_what_nobody_waits_for_is_dropped(served, scaler, how):
    async def test(plane, channel, port):
        own = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        leaving, staying = GRPCInferenceServiceStub(own), GRPCInferenceServiceStub(channel)
        with scaler.held():
            first = [staying.ModelInfer(request(i)) for i in range(16)]  # more than the device takes
            await until(lambda: present(plane) == 16)
            if how == "stream":
                calls = [leaving.ModelStreamInfer(request(i) for i in range(20, 30))]
            else:
                seconds = 1 if how == "deadline" else TIMEOUT
                calls = [leaving.ModelInfer(request(i), timeout=seconds) for i in range(20, 30)]
            await until(lambda: present(plane) == 26)
            if how == "disconnect":
                await own.close()
            elif how != "deadline":
                for call in calls:
                    call.cancel()
            await until(lambda: present(plane) == 16)
        for i, call in enumerate(first):
            np.testing.assert_array_equal(answer(await call), 2 * rows(1, i)[0])
        assert (stats(plane).rows, stats(plane).cancelled) == (16, 10)
        await own.close()

    served(test)


def test_a_client_that_leaves_amid_answers_is_no_error(served, caplog):
    async def test(plane, channel, port):
        for i in range(10):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as own:
                stream = GRPCInferenceServiceStub(own).ModelStreamInfer(request(i) for i in range(300))
                for _ in range(5 * i):
                    await stream.read()
        await until(lambda: not any("_Verbs" in repr(task) for task in asyncio.all_tasks()))

    served(test)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_load_goes_on_when_its_client_leaves(served, scaler):
    async def test(plane, channel, port):
        scaler.factor = 5
        scaler.may_open.clear()
        load = asyncio.create_task(asyncio.to_thread(load_and_leave, port))
        with pytest.raises(Exception, match="Deadline Exceeded"):
            await load
        scaler.may_open.set()
        await until(lambda: plane.repository.index()[0]["version"] == "5")
        assert plane.is_ready

    def load_and_leave(port):
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            client.load_model("scaler", client_timeout=1)

    served(test)


def test_draining(served, scaler):
    async def test(plane, channel, port):
        stub = GRPCInferenceServiceStub(channel)
        with scaler.held():
            stream = stub.ModelStreamInfer()
            await stream.write(request(1))
            taken = stub.ModelInfer(request(2))
            await until(lambda: present(plane) == 2)
            plane.draining = True
            assert not (await stub.ServerReady(ServerReadyRequest())).ready
            with pytest.raises(grpc.aio.AioRpcError, match=r"UNAVAILABLE|drains"):
                await stub.ModelInfer(request(3))
        assert (await taken).id == "2"
        assert (await stream.read()).infer_response.id == "1"
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE

    served(test)


def test_a_stream_without_the_key(served):
    async def test(plane, channel, port):
        metadata = (("authorization", "wrong"),)
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(metadata=metadata)
        # It sends nothing: gRPC's client tells of a message that it could not send in place of the refusal.
        # And it reads, unlike `code()`, which leaves a task of the client's behind if its headers come late.
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await stream.read()

    served(test)


def test_health(served):
    request_class, response_class = message_class("HealthCheckRequest"), message_class("HealthCheckResponse")
    forms = request_class.SerializeToString, response_class.FromString

    async def test(plane, channel, port):
        check = channel.unary_unary("/grpc.health.v1.Health/Check", *forms)
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", *forms)
        metadata = (("authorization", "wrong"),)
        for service in ("", SERVICE.full_name):
            assert (await check(request_class(service=service), metadata=metadata)).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await check(request_class(service="other"))
        await plane.repository.unload("scaler")
        plane.repository.entries["scaler"].reason = "not loaded yet"
        assert (await check(request_class())).status == NOT_SERVING
        await plane.repository.load("scaler")
        watching = watch(request_class())
        assert (await watching.read()).status == SERVING
        plane.draining = True
        assert (await check(request_class())).status == NOT_SERVING
        assert (await watching.read()).status == NOT_SERVING
        assert await watching.read() is grpc.aio.EOF

    served(test)
