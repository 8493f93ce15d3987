"""What a batcher answers: what the executor gives each request alone, whatever shares its batch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import TIMEOUT, TOLERANCE, rows

from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import Batcher, Executor, batch_generate_samples

SEEDS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, -1, -(2**31)]


def split_key(seed, n):
    return jax.random.split(jax.random.key(seed), n)


def folded(key, numbers):
    return jnp.stack([jax.random.fold_in(key, number) for number in numbers])


# What each request draws with, and the keys of its 5 rows.
IDENTITIES = {
    **{f"seed={seed}": ({"seed": seed}, lambda s=seed: folded(sample_key(s), range(5))) for seed in SEEDS},
    "a NumPy seed": ({"seed": np.uint32(7)}, lambda: folded(sample_key(7), range(5))),
    "key": ({"key": jax.random.key(3)}, lambda: folded(jax.random.key(3), range(5))),
    "keys": ({"keys": split_key(4, 5)}, lambda: split_key(4, 5)),
    "seed and first_row": (
        {"seed": 1, "first_row": 40},
        lambda: folded(sample_key(1), range(40, 45)),
    ),
    "key and first_row": (
        {"key": jax.random.key(3), "first_row": 2**32 - 7},
        lambda: folded(jax.random.key(3), range(2**32 - 7, 2**32 - 2)),
    ),
}


@pytest.mark.parametrize(("identity", "keys"), IDENTITIES.values(), ids=IDENTITIES.keys())
def test_each_row_draws_with_its_own_key(plain, open_batcher, identity, keys):
    expected = np.asarray(plain("noise", keys=keys())["y"])
    future = open_batcher().submit("noise", num_rows=5, **identity)
    np.testing.assert_array_equal(future.result(TIMEOUT)["y"], expected)


def test_requests_with_seeds_keys_and_row_numbers_share_batches(plain, held, gate):
    batcher = held()
    futures = [batcher.submit("noise", num_rows=5, **identity) for identity, _ in IDENTITIES.values()]
    gate.release()
    for future, (_, keys) in zip(futures, IDENTITIES.values(), strict=True):
        np.testing.assert_array_equal(future.result(TIMEOUT)["y"], plain("noise", keys=keys())["y"])
    assert gate.sizes == [1] + [8] * (5 * len(IDENTITIES) // 8) + [5 * len(IDENTITIES) % 8]


@pytest.fixture
def merged(executor, monkeypatch):
    """A batcher of the real model that runs nothing until `release` is set."""
    release = threading.Event()
    run = executor.run

    def gated(job):
        assert release.wait(TIMEOUT)
        return run(job)

    monkeypatch.setattr(executor, "run", gated)
    with Batcher(executor, max_in_flight=1) as batcher:
        yield batcher, release
        release.set()


def test_samples_of_a_real_model_are_those_of_their_seeds_alone(mnist_vae, executor, merged):
    batcher, release = merged
    key, keys = jax.random.key(11), split_key(12, 3)
    given_identities = [
        *({"seed": seed, "num_rows": 3} for seed in SEEDS),
        {"key": key, "num_rows": 11},
        {"keys": keys},
        {"key": key, "num_rows": 2, "first_row": 9},
    ]
    futures = [batcher.submit("generate", **identity) for identity in given_identities]
    colder = batcher.submit("generate", {"temperature": 0.5}, seed=1, num_rows=3)
    release.set()
    alone = [
        *(batch_generate_samples(mnist_vae, 3, batch_size=4, rngs=nnx.Rngs(seed)) for seed in SEEDS),
        executor("generate", key=key, num_rows=11)["x"],
        executor("generate", keys=keys)["x"],
        executor("generate", key=key, num_rows=11)["x"][9:],
    ]
    for future, expected in zip(futures, alone, strict=True):
        np.testing.assert_allclose(future.result(TIMEOUT)["x"], expected, **TOLERANCE)
    expected = batch_generate_samples(mnist_vae, 3, batch_size=4, rngs=nnx.Rngs(1), temperature=0.5)
    np.testing.assert_allclose(colder.result(TIMEOUT)["x"], expected, **TOLERANCE)
    assert not np.allclose(alone[1], expected, **TOLERANCE)


def test_pictures_of_many_threads_are_encoded_as_alone(executor, pictures):
    expected = np.asarray(executor("encode", {"x": pictures[:96]})["mean"])

    def call(i):
        return i, batcher.submit("encode", {"x": pictures[i : i + 1 + i % 12]}).result(TIMEOUT)["mean"]

    with Batcher(executor) as batcher, ThreadPoolExecutor(8) as pool:
        for i, mean in pool.map(call, range(80)):
            np.testing.assert_allclose(mean, expected[i : i + 1 + i % 12], **TOLERANCE)


@pytest.mark.parametrize(
    "x",
    [
        rows(5).tolist(),
        rows(5).astype(np.float64),
        rows(5).astype(np.float16),
        np.asfortranarray(rows(5)),
        np.repeat(rows(5), 2, axis=0)[::2],
        jnp.asarray(rows(5)),
        jnp.asarray(rows(5), jnp.bfloat16),
    ],
    ids=["list", "float64", "float16", "fortran", "strided", "jax", "bfloat16"],
)
def test_inputs_of_any_kind_that_the_executor_takes(held, gate, x):
    batcher = held()
    futures = [batcher.submit("double", {"x": value}) for value in (rows(2), x, rows(1))]
    gate.release()
    np.testing.assert_array_equal(futures[1].result(TIMEOUT)["y"], 2 * rows(5))
    assert gate.sizes == [1, 8]


def test_answers_are_the_callers_own_to_write_to(held, gate):
    batcher = held()
    futures = [batcher.submit("double", {"x": rows(2)}) for _ in range(3)]
    gate.release()
    for future in futures:
        y = future.result(TIMEOUT)["y"]
        np.testing.assert_array_equal(y, 2 * rows(2))
        y[:] = -1


def test_weights_swapped_between_batches_are_those_of_the_next(tiny_vae):
    executor = Executor(tiny_vae, batch_sizes=(2,))
    z = np.ones((2, 4), np.float32)
    with Batcher(executor) as batcher:
        before = batcher.submit("decode", {"z": z}).result(TIMEOUT)["x"]
        bias = tiny_vae.decoder.ups[-1].conv.bias
        bias[...] = bias[...] + 1.0
        after = batcher.submit("decode", {"z": z}).result(TIMEOUT)["x"]
    np.testing.assert_array_equal(after, executor("decode", {"z": z})["x"])
    assert np.abs(after - before).min() > 0


def test_a_batcher_of_a_model_shares_the_executor_of_other_calls(tiny_vae):
    with Batcher(tiny_vae) as batcher, Batcher(tiny_vae) as other:
        assert batcher.executor is other.executor
        with Batcher(batcher.executor) as third:
            assert third.executor is batcher.executor


@pytest.mark.parametrize("num_rows", [3, 30], ids=["one batch", "several batches"])
def test_only_the_outputs_that_are_wanted_come_back(executor, pictures, num_rows):
    expected = np.asarray(executor("encode", {"x": pictures[:num_rows]})["log_var"])
    with Batcher(executor) as batcher:
        outputs = batcher.submit("encode", {"x": pictures[:num_rows]}, outputs=["log_var"]).result(TIMEOUT)
    assert list(outputs) == ["log_var"]
    np.testing.assert_allclose(outputs["log_var"], expected, **TOLERANCE)
