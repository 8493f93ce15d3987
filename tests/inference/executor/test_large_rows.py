"""The laws for rows of megabytes, and what bounds them: bytes, not rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from artifex.generative_models.core import DeviceManager, Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, NonFiniteError
from artifex.generative_models.inference import Batcher, Executor, StreamingGenerator, batch_generate_samples
from artifex.generative_models.inference.executor import jobs

PICTURE = TensorSpec((512, 512, 3), np.float32)  # 3 MiB
MEGABYTES = 1 << 20
ROWS = 5
BATCH_SIZES = (1, 2, 4, 64)


def shifted(model, keys, inputs):
    noise = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)
    return {"x": inputs["x"] + noise[:, None, None, None].astype(jnp.float32)}


def drawn(model, keys, inputs):
    level = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)
    return {"x": jnp.broadcast_to(level[:, None, None, None].astype(jnp.float32), (len(keys), 1024, 1024, 3))}


ENDPOINTS = {
    "doubled": Endpoint(lambda model, keys, inputs: {"y": 2 * inputs["x"]}, {"x": PICTURE}),
    "shifted": Endpoint(shifted, {"x": PICTURE}),
    "generate": Endpoint(drawn, {"temperature": TensorSpec((), jnp.float32, default=1.0)}),
}


@pytest.fixture(scope="module")
def executor():
    return Executor(None, ENDPOINTS, batch_sizes=BATCH_SIZES)


@pytest.fixture(scope="module")
def pictures():
    levels = np.arange(ROWS, dtype=np.float32)[:, None, None, None]
    return np.broadcast_to(levels, (ROWS, *PICTURE.shape)) + np.float32(0.5)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), ROWS)


def test_a_row_is_the_same_alone_among_others_and_for_strangers(executor, pictures, keys):
    whole = np.asarray(executor("shifted", {"x": pictures}, keys=keys)["x"])
    for i in range(ROWS):
        alone = executor("shifted", {"x": pictures[i : i + 1]}, keys=keys[i : i + 1])["x"]
        np.testing.assert_array_equal(alone, whole[i : i + 1])
    order = np.array([3, 0, 4, 1, 2])
    turned = executor("shifted", {"x": pictures[order]}, keys=keys[order])["x"]
    np.testing.assert_array_equal(turned, whole[order])
    with Batcher(executor) as batcher:
        futures = [
            batcher.submit("shifted", {"x": pictures[i : i + 1]}, keys=keys[i : i + 1]) for i in range(ROWS)
        ]
        merged = np.concatenate([future.result(60)["x"] for future in futures])
    np.testing.assert_array_equal(merged, whole)


@pytest.mark.parametrize("rows", [1, 8])
def test_a_stream_reads_bytes_ahead_not_rows(executor, pictures, rows):
    chunk = np.broadcast_to(pictures[:1], (rows, *PICTURE.shape))
    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(400 // rows):
            taken += rows
            yield {"x": chunk}

    stream = executor.map("shifted", chunks(), key=jax.random.key(0))
    most = 0
    for given, _ in enumerate(itertools.islice(stream, 4), 1):
        most = max(most, taken - rows * given)
    stream.close()
    row_bytes = executor.row_bytes("shifted")
    assert row_bytes == 6 * MEGABYTES
    # 64 MiB under way, as many that have run and are being read, and a chunk at either end
    assert most * row_bytes <= 128 * MEGABYTES + 2 * rows * row_bytes


def test_a_long_stream_of_large_samples_goes_on(executor):
    stream = StreamingGenerator(executor, seed=5, num_samples=14)
    levels = [float(sample[0, 0, 0]) for sample in stream]
    expected = batch_generate_samples(executor, 14, 4, rngs=5)
    assert levels == [float(level) for level in np.asarray(expected)[:, 0, 0, 0]]


def test_a_stream_fits_the_queue_of_its_batcher(executor):
    row_bytes = executor.row_bytes("generate")
    with Batcher(executor, max_queued_bytes=3 * row_bytes, max_queued_rows=3) as batcher:
        levels = [float(sample[0, 0, 0]) for sample in StreamingGenerator(batcher, 5, num_samples=9)]
    assert levels == np.asarray(batch_generate_samples(executor, 9, 4, rngs=5))[:, 0, 0, 0].tolist()


def test_warm_up_leaves_out_batch_sizes_that_memory_cannot_hold(executor, pictures, monkeypatch, caplog):
    wanted = executor("shifted", {"x": pictures}, key=jax.random.key(0))["x"]
    executor = Executor(None, {"shifted": ENDPOINTS["shifted"]}, batch_sizes=(1, 2, 4, 8))
    bytes_in_flight = executor.row_bytes("shifted") * executor.executions_in_flight
    monkeypatch.setattr(DeviceManager, "free_memory", lambda self: 3 * bytes_in_flight)
    assert list(executor.warmup()["shifted"]) == [1, 2]
    assert executor.batch_sizes_of("shifted") == (1, 2)
    assert "batches of at most 2 rows from now on" in caplog.text
    compiled = executor.compile_count
    found = executor("shifted", {"x": pictures}, key=jax.random.key(0))["x"]
    np.testing.assert_array_equal(found, wanted)
    assert executor.compile_count == compiled


def test_a_batch_size_that_memory_cannot_hold_is_never_run(executor, pictures, monkeypatch):
    wanted = executor("shifted", {"x": pictures}, key=jax.random.key(0))["x"]
    executor = Executor(None, {"shifted": ENDPOINTS["shifted"]}, batch_sizes=(1, 8))
    monkeypatch.setattr(DeviceManager, "free_memory", lambda self: 1)
    np.testing.assert_array_equal(executor("shifted", {"x": pictures}, key=jax.random.key(0))["x"], wanted)
    assert executor.batch_sizes_of("shifted") == (1,)


@pytest.mark.parametrize(
    ("row", "dtype"), [(0, np.float64), (3, np.float32), (ROWS - 1, np.float32), (ROWS - 1, np.float64)]
)
def test_rows_are_looked_through_a_few_at_a_time(executor, pictures, keys, monkeypatch, row, dtype):
    monkeypatch.setattr(jobs, "_LOOK_BYTES", 8 * MEGABYTES)
    broken = pictures.astype(dtype)
    broken[row, -1, -1, -1] = np.inf if dtype == np.float32 else 1e39
    with pytest.raises(InputError, match=f"x: row {row} has a NaN or infinite value as float32"):
        executor("shifted", {"x": broken}, keys=keys)
    broken[row, -1, -1, -1] = np.finfo(np.float32).max
    with pytest.raises(NonFiniteError, match=f"row {row} came out NaN or infinite"):
        executor("doubled", {"x": broken})
