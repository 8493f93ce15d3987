import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from shared import collector_off, decode, randomised

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError, InputTypeError, OutOfDeviceMemoryError
from artifex.generative_models.inference import Executor, normalize_images
from artifex.generative_models.inference.executor.jobs import merged as merged_jobs
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.models.vae import VAE


def double(model, keys, inputs):
    return {"y": 2 * inputs["x"]}


def scaled(model, keys, inputs, *, power=1):
    return {"y": model["w"] * inputs["x"] ** power}


ROW = TensorSpec((3,), jnp.float32)


def rows(n):
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def test_no_size_compiles_after_warmup(pictures, compilations):
    model = randomised(lambda: VAE((8, 8, 1), 4, [4], [4], rngs=nnx.Rngs(0)))
    executor = Executor(model, batch_sizes=(1, 2, 8))
    executor.warmup()
    count = executor.compile_count
    assert count == len(executor.endpoints) * len(executor.batch_sizes)
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    executor("generate", key=key, num_rows=1)
    compilations.clear()
    names = ("encode", "decode", "reconstruct", "generate")
    for size, name in rng.permutation(list(itertools.product(range(1, 40), names))):
        size = int(size)
        if name == "generate":
            outputs = executor(name, key=key, num_rows=size)
        elif name == "decode":
            outputs = executor(name, {"z": rng.standard_normal((size, 4)).astype(np.float32)})
        else:
            outputs = executor(name, {"x": pictures[:size, :8, :8]})
        assert all(len(value) == size for value in outputs.values())
    assert executor.compile_count == count
    assert compilations == []


def test_the_listener_sees_compilations(compilations):
    jax.jit(lambda x: x + 41)(jnp.zeros(3)).block_until_ready()
    assert compilations


def test_a_batch_size_is_compiled_once_however_many_threads_ask(tiny_vae):
    executor = Executor(tiny_vae, batch_sizes=(4,))
    barrier = threading.Barrier(8)

    def call(_):
        barrier.wait()
        return np.asarray(executor("generate", key=jax.random.key(0), num_rows=4)["x"])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    assert executor.compile_count == 1
    assert all((result == results[0]).all() for result in results)


def test_weights_are_arguments_not_constants(tiny_vae):
    executor = Executor(tiny_vae, batch_sizes=(1,))
    executor.warmup(["decode"])
    program = executor._catalog.find("decode", {})
    constants = program.executables[1].as_text().count("constant({")
    assert constants <= 2  # shape arithmetic; a weight would be one each


@pytest.mark.parametrize("size", [2, 5])
def test_weights_replaced_in_place_are_seen_by_the_next_call(tiny_vae, size):
    executor = Executor(tiny_vae, batch_sizes=(1, 2))
    z = np.ones((size, 4), np.float32)
    before = executor("decode", {"z": z})["x"]
    bias = tiny_vae.decoder.ups[-1].conv.bias
    bias[...] = bias[...] + 1.0
    after = executor("decode", {"z": z})["x"]
    count = executor.compile_count
    np.testing.assert_allclose(after, decode(tiny_vae, z), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(after) - np.asarray(before)).min() > 0
    assert executor.compile_count == count


def test_swap_puts_new_weights_under_the_same_executables(tiny_vae):
    executor = Executor(tiny_vae, batch_sizes=(2,))
    other = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(9))
    z = np.ones((2, 4), np.float32)
    executor("decode", {"z": z})
    executor.swap(other)
    np.testing.assert_allclose(executor("decode", {"z": z})["x"], decode(other, z), rtol=1e-5)
    assert executor.compile_count == 1
    with pytest.raises(InputError, match="structure"):
        executor.swap(VAE((8, 8, 1), 5, [4, 8], [8, 4], rngs=nnx.Rngs(9)))


def test_a_dict_of_parameters_and_a_plain_function():
    parameters = {"w": jnp.asarray(3.0)}
    executor = Executor(parameters, {"scaled": Endpoint(scaled, {"x": ROW}, {"power": 1})}, batch_sizes=(4,))
    np.testing.assert_array_equal(executor("scaled", {"x": rows(5)})["y"], 3 * rows(5))
    parameters["w"] = jnp.asarray(5.0)
    np.testing.assert_array_equal(executor("scaled", {"x": rows(5)})["y"], 5 * rows(5))
    plain = Executor(None, {"double": Endpoint(double, {"x": ROW})})
    np.testing.assert_array_equal(plain("double", {"x": rows(70)})["y"], 2 * rows(70))


class Noisy(nnx.Module):
    """A model that stores generators, which its endpoint does not read."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def endpoints(self):
        def project(model, keys, inputs):
            return {"y": model.linear(inputs["x"])}

        return {"project": Endpoint(project, {"x": ROW})}


@pytest.mark.parametrize("size", [2, 3])
def test_a_model_that_stores_generators_runs(size):
    model = Noisy(nnx.Rngs(0))
    outputs = Executor(model, batch_sizes=(2,))("project", {"x": rows(size)})["y"]
    np.testing.assert_allclose(outputs, model.linear(jnp.asarray(rows(size))), rtol=1e-5)


def test_options_key_the_executables():
    executor = Executor(
        {"w": jnp.asarray(1.0)}, {"scaled": Endpoint(scaled, {"x": ROW}, {"power": 1})}, batch_sizes=(2,)
    )
    np.testing.assert_array_equal(executor("scaled", {"x": rows(2)}, power=2)["y"], rows(2) ** 2)
    executor("scaled", {"x": rows(2)})
    executor("scaled", {"x": rows(2)}, power=1)  # the default, named
    assert executor.compile_count == 2


@pytest.fixture(scope="module")
def doubling():
    return Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(1, 2, 4))


@pytest.mark.parametrize("kind", ["numpy", "float64", "jax", "memmap", "list", "strided"])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_takes_any_array(doubling, kind, size, tmp_path):
    x = rows(size)
    if kind == "memmap":
        np.save(tmp_path / "x.npy", x)
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    else:
        given = {
            "numpy": lambda: x,
            "float64": lambda: x.astype(np.float64),
            "jax": lambda: jnp.asarray(x),
            "list": x.tolist,
            "strided": lambda: np.asfortranarray(x),
        }[kind]()
    outputs = doubling("double", {"x": given})["y"]
    assert isinstance(outputs, jax.Array)
    np.testing.assert_array_equal(outputs, 2 * x)


@pytest.mark.parametrize("temperature", [0.5, np.float32(0.5), 1, jnp.float32(0.5)])
def test_a_scalar_goes_to_every_row(executor, temperature):
    key = jax.random.key(0)
    one = executor("generate", {"temperature": temperature}, key=key, num_rows=3)["x"]
    each = np.full(3, float(temperature), np.float32)
    np.testing.assert_array_equal(one, executor("generate", {"temperature": each}, key=key)["x"])


@pytest.mark.eight_devices
def test_rows_of_a_mesh_live_on_all_its_devices(tiny_vae):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    executor = Executor(tiny_vae, mesh=mesh, batch_sizes=(1, 3, 8, 9))
    assert executor.batch_sizes == (8, 16)
    outputs = executor("decode", {"z": np.ones((8, 4), np.float32)})["x"]
    assert outputs.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), outputs.ndim)
    on_one = jax.device_put(np.ones((8, 4), np.float32), jax.devices()[1])
    np.testing.assert_array_equal(executor("decode", {"z": on_one})["x"], outputs)


def test_dtype_casts_the_computation_and_not_the_results(executor, mnist_vae, pictures):
    low = Executor(mnist_vae, batch_sizes=(8,), dtype=jnp.bfloat16)
    outputs = low("reconstruct", {"x": pictures[:8]})["x"]
    exact = executor("reconstruct", {"x": pictures[:8]})["x"]
    assert outputs.dtype == jnp.float32
    difference = np.abs(np.asarray(outputs) - np.asarray(exact))
    assert difference.max() > 0
    assert difference.mean() < 2**-7  # two bfloat16 roundings of values up to 1
    assert mnist_vae.encoder.head.kernel.dtype == jnp.float32


def test_spec_describes_rows(executor):
    inputs, outputs = executor.spec("encode")
    assert {name: spec.shape for name, spec in inputs.items()} == {"x": (28, 28, 1)}
    assert {name: spec.shape for name, spec in outputs.items()} == {"mean": (32,), "log_var": (32,)}


def test_warmup_tells_what_compiled(tiny_vae):
    executor = Executor(tiny_vae, batch_sizes=(1, 2))
    first = executor.warmup(["encode"], [2])
    assert first["encode"][2] > 0
    assert executor.compile_count == 1
    assert executor.warmup(["encode"], [2]) == {"encode": {2: 0.0}}
    with pytest.raises(InputError, match="not among"):
        executor.warmup(batch_sizes=[3])


BAD = {
    "unknown endpoint": (("paint", {}), {}, InputError, "no endpoint 'paint'; there are encode"),
    "unknown input": (("encode", {"y": rows(1)}), {}, InputError, "unknown input 'y'; it takes x"),
    "missing input": (("encode", {}), {}, InputError, "missing input 'x'"),
    "unknown option": (("encode", {}), {"steps": 3}, InputError, "unknown option 'steps'"),
    "one row without batch axis": (
        ("encode", {"x": np.zeros((28, 28, 1), np.float32)}),
        {},
        InputError,
        r"x\[None\]",
    ),
    "wrong shape": (("encode", {"x": np.zeros((2, 28, 27, 1), np.float32)}), {}, InputError, "got shape"),
    "uint8": (("encode", {"x": np.zeros((2, 28, 28, 1), np.uint8)}), {}, InputTypeError, "InferencePipeline"),
    "complex": (("decode", {"z": np.zeros((2, 32), complex)}), {}, InputTypeError, "complex128"),
    "no rows": (("encode", {"x": np.zeros((0, 28, 28, 1), np.float32)}), {}, InputError, "at least one row"),
    "negative rows": (("generate",), {"num_rows": -1, "key": 0}, InputError, "at least one row"),
    "too many rows": (("generate",), {"num_rows": 2**32, "key": 0}, InputError, "at most 4294967295"),
    "rows unknown": (("generate",), {"key": 0}, InputError, "num_rows="),
    "no key": (("generate",), {"num_rows": 2}, InputError, "pass either key= or keys="),
    "key and keys": (("generate",), {"num_rows": 2, "key": 0, "keys": 2}, InputError, "either"),
    "few keys": (("generate",), {"num_rows": 3, "keys": 2}, InputError, "2 keys for 3 rows"),
    "temperature": (("generate", {"temperature": np.nan}), {"num_rows": 2, "key": 0}, InputError, "finite"),
    "text": (("generate", {"temperature": "hot"}), {"num_rows": 2, "key": 0}, InputTypeError, "temperature"),
}


@pytest.mark.parametrize(("arguments", "keywords", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(executor, arguments, keywords, error, message):
    keywords = dict(keywords)
    if "key" in keywords:
        keywords["key"] = jax.random.key(keywords["key"])
    if "keys" in keywords:
        keywords["keys"] = jax.random.split(jax.random.key(0), keywords["keys"])
    with pytest.raises(error, match=message):
        executor(*arguments, **keywords)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 20])
def test_a_value_that_is_not_finite_is_found_by_row(executor, value, row):
    z = np.zeros((21, 32), np.float32)
    z[row, 5] = value
    with pytest.raises(InputError, match=f"z: row {row} has a NaN"):
        executor("decode", {"z": z})
    with pytest.raises(InputError, match=f"z: row {row} has a NaN"):
        list(executor.map("decode", [{"z": z[:2]}, {"z": z[2:]}]))
    np.testing.assert_array_equal(
        executor("decode", {"z": np.zeros((1, 32), np.float32)})["x"].shape, (1, 28, 28, 1)
    )


@pytest.mark.parametrize(
    "key",
    [
        jnp.zeros(2, jnp.uint32),
        np.zeros(2, np.uint32),
        np.zeros(2, np.int32),
        jax.random.key(0, impl="rbg"),
    ],
)
def test_keys_of_another_kind_are_refused(executor, key):
    with pytest.raises(InputError, match="keys"):
        executor("generate", key=key, num_rows=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": ()}, "positive"),
        ({"batch_sizes": (0, 4)}, "positive"),
        ({"mesh": Mesh(np.asarray(jax.devices()), ("model",))}, "'data'"),
    ],
)
def test_bad_settings_are_named(tiny_vae, settings, message):
    with pytest.raises(InputError, match=message):
        Executor(tiny_vae, **settings)


def test_a_model_without_endpoints_is_refused():
    with pytest.raises(InputTypeError, match="pass endpoints="):
        Executor({"w": jnp.zeros(3)})


@pytest.mark.parametrize(
    "give",
    [lambda x: x.sum(), lambda x: x[:1], lambda x: jnp.zeros((2, 3)), lambda x: jnp.concatenate([x, x])],
)
def test_an_endpoint_without_a_batch_axis_is_refused(give):
    broken = Endpoint(lambda model, keys, inputs: {"y": give(inputs["x"])}, {"x": ROW})
    with pytest.raises(InputError, match=r"no leading batch axis: expected \d rows, got y \("):
        Executor(None, {"broken": broken}, batch_sizes=(4,))("broken", {"x": rows(4)})


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda x, keys: (x,), "tuple"),
        (lambda x, keys: [x], "list"),
        (lambda x, keys: None, "NoneType"),
        (lambda x, keys: x, "array of float32"),
        (lambda x, keys: {}, "none"),
        (lambda x, keys: {"y": 1.0}, "'y': float"),
        (lambda x, keys: {"y": x, "z": "words"}, "'z': str"),
        (lambda x, keys: {"y": {"z": x}}, "'y': dict"),
        (lambda x, keys: {1: x}, "1: array of float32"),
        (lambda x, keys: {"y": keys}, "'y': array of key<fry>"),
    ],
)
def test_an_endpoint_that_returns_no_arrays_by_name_is_refused(give, words):
    broken = Endpoint(lambda model, keys, inputs: give(inputs["x"], keys), {"x": ROW})
    with pytest.raises(
        InputTypeError, match=rf"broken: expected .* a dict of arrays by name, got {words}($|\n)"
    ):
        Executor(None, {"broken": broken})("broken", {"x": rows(2)})


def test_scalars_of_rows_keep_their_dtype():
    inputs = {"x": TensorSpec((2, 2, 1), jnp.float32), "t": TensorSpec((), jnp.float32)}
    echo = Endpoint(lambda model, keys, inputs: inputs, inputs)
    executor = Executor(None, {"echo": echo}, batch_sizes=(2,), dtype=jnp.bfloat16)
    outputs = executor("echo", {"x": np.full((2, 2, 2, 1), 999, np.float32), "t": np.float32([999, 1001])})
    assert outputs["t"].tolist() == [999, 1001]
    assert np.unique(outputs["x"]).tolist() == [1000]


def test_a_function_that_closes_over_weights_says_how_many(caplog):
    table = jnp.ones((3, 10_000))
    lookup = Endpoint(lambda model, keys, inputs: {"y": inputs["x"] @ table}, {"x": ROW})
    executor = Executor(None, {"lookup": lookup, "double": Endpoint(double, {"x": ROW})}, batch_sizes=(1,))
    executor("double", {"x": rows(1)})
    assert caplog.messages == []
    executor("lookup", {"x": rows(1)})
    (message,) = caplog.messages
    assert message.startswith("lookup: 0.1 MB of arrays are no part of the model")
    assert executor.captured_bytes("lookup") == table.nbytes


def test_a_function_may_close_over_a_key():
    key = jax.random.key(3)

    def shift(model, keys, inputs):
        return {"y": inputs["x"] + jax.random.normal(key, (1, 3), jnp.float32)}

    executor = Executor(None, {"shift": Endpoint(shift, {"x": ROW})}, batch_sizes=(1, 2))
    wanted = rows(2) + np.asarray(jax.random.normal(key, (1, 3), jnp.float32))
    np.testing.assert_allclose(executor("shift", {"x": rows(2)})["y"], wanted, rtol=1e-6)
    assert executor.captured_bytes("shift") == key.nbytes


def exhausted(*arguments):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")


def broken(*arguments):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize("size", [8, 21])
@pytest.mark.parametrize("on_threads", [True, False])
def test_out_of_memory_halves_the_batch_and_goes_on(size, on_threads):
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(1, 2, 4, 8))
    executor._runner.threaded = on_threads
    executor.warmup()
    program = executor._catalog.find("double", {})
    program.executables[8] = program.executables[4] = exhausted
    np.testing.assert_array_equal(executor("double", {"x": rows(size)})["y"], 2 * rows(size))
    assert program.max_batch_size == 2
    parts = list(executor.map("double", [{"x": rows(9)}, {"x": rows(3)}]))
    np.testing.assert_array_equal(parts[0]["y"], 2 * rows(9))
    np.testing.assert_array_equal(parts[1]["y"], 2 * rows(3))


def test_out_of_memory_at_one_row_is_an_error():
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(1, 2))
    program = executor._catalog.find("double", {})
    program.executables.update({1: exhausted, 2: exhausted})
    with pytest.raises(OutOfDeviceMemoryError, match="double: out of device memory at 1 rows"):
        executor("double", {"x": rows(5)})


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("on_threads", [True, False])
def test_any_other_failure_is_raised_as_it_is(size, on_threads):
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(1, 2))
    executor._runner.threaded = on_threads
    program = executor._catalog.find("double", {})
    program.executables.update({1: broken, 2: broken})
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        executor("double", {"x": rows(size)})
    assert program.max_batch_size == 2


REAL_OUT_OF_MEMORY = """
import resource, jax, jax.numpy as jnp, numpy as np
from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.inference import Executor

def hungry(model, keys, inputs):  # a sort keeps XLA from never making the array
    big = jnp.broadcast_to(inputs["x"][:, None], (len(inputs["x"]), 1 << 20))  # 4 MiB a row
    return {"y": jnp.sort(big * jnp.arange(1.0, 1.0 + (1 << 20))[None], axis=1)[:, 0]}

endpoint = Endpoint(hungry, {"x": TensorSpec((), jnp.float32)})
executor = Executor(None, {"hungry": endpoint}, batch_sizes=(1, 256))
executor.warmup()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (3 << 27), size + (3 << 27)))
print(np.asarray(executor("hungry", {"x": np.ones(3, np.float32)})["y"]).tolist())
print(executor._catalog.find("hungry", {}).max_batch_size)
"""


@pytest.mark.slow
def test_a_device_that_is_really_out_of_memory():
    run = forked.run(["-c", REAL_OUT_OF_MEMORY])
    assert run.stdout.split("\n")[:2] == ["[1.0, 1.0, 1.0]", "1"], run.stderr[-2000:]


def noisy(model, keys, inputs):
    return {"y": jax.vmap(lambda key, x: jax.random.normal(key, (3,)) + x)(keys, inputs["x"])}


NOISY = {"noisy": Endpoint(noisy, {"x": ROW})}


def test_merged_rows_of_several_calls_are_what_each_gives_alone():
    executor = Executor(None, NOISY, batch_sizes=(1, 2, 4, 8))
    key = jax.random.key(5)
    keys = jax.random.split(jax.random.key(6), 2)
    jobs = [
        executor.check("noisy", {"x": rows(3)}, key=key),
        executor.check("noisy", {"x": rows(2)}, keys=keys),
        executor.check("noisy", {"x": rows(2)}, seed=7, first_row=10),
    ]
    expected = [
        executor("noisy", {"x": rows(3)}, key=key)["y"][1:],
        executor("noisy", {"x": rows(2)}, keys=keys)["y"],
        executor("noisy", {"x": np.resize(rows(2), (12, 3))}, key=nnx.Rngs(7).sample())["y"][10:],
    ]
    expected[2] += rows(2) - np.resize(rows(2), (12, 3))[10:]
    parts = [(jobs[0], 1, 3), (jobs[1], 0, 2), (jobs[2], 0, 2)]
    merged = merged_jobs(parts)
    assert merged.num_rows == 6
    outputs = executor.run(merged)["y"][:6]
    # another batch size may round the normal distribution's inverse otherwise
    np.testing.assert_allclose(outputs, np.concatenate(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.int32, np.bool_, np.uint8])
def test_rows_of_any_dtype_can_be_merged(dtype):
    endpoint = Endpoint(lambda model, keys, inputs: {"y": inputs["x"]}, {"x": TensorSpec((3,), dtype)})
    executor = Executor(None, {"same": endpoint}, batch_sizes=(4,))
    arrays = [(rows(2) % 2).astype(dtype), (rows(6)[::2] % 2)[:1].astype(dtype)]
    jobs = [executor.check("same", {"x": array}) for array in arrays]
    merged = merged_jobs([(job, 0, job.num_rows) for job in jobs])
    np.testing.assert_array_equal(executor.run(merged)["y"][:3], np.concatenate(arrays))


def test_a_merged_batch_that_does_not_fit_the_device_runs_in_halves():
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(1, 2, 4, 8))
    executor.warmup()
    program = executor._catalog.find("double", {})
    program.executables[8] = exhausted
    jobs = [executor.check("double", {"x": rows(n)}) for n in (1, 4)]
    for _ in range(2):
        outputs = executor.run(merged_jobs([(job, 0, job.num_rows) for job in jobs]))
        np.testing.assert_array_equal(outputs["y"][:5], 2 * np.concatenate([rows(1), rows(4)]))
    assert program.max_batch_size == 4


def test_a_call_that_is_only_checked_says_what_is_wrong_at_once():
    executor = Executor(None, NOISY)
    bad = rows(2)
    bad[1, 0] = np.nan
    with pytest.raises(InputError, match="row 1 has a NaN"):
        executor.check("noisy", {"x": bad}, seed=0)
    with pytest.raises(InputTypeError, match="seed: expected an integer"):
        executor.check("noisy", {"x": rows(2)}, seed="0")
    with pytest.raises(InputError, match="seed= too"):
        executor.check("noisy", {"x": rows(2)}, seed=0, key=jax.random.key(0))
    later = executor.check("noisy", {"x": bad}, seed=0, values=False)
    with pytest.raises(InputError, match="row 1 has a NaN"):
        executor.run(merged_jobs([(later, 0, 2)]))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32 + 5, -3])
def test_a_seed_is_the_first_sample_key_of_its_generators(seed):
    executor = Executor(None, NOISY)
    by_seed = executor.check("noisy", {"x": rows(1)}, seed=seed)
    by_key = executor.check("noisy", {"x": rows(1)}, key=nnx.Rngs(seed).sample())
    np.testing.assert_array_equal(by_seed.keys.words, by_key.keys.words)


def test_a_stream_reads_no_further_ahead_than_it_must():
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(2,))
    read = []

    def chunks():
        for i in range(1000):
            read.append(i)
            yield {"x": rows(2)}

    stream = executor.map("double", chunks())
    next(stream)
    assert len(read) < 40
    stream.close()
    assert len(read) < 40


def test_an_error_in_the_source_reaches_the_caller():
    executor = Executor(None, {"double": Endpoint(double, {"x": ROW})}, batch_sizes=(2,))

    def chunks():
        yield {"x": rows(2)}
        yield {"x": rows(2)}
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        list(executor.map("double", chunks()))


@pytest.mark.parametrize("on_threads", [False, True])
def test_chunks_before_an_error_in_the_source_come_first(plain, monkeypatch, on_threads):
    def chunks():
        yield from (np.full((2, 3), number, np.float32) for number in range(6))
        raise RuntimeError("the cable was pulled")

    monkeypatch.setattr(plain._runner, "threaded", on_threads)
    found = []
    outputs = (given["y"][:, 0] for given in plain.map("double", ({"x": chunk} for chunk in chunks())))
    with pytest.raises(RuntimeError, match="the cable"):
        found.extend(outputs)
    assert np.concatenate(found).tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


def test_calls_from_many_threads_give_each_its_own(executor, pictures):
    expected = np.asarray(executor("encode", {"x": pictures[:60]})["mean"])

    def call(i):
        size = 1 + i % 20
        return i, np.asarray(executor("encode", {"x": pictures[i : i + size]})["mean"])

    with ThreadPoolExecutor(4) as pool:
        for i, mean in pool.map(call, range(40)):
            np.testing.assert_allclose(mean, expected[i : i + len(mean)], rtol=1e-4, atol=1e-5)


def test_calls_on_one_model_share_an_executor_that_dies_with_it():
    model = VAE((4, 4, 1), 2, [2], [2], rngs=nnx.Rngs(0))
    executor = executor_for(model, batch_size=48)
    assert executor.batch_sizes == (1, 2, 4, 8, 16, 32, 48)
    assert executor_for(model, batch_size=48) is executor
    assert executor_for(executor) is executor
    assert executor_for(model, batch_size=16) is not executor
    with pytest.raises(InputError, match="batch_size"):
        executor_for(model, batch_size=0)
    gone = weakref.ref(model), weakref.ref(executor)
    del model, executor
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_an_executor_is_freed_with_its_last_name():
    first, second = times(2), times(5)
    second.reuse_executables(first)
    for executor in (first, second):
        executor.warmup()
        executor("times", {"x": rows(3)})
        list(executor.map("times", [{"x": rows(9)}, {"x": rows(5)}]))
        executor.run(executor.check("times", {"x": rows(2)}))
        executor.swap({"w": np.full((1, 1), 7, np.float32)})
    gone = [weakref.ref(value) for value in (first, first._catalog.weights, second, second._catalog.weights)]
    with collector_off():
        del first, executor
        assert [ref() is None for ref in gone] == [True, True, False, False]
        del second
        assert [ref() for ref in gone] == [None] * 4


@pytest.mark.parametrize("kind", [list, tuple])
def test_one_seed_a_row_is_sample_0_of_each(kind):
    executor = Executor(None, NOISY, batch_sizes=(1, 2, 4))
    seeds = [7, 0, 2**32 - 1, 7, -3, 2**32 + 5]
    zeros = np.zeros((len(seeds), 3), np.float32)
    job = executor.check("noisy", {"x": zeros}, seed=kind(seeds))
    parts = [executor.run(merged_jobs([(job, start, stop)]))["y"] for start, stop in ((0, 1), (1, 5), (5, 6))]
    found = np.concatenate([part[:n] for part, n in zip(parts, (1, 4, 1), strict=True)])
    alone = [executor("noisy", {"x": zeros[:1]}, key=nnx.Rngs(s & 0xFFFFFFFF).sample())["y"] for s in seeds]
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-6, atol=1e-6)  # as above
    assert len(np.unique(found[:, 0])) == 5


def test_seeds_a_row_go_with_other_kinds_of_keys_in_one_batch():
    executor = Executor(None, NOISY, batch_sizes=(4,))
    by_rows = executor.check("noisy", {"x": rows(2)}, seed=[3, 4])
    by_one = executor.check("noisy", {"x": rows(1)}, seed=3, first_row=6)
    by_keys = executor.check("noisy", {"x": rows(1)}, keys=jax.random.split(jax.random.key(1), 1))
    jobs = [by_one, by_rows, by_keys]
    merged = executor.run(merged_jobs([(job, 0, job.num_rows) for job in jobs]))["y"]
    alone = [executor.run(merged_jobs([(job, 0, job.num_rows)]))["y"][: job.num_rows] for job in jobs]
    np.testing.assert_array_equal(merged, np.concatenate(alone))


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_there_are_as_many_seeds_as_rows(seeds):
    with pytest.raises(InputError, match=f"noisy: got {len(seeds)} seeds for 2 rows"):
        Executor(None, NOISY).check("noisy", {"x": rows(2)}, seed=seeds)


@pytest.mark.parametrize("seeds", [["1", "2"], [1.0, 2.0], [None, 1], [True, [1]]])
def test_seeds_a_row_are_integers(seeds):
    with pytest.raises(InputTypeError, match="seed: expected"):
        Executor(None, NOISY).check("noisy", {"x": rows(2)}, seed=seeds)


def test_an_endpoint_tells_whether_it_draws(executor):
    draws = {name: executor.draws(name) for name in executor.endpoints}
    assert draws == {"encode": False, "decode": False, "reconstruct": False, "generate": True, "elbo": True}
    count = executor.compile_count
    with pytest.raises(InputError, match="no endpoint 'train'"):
        executor.draws("train")
    assert executor.compile_count == count


def fixed_or_drawn(model, keys, inputs, *, draw=False):
    return noisy(model, keys, inputs) if draw else double(model, keys, inputs)


def test_whether_it_draws_may_depend_on_an_option():
    executor = Executor(None, {"y": Endpoint(fixed_or_drawn, {"x": ROW}, {"draw": False})})
    assert [executor.draws("y"), executor.draws("y", draw=True)] == [False, True]


TIMES = {"times": Endpoint(lambda model, keys, inputs: {"y": model["w"] * inputs["x"]}, {"x": ROW})}


def times(w=2.0, dtype=np.float32, shape=(1, 1), **settings):
    return Executor({"w": np.full(shape, w, dtype)}, TIMES, **{"batch_sizes": (1, 4), **settings})


def test_another_executor_takes_over_what_was_compiled_and_each_has_its_weights(compilations):
    first, second = times(2), times(5)
    first.warmup()
    queued = first.check("times", {"x": rows(3)})
    compilations.clear()
    assert second.reuse_executables(first)
    second.warmup()
    assert second.compile_count == 0
    for size in (1, 4):
        x = rows(size)
        np.testing.assert_array_equal(second.run(second.check("times", {"x": x}))["y"], 5 * x)
    np.testing.assert_array_equal(first.run(merged_jobs([(queued, 0, 3)]))["y"][:3], 2 * rows(3))
    assert compilations == []


def test_what_either_compiles_later_is_there_for_both():
    first, second = times(2), times(5)
    assert second.reuse_executables(first)
    np.testing.assert_array_equal(second("times", {"x": rows(4)})["y"], 5 * rows(4))
    np.testing.assert_array_equal(first("times", {"x": rows(4)})["y"], 2 * rows(4))
    assert (first.compile_count, second.compile_count) == (0, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (1, 3)},
        {"dtype": np.int32},
        {"batch_sizes": (1, 2, 4)},
        {"batch_sizes": (4,)},
        {"dtype": np.float16},
        {"mesh": True},
    ],
    ids=str,
)
def test_executables_that_do_not_fit_are_not_taken_over(other):
    first = times()
    first.warmup()
    if other.pop("mesh", False):
        other["mesh"] = Mesh(jax.devices()[:1], ("data",))
    second = times(5, **other)
    assert not second.reuse_executables(first)
    assert second._catalog._programs == {}


def test_executables_of_another_dtype_of_the_computation_are_not_taken_over():
    first = Executor({"w": np.full((1, 1), 2, np.float32)}, TIMES, batch_sizes=(4,))
    half = Executor({"w": np.full((1, 1), 5, np.float32)}, TIMES, batch_sizes=(4,), dtype=jnp.bfloat16)
    same = Executor({"w": np.full((1, 1), 3, np.float32)}, TIMES, batch_sizes=(4,), dtype=jnp.bfloat16)
    first.warmup()
    half.warmup()
    assert not half.reuse_executables(first)
    assert same.reuse_executables(half)
    np.testing.assert_array_equal(same("times", {"x": rows(4)})["y"], 3 * rows(4))
    assert same.compile_count == 0


def test_models_of_one_structure_share_executables(tiny_vae):
    first = Executor(tiny_vae, batch_sizes=(2,))
    first.warmup(["decode"])
    other = VAE((8, 8, 1), 4, [4, 8], [8, 4], rngs=nnx.Rngs(1))
    second = Executor(other, batch_sizes=(2,))
    assert second.reuse_executables(first)
    z = rows(2)[:, :1] * np.ones(4, np.float32)
    np.testing.assert_array_equal(
        second("decode", {"z": z})["x"], Executor(other, batch_sizes=(2,))("decode", {"z": z})["x"]
    )
    assert second.compile_count == 0
    larger = Executor(VAE((8, 8, 1), 5, [4, 8], [8, 4], rngs=nnx.Rngs(1)), batch_sizes=(2,))
    assert not larger.reuse_executables(first)


def picture_sums(model, keys, inputs):
    return {"sum": inputs["x"].sum((1, 2, 3)), "x": inputs["x"]}


@pytest.mark.parametrize("image_range", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_uint8_pictures_are_scaled_on_the_device(image_range, dtype):
    spec = TensorSpec((2, 3, 1), jnp.float32, image_range=image_range)
    executor = Executor(None, {"run": Endpoint(picture_sums, {"x": spec})}, batch_sizes=(1, 4), dtype=dtype)
    pixels = np.arange(7 * 6, dtype=np.uint8).reshape(7, 2, 3, 1) * 6
    scaled = normalize_images(pixels, image_range)
    given = {"of uint8": {"x": pixels}, "of uint8 on the device": {"x": jnp.asarray(pixels)}}
    for inputs in given.values():
        found = executor("run", inputs)["x"]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, scaled, atol=1e-6 if dtype is None else 2**-8)
    count = executor.compile_count
    np.testing.assert_array_equal(executor("run", {"x": scaled})["x"], executor("run", {"x": scaled})["x"])
    assert executor.compile_count == count + 1  # floating-point pictures have executables of their own
    chunks = [{"x": pixels[:4]}, {"x": scaled[4:6]}, {"x": pixels[6:]}]
    rows = [outputs["x"] for outputs in executor.map("run", chunks)]
    np.testing.assert_allclose(np.concatenate(rows), scaled, atol=1e-6 if dtype is None else 2**-8)
    assert executor.compile_count == count + 2
    (argument,) = executor._catalog.find("run", {}, {"x": pixels}).executables[4].in_avals[0]
    assert argument.dtype == np.uint8  # a quarter of the bytes to copy


def test_warmup_compiles_for_the_pictures_that_will_come():
    spec = TensorSpec((2, 3, 1), jnp.float32, image_range=(0.0, 1.0))
    executor = Executor(None, {"run": Endpoint(picture_sums, {"x": spec})}, batch_sizes=(1, 4))
    assert executor.warmup(["run"], [4], image_dtype=np.uint8)["run"].keys() == {4}
    assert executor.compile_count == 1
    executor("run", {"x": np.zeros((4, 2, 3, 1), np.uint8)})
    assert executor.compile_count == 1
    executor.warmup()
    assert executor.compile_count == 4


def test_without_a_range_uint8_pictures_are_refused():
    spec = TensorSpec((2, 3, 1), jnp.float32)
    executor = Executor(None, {"run": Endpoint(picture_sums, {"x": spec})}, batch_sizes=(1,))
    with pytest.raises(InputTypeError, match="scale pictures first"):
        executor("run", {"x": np.zeros((1, 2, 3, 1), np.uint8)})


def test_functions_that_are_no_endpoints_are_refused():
    with pytest.raises(InputTypeError, match="endpoints: double: expected Endpoint"):
        Executor(None, {"double": double})
