"""The laws that every endpoint of every model obeys; a new endpoint costs a line in `CASES`."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import TOLERANCE, optimized_less, randomised

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.inference import Batcher, Executor
from artifex.generative_models.models.vae import VAE

BATCH_SIZES = (1, 8)
ROWS = 29

ENDPOINTS = ("encode", "decode", "reconstruct", "generate", "elbo")
DRAWING = ("generate", "elbo")
# Of the trained model the two that run each of its halves.
CASES = [
    *(("mnist-vae", endpoint) for endpoint in ("encode", "generate")),
    *(("odd-vae", endpoint) for endpoint in ENDPOINTS),
]


@pytest.fixture(scope="module")
def executors(mnist_vae):
    odd = randomised(lambda: VAE((7, 9, 3), 5, [4, 8], [8, 4, 4], rngs=nnx.Rngs(1)))
    return {
        "mnist-vae": Executor(mnist_vae, batch_sizes=BATCH_SIZES),
        "odd-vae": Executor(odd, batch_sizes=BATCH_SIZES),
    }


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(7), ROWS)


@pytest.fixture
def case(request, executors, pictures):
    """(executor, endpoint, inputs of ROWS rows)."""
    model, endpoint = request.param
    executor = executors[model]
    rng = np.random.default_rng(0)
    sources = {
        "x": pictures[:ROWS] if model == "mnist-vae" else rng.random((ROWS, 7, 9, 3), np.float32),
        "z": rng.standard_normal((ROWS, executor.spec("encode")[1]["mean"].shape[0])).astype(np.float32),
        "temperature": np.linspace(0.1, 1.5, ROWS, dtype=np.float32),
    }
    return executor, endpoint, {name: sources[name] for name in executor.spec(endpoint)[0]}


def run(executor, endpoint, inputs, keys, rows=slice(None)):
    """The rows `rows` of a job, as NumPy arrays."""
    part = {name: value[rows] for name, value in inputs.items()}
    given_keys = keys[rows] if endpoint in DRAWING else None
    outputs = executor(endpoint, part, keys=given_keys)
    return {name: np.asarray(value) for name, value in outputs.items()}


def assert_close(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        np.testing.assert_allclose(value, expected[name], **TOLERANCE)


def assert_equal(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        np.testing.assert_array_equal(value, expected[name])


every_endpoint = pytest.mark.parametrize("case", CASES, indirect=True, ids=lambda c: "-".join(c))


@pytest.mark.optimized
@every_endpoint
def test_equals_the_model_itself(case, keys):
    executor, endpoint, inputs = case
    outputs = run(executor, endpoint, inputs, keys)
    arrays = {name: jax.numpy.asarray(value) for name, value in inputs.items()}
    with optimized_less():  # as near to one operation after another as takes no minute to compile
        expected = jax.jit(executor.endpoints[endpoint].fn)(executor_model(executor), keys, arrays)
    assert_close(outputs, {name: np.asarray(value) for name, value in expected.items()})


def executor_model(executor):
    return executor._catalog.weights.rebuild(executor.weights)


@pytest.mark.optimized
@every_endpoint
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, ROWS - 1))
def test_splitting_changes_nothing(case, keys, cut):
    executor, endpoint, inputs = case
    whole = run(executor, endpoint, inputs, keys)
    head, tail = (run(executor, endpoint, inputs, keys, rows) for rows in (slice(cut), slice(cut, None)))
    assert_close({name: np.concatenate([head[name], tail[name]]) for name in whole}, whole)


@pytest.mark.optimized
@every_endpoint
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(ROWS)))
def test_permuting_rows_permutes_outputs(case, keys, order):
    executor, endpoint, inputs = case
    whole = run(executor, endpoint, inputs, keys)
    order = np.asarray(order)
    assert_close(run(executor, endpoint, inputs, keys, order), {n: v[order] for n, v in whole.items()})


@pytest.mark.optimized
@every_endpoint
def test_padding_and_neighbours_change_no_bit_within_a_batch_size(case, keys):
    (executor, endpoint, inputs), size = case, BATCH_SIZES[-1]
    full = run(executor, endpoint, inputs, keys, slice(0, size))
    padded = run(executor, endpoint, inputs, keys, slice(0, size - 3))
    assert_equal(padded, {name: value[:-3] for name, value in full.items()})
    others = run(executor, endpoint, inputs, keys, np.array([0, *range(ROWS - size + 1, ROWS)]))
    assert_equal({n: v[:1] for n, v in others.items()}, {n: v[:1] for n, v in full.items()})


@pytest.mark.optimized
@every_endpoint
def test_map_equals_one_call(case, keys):
    executor, endpoint, inputs = case
    key = jax.random.key(3) if endpoint in DRAWING else None
    whole = executor(endpoint, inputs, key=key)
    chunks = [{n: v[a:b] for n, v in inputs.items()} for a, b in ((0, 3), (3, 4), (4, ROWS))]
    parts = list(executor.map(endpoint, chunks, key=key))
    assert [len(next(iter(part.values()))) for part in parts] == [3, 1, ROWS - 4]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert_close(joined, {name: np.asarray(value) for name, value in whole.items()})


# Devices to each copy of the weights, of eight; how they are cut; batch sizes, and what becomes of them.
LAYOUTS = {
    "8 copies": (1, None, (1, 8), (8,)),
    "4 copies, cut along named axes": (2, {"features": "model"}, (15,), (16,)),
    "1 copy, cut along any axis": (8, "model", (11,), (11,)),
}
SPREAD_CASES = [
    (case, layout) for case in CASES for layout in LAYOUTS if layout == "8 copies" or case[0] == "odd-vae"
]


@pytest.fixture(scope="module")
def spread():
    """Makes each executor's like on a mesh of eight devices, once for each layout."""

    @functools.cache
    def make(executor, layout):
        model_devices, shard, batch_sizes, rounded_up = LAYOUTS[layout]
        mesh = DeviceManager().mesh(model_devices=model_devices)
        model = executor_model(executor)
        on_mesh = Executor(model, mesh=mesh, shard=shard, batch_sizes=batch_sizes)
        assert on_mesh.batch_sizes == rounded_up
        return on_mesh

    return make


@pytest.mark.eight_devices
@pytest.mark.parametrize(("case", "layout"), SPREAD_CASES, indirect=["case"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_rows=st.integers(1, ROWS))
def test_a_mesh_gives_what_one_device_gives(case, layout, spread, keys, num_rows):
    executor, endpoint, inputs = case
    whole = run(executor, endpoint, inputs, keys)
    found = run(spread(executor, layout), endpoint, inputs, keys, slice(num_rows))
    assert_close(found, {name: value[:num_rows] for name, value in whole.items()})


@pytest.mark.optimized
@every_endpoint
@pytest.mark.parametrize("on_a_mesh", [False, True], ids=["one device", "mesh"])
def test_strangers_in_a_busy_batcher_change_nothing(case, keys, on_a_mesh):
    executor, endpoint, inputs = case
    whole = run(executor, endpoint, inputs, keys)
    cuts = [*range(0, 20, 3), 20, 21, ROWS]
    if on_a_mesh:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        executor = Executor(executor_model(executor), executor.endpoints, mesh=mesh, batch_sizes=(8,))
    with Batcher(executor) as batcher:
        futures = [
            batcher.submit(
                endpoint,
                {name: value[start:stop] for name, value in inputs.items()},
                keys=keys[start:stop] if endpoint in DRAWING else None,
            )
            for _ in range(3)
            for start, stop in itertools.pairwise(cuts)
        ]
        parts = [future.result() for future in futures]
    for name, value in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, np.concatenate([value] * 3), **TOLERANCE)


def test_sample_i_has_key_fold_in_i(executors):
    executor = executors["odd-vae"]
    key = jax.random.key(11)
    folded = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(ROWS))
    by_key = executor("generate", key=key, num_rows=ROWS)["x"]
    by_keys = executor("generate", keys=folded)["x"]
    np.testing.assert_array_equal(by_key, by_keys)


@pytest.mark.parametrize("start", [1, 5, 28])
def test_a_stream_goes_on_where_it_stopped(executors, start):
    executor = executors["odd-vae"]
    key = jax.random.key(11)
    whole = executor("generate", key=key, num_rows=ROWS)["x"]
    (rest,) = executor.map("generate", [ROWS - start], key=key, first_row=start)
    np.testing.assert_allclose(rest["x"], whole[start:], **TOLERANCE)


def test_samples_differ_from_row_to_row_and_key_to_key(executors):
    executor = executors["odd-vae"]
    first, second = (np.asarray(executor("generate", key=jax.random.key(s), num_rows=4)["x"]) for s in (0, 1))
    rows = np.concatenate([first, second]).reshape(8, -1)
    assert len(np.unique(rows, axis=0)) == 8
