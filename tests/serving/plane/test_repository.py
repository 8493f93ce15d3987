"""Models come, are replaced while requests run, and go."""

import asyncio
import threading
import weakref

import numpy as np
import pytest
from shared import TIMEOUT, collector_off, rows

from artifex.generative_models.core.errors import ClosedError, InputError
from artifex.generative_models.inference.images import encode_png
from artifex.serving.plane.descriptions import statistics
from artifex.serving.plane.origins import ExportSource, PipelineSource
from artifex.serving.plane.repository import Repository
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import NotFoundError, NotReadyError, UnloadableError


def states(plane):
    return {entry["name"]: (entry["version"], entry["state"]) for entry in plane.repository.index()}


def test_what_waits_when_a_model_is_replaced_gets_the_old_weights(serving, scaler):
    async def main():
        async with serving({"m": scaler}) as plane:
            request = InferRequest("m.scale", inputs={"x": rows(1)})
            with scaler.held():
                waiting = [asyncio.ensure_future(plane.infer(request)) for _ in range(9)]
                await asyncio.to_thread(scaler.wait_reached)
                scaler.factor = 10
                await plane.repository.load("m")
                new = asyncio.ensure_future(plane.infer(request))
                await asyncio.sleep(0)
            for task in waiting:
                response = await task
                np.testing.assert_array_equal(response.outputs["y"], 2 * rows(1))
                assert response.version == "2"
            np.testing.assert_array_equal((await new).outputs["y"], 10 * rows(1))
            assert (await new).version == "10"
            await asyncio.gather(*plane.repository._drains)
            assert plane.repository.entries["m"].retired["2"]["scale"].requests == 9
            assert statistics(plane, "m.scale")["model_stats"][0]["inference_stats"]["success"]["count"] == 1

    asyncio.run(main())


def test_a_model_that_was_replaced_is_freed_when_it_is_drained(serving, export):
    async def main():
        async with serving({"m": ExportSource(export, batch_size=1)}) as plane:
            await plane.infer(InferRequest("m", parameters={"num_samples": 3}))
            freed = threading.Event()
            weakref.finalize(plane.repository.entries["m"].loaded.executor, freed.set)
            with collector_off():  # as in a server, where what is frozen is never looked through
                await plane.repository.load("m")
                assert await asyncio.to_thread(freed.wait, TIMEOUT)  # a thread that drained it may be last

    asyncio.run(main())


def test_a_request_whose_pictures_are_decoded_during_a_reload_is_answered(serving, export, monkeypatch):
    source = ExportSource(export, batch_size=1)
    opened, version = source.open()
    decoding, reloaded = threading.Event(), threading.Event()
    preprocess = opened.preprocess_fn

    def slow(pictures):
        decoding.set()
        assert reloaded.wait(TIMEOUT)
        return preprocess(pictures)

    opened.preprocess_fn = slow
    opened.metadata["step"] = int(version)

    async def main():
        async with serving({"m": PipelineSource(opened)}) as plane:
            png = encode_png(np.zeros((8, 8, 1), np.uint8))
            request = InferRequest("m.encode", inputs={"x": np.array([png], object)})
            task = asyncio.ensure_future(plane.infer(request))
            assert await asyncio.to_thread(decoding.wait, TIMEOUT)
            await plane.repository.load("m")
            reloaded.set()
            assert (await task).outputs["mean"].shape == (1, 4)

    asyncio.run(main())


def test_a_model_that_was_never_there_is_not_ready(export):
    async def main():
        repository = Repository({"m": ExportSource(export / "nothing")}, max_queued_rows=8)
        with pytest.raises(NotReadyError, match="m is not ready: not loaded yet"):
            repository.find("m")
        with pytest.raises(UnloadableError) as caught:
            await repository.load("m")
        with pytest.raises(NotReadyError, match="m is not ready: loading failed: ConfigError") as unready:
            repository.find("m")
        for text in (str(caught.value), str(unready.value), str(repository.index())):
            assert str(export) not in text
        assert repository.index()[0]["state"] == "UNAVAILABLE"
        assert not repository.is_ready
        await repository.close()

    asyncio.run(main())


def test_unload_and_load(serving, scaler):
    async def main():
        request = InferRequest("m.scale", inputs={"x": rows(1)})
        async with serving({"m": scaler, "n": scaler}) as plane:
            with scaler.held():
                waiting = asyncio.ensure_future(plane.infer(request))
                await asyncio.to_thread(scaler.wait_reached)
                await plane.repository.unload("m")
            np.testing.assert_array_equal((await waiting).outputs["y"], 2 * rows(1))
            assert states(plane) == {"m": ("", "UNAVAILABLE"), "n": ("2", "READY")}
            assert plane.is_ready  # since it was unloaded on purpose
            assert not plane.is_model_ready("m.scale")
            with pytest.raises(NotReadyError, match="m is not ready: unloaded"):
                await plane.infer(request)
            await plane.repository.unload("m")
            await plane.repository.load("m")
            assert states(plane)["m"] == ("2", "READY")
            np.testing.assert_array_equal((await plane.infer(request)).outputs["y"], 2 * rows(1))

    asyncio.run(main())


def test_loads_at_the_same_time_follow_each_other(serving, scaler):
    async def main():
        async with serving({"m": scaler, "n": scaler}) as plane:
            scaler.factor = 3
            names = ["m", "n", "m", "n", "m"]
            await asyncio.gather(*map(plane.repository.load, names))
            assert states(plane) == {"m": ("3", "READY"), "n": ("3", "READY")}
            assert scaler.most_at_once == 1
            assert scaler.times_opened == 2 + len(names)

    asyncio.run(main())


def test_watch_loads_what_changed_and_leaves_what_was_unloaded(serving, scaler):
    other = type(scaler)()

    async def main():
        async with serving({"m": scaler, "n": other}) as plane:
            watching = asyncio.ensure_future(plane.repository.watch(0.001))
            scaler.factor = 5
            await asyncio.to_thread(scaler.wait_opened, 2)
            await asyncio.to_thread(scaler.wait_looked, 3)  # so it is loaded, and not again
            assert states(plane)["m"] == ("5", "READY")
            assert scaler.times_opened == 2
            scaler.factor = 0  # which cannot be loaded
            await asyncio.to_thread(scaler.wait_opened, 3)
            await asyncio.to_thread(scaler.wait_looked, 3)
            assert scaler.times_opened == 3  # once for each change
            assert states(plane)["m"] == ("5", "READY")
            await plane.repository.unload("m")
            scaler.factor = 7
            await asyncio.to_thread(other.wait_looked, 3)
            assert states(plane)["m"] == ("", "UNAVAILABLE")
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching

    asyncio.run(main())


def test_a_load_that_is_cancelled_leaves_a_model_that_can_be_loaded(scaler):
    async def main():
        repository = Repository({"m": scaler}, max_queued_rows=8)
        scaler.may_open.clear()
        loading = asyncio.ensure_future(repository.load("m"))
        await asyncio.to_thread(scaler.wait_opened, 1)
        assert repository.index()[0]["state"] == "LOADING"
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        scaler.may_open.set()
        await repository.load("m")  # after the other, which went on
        assert repository.index()[0]["state"] == "READY"
        await repository.close()

    asyncio.run(main())


def test_close_answers_what_waits_and_then_takes_nothing(scaler):
    async def main():
        repository = Repository({"m": scaler}, max_queued_rows=64)
        await repository.load("m")
        loaded, _ = repository.find("m.scale")
        with scaler.held():
            waiting = [loaded.batcher.submit_async("scale", {"x": rows(1, n)}) for n in range(9)]
            closing = asyncio.ensure_future(repository.close())
            await asyncio.to_thread(scaler.wait_reached)
        await closing
        for n, future in enumerate(waiting):
            np.testing.assert_array_equal((await future)["y"], 2 * rows(1, n))
        with pytest.raises(ClosedError):
            loaded.batcher.submit_async("scale", {"x": rows(1)})

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "version", "error", "message"),
    [
        ("", "", NotFoundError, "unknown model ''; there are m, m.x"),
        ("other", "", NotFoundError, "unknown model 'other'"),
        ("../m", "", NotFoundError, "unknown model"),
        ("m/../m", "", NotFoundError, "unknown model"),
        ("m.", "", NotFoundError, "m has no endpoint ''; there are scale"),
        ("m..scale", "", NotFoundError, "unknown model"),
        (".scale", "", NotFoundError, "unknown model"),
        ("m.train", "", NotFoundError, "m has no endpoint 'train'"),
        ("m", "", NotFoundError, "m has no endpoint 'generate'"),
        ("m.scale", "3", NotFoundError, "m has no version '3' loaded; there is 2"),
        ("m.scale", "../2", NotFoundError, "m has no version"),
        ("m.scale", "02", NotFoundError, "m has no version"),
        ("n" * 100_000, "", NotFoundError, "unknown model"),
        ("m.scale", "v" * 100_000, NotFoundError, "no version"),
        ("m." + "e" * 100_000, "", NotFoundError, "no endpoint"),
    ],
)
def test_find_and_what_is_not_there(serving, scaler, name, version, error, message):
    async def main():
        async with serving({"m": scaler, "m.x": scaler}) as plane:
            for found in ("m.scale", "m.x.scale"):
                loaded, endpoint = plane.find(found, "2")
                assert (loaded.version, endpoint.name) == ("2", "scale")
            with pytest.raises(error, match=message) as caught:
                plane.find(name, version)
            assert len(str(caught.value)) < 300
            for change in (plane.repository.load, plane.repository.unload):
                with pytest.raises(NotFoundError, match="unknown model"):
                    await change("other")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", ".", "..", "../m", "a/b", "a b", "a\n", "-a", "ä", "a\0", "a:b"])
def test_names_that_are_no_names(scaler, name):
    with pytest.raises(InputError, match="cannot be a model's name"):
        Repository({name: scaler}, max_queued_rows=8)
