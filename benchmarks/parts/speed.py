"""How fast it is: latency of one row, rows a second, executions in flight, and shares of the ceilings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from baselines import HOMES, bare_executable, copied_behind, fastest, jit_loops, microseconds
from batch_sizes import decode_flops, encode_flops
from common import in_turns, matmul_flops, ratio, seconds
from flax import nnx
from parts.bench import DTYPES, Bench, Finding, Sizes, Step, computed_in

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.inference import Executor, batch_encode_images, batch_generate_samples
from artifex.generative_models.inference.executor.settings import Tuned
from artifex.generative_models.inference.measure.roofline import Ceilings, machine_ceilings, roofline
from artifex.generative_models.models.vae import VAE

ENDPOINTS = ("encode", "generate")
IN_FLIGHT = (1, 2, 3, 4)
EXECUTIONS = 10  # dispatched one after another where the device's own time is measured

Call = Callable[[], object]


def latency(bench: Bench) -> Iterator[Step]:
    """One row through the executor and through the bare executable, from the device and from the host."""
    model = bench.models[bench.smaller]
    executor = Executor(model, tuned=False)
    rows = {
        "x": bench.pictures(bench.smaller, 1),
        "z": np.ones((1, model.latent_dim), np.float32),
        "temperature": np.ones(1, np.float32),
    }
    for name in ("encode", "decode", "generate"):
        keys = jax.random.split(jax.random.key(0), 1) if executor.draws(name) else None
        inputs = {input_name: rows[input_name] for input_name in executor.spec(name)[0]}
        bare = bare_executable(model, model.endpoints()[name].fn, keys, jax.device_put(inputs))
        ours = partial(executor, name)
        for way, given, bring in (
            ("device to device", jax.device_put(inputs), jax.block_until_ready),
            ("host to host", inputs, jax.device_get),
        ):
            calls = {
                "bare executable": partial(bare, keys, given),
                "Executor": partial(ours, given, keys=keys),
            }
            yield Step(f"{name}, {way}", partial(latencies, bench.sizes, calls, bring))


def latencies(sizes: Sizes, calls: Mapping[str, Call], bring: Callable[[object], object]) -> Finding:
    """Medians in turns; the first round is left out."""
    rounds = [
        {
            label: microseconds(lambda call=call: bring(call()), sizes.num_calls)
            for label, call in calls.items()
        }
        for _ in range(sizes.num_rounds + 1)
    ][1:]
    median = {label: statistics.median(times[label] for times in rounds) for label in calls}
    over = statistics.median(times["Executor"] / times["bare executable"] for times in rounds)
    return Finding(
        {
            "microseconds": {label: round(value, 1) for label, value in median.items()},
            "executor_over_bare": round(over, 3),
        },
        f"{median['Executor']:.0f} µs, {over:.2f} times the bare executable",
    )


def rates(bench: Bench) -> Iterator[Step]:
    """Rows a second beside the best jit loop, from host memory to host memory."""
    for dtype in DTYPES:
        for name in bench.models:
            for endpoint in ENDPOINTS:
                what = f"{name} {endpoint}, {dtype}"
                yield Step(what, partial(rate, bench, name, dtype, endpoint))


def rate(bench: Bench, name: str, dtype: str, endpoint: str) -> Finding:
    """The fastest of each side in turns; the batch size that is chosen is kept for later parts."""
    model, num_rows = bench.models[name], bench.sizes.models[name].num_rows
    executors = fitting(bench, name, dtype, endpoint)
    if endpoint == "encode":
        pictures = bench.pictures(name, num_rows)
        dispatch = encode_loop(model, dtype, pictures)
        ours = {size: partial(encoded, executor, pictures) for size, executor in executors.items()}
    else:
        dispatch = generate_loop(model, dtype, num_rows, min(executors))
        ours = {size: partial(drawn, executor, num_rows) for size, executor in executors.items()}
    loops = jit_loops(dispatch, num_rows, executors, {**HOMES, "copied behind": copied_behind})
    best, loop_seconds = fastest(loops)
    size, own_seconds = fastest(ours)
    bench.chosen[name, dtype, endpoint] = size
    times = in_turns({"jit loop": loops[best], "Artifex": ours[size]}, bench.sizes.num_rounds)
    per_second = {label: num_rows / statistics.median(values) for label, values in times.items()}
    over = ratio(times, "jit loop", "Artifex")
    return Finding(
        {
            "rows": num_rows,
            "rows_per_second": {label: round(value) for label, value in per_second.items()},
            "best_jit_loop": best,
            "batch_size": size,
            "over_jit_loop": round(over, 3),
            "jit_loops_rows_per_second": {label: round(num_rows / s) for label, s in loop_seconds.items()},
            "batch_sizes_rows_per_second": {label: round(num_rows / s) for label, s in own_seconds.items()},
        },
        f"{per_second['Artifex']:,.0f} rows/s in batches of {size}, {over:.2f} times the jit loop, {best}",
    )


def fitting(bench: Bench, name: str, dtype: str, endpoint: str) -> dict[int, Executor]:
    """An executor for each batch size that the device's memory holds, by the compiler's account."""
    free = DeviceManager().free_memory() or float("inf")
    found = {}
    for size in bench.sizes.models[name].batch_sizes:
        executor = Executor(bench.models[name], batch_sizes=(size,), dtype=computed_in(dtype), tuned=False)
        if executor.cost(endpoint, size).memory_bytes < free / 2:  # two are in flight
            found[size] = executor
    return found


def cast(model: VAE, dtype: str):
    graphdef, params = nnx.split(model)
    return graphdef, jax.device_put(jax.tree.map(lambda weight: weight.astype(dtype), jax.device_get(params)))


def encode_loop(model: VAE, dtype: str, pictures: np.ndarray) -> Callable[[int, int], jax.Array]:
    graphdef, params = cast(model, dtype)

    @jax.jit
    def encode(params, x):
        return nnx.merge(graphdef, params).encode(x.astype(dtype))["mean"].astype(jnp.float32)

    return lambda start, stop: encode(params, pictures[start:stop])


def generate_loop(model: VAE, dtype: str, num_rows: int, smallest: int) -> Callable[[int, int], jax.Array]:
    graphdef, params = cast(model, dtype)
    keys = list(jax.random.split(jax.random.key(0), -(-num_rows // smallest)))

    @partial(jax.jit, static_argnums=2)
    def draw(params, key, count):
        z = jax.random.normal(key, (count, model.latent_dim)).astype(dtype)
        return nnx.merge(graphdef, params).decode(z).astype(jnp.float32)

    return lambda start, stop: draw(params, keys[start // (stop - start)], stop - start)


def encoded(executor: Executor, pictures: np.ndarray) -> np.ndarray:
    out = np.empty((len(pictures), *executor.spec("encode")[1]["mean"].shape), np.float32)
    return batch_encode_images(executor, pictures, out=out)


def drawn(executor: Executor, num_rows: int) -> np.ndarray:
    out = np.empty((num_rows, *executor.spec("generate")[1]["x"].shape), np.float32)
    return batch_generate_samples(executor, num_rows, rngs=nnx.Rngs(0), out=out)


def in_flight(bench: Bench) -> Iterator[Step]:
    """Rows a second of streams with 1 to 4 executions under way."""
    for name in bench.models:
        for endpoint in ENDPOINTS:
            size = bench.batch_size(name, "float32", endpoint)
            what = f"{name} {endpoint}, float32, batches of {size}"
            yield Step(what, partial(each_in_flight, bench, name, endpoint, size))


def each_in_flight(bench: Bench, name: str, endpoint: str, size: int) -> Finding:
    """From host memory to host memory, in turns."""
    num_rows, calls = bench.sizes.models[name].num_rows, {}
    pictures = bench.pictures(name, num_rows if endpoint == "encode" else 1)
    for count in IN_FLIGHT:
        tuned = {endpoint: Tuned(size, count)}
        executor = Executor(bench.models[name], batch_sizes=(size,), tuned=tuned)
        by_endpoint = {
            "encode": partial(encoded, executor, pictures),
            "generate": partial(drawn, executor, num_rows),
        }
        calls[str(count)] = by_endpoint[endpoint]
        calls[str(count)]()  # compiles
    times = in_turns(calls, bench.sizes.num_rounds)
    over = {count: ratio(times, "1", count) for count in calls}
    return Finding(
        {
            "rows_per_second": {count: round(num_rows / statistics.median(t)) for count, t in times.items()},
            "over_one": {count: round(value, 3) for count, value in over.items()},
        },
        "over one: " + ", ".join(f"{count}: {value:.2f}" for count, value in over.items()),
    )


def shares(bench: Bench) -> Iterator[Step]:
    """Seconds of one execution alone, inputs on the device, beside what products and copies take at least."""
    ceilings: dict[str, Ceilings] = {}
    yield Step("ceilings", partial(measured_ceilings, bench.sizes.matmul_side, ceilings))
    for name, model in bench.models.items():
        for dtype in ceilings:
            for endpoint, flops in (("encode", encode_flops(model)), ("decode", decode_flops(model))):
                size = bench.batch_size(name, dtype, "encode" if endpoint == "encode" else "generate")
                what = f"{name} {endpoint}, {dtype}, {size} rows"
                of = partial(share, bench, name, dtype, endpoint, size, flops, ceilings[dtype])
                yield Step(what, of)


def measured_ceilings(matmul_side: int, ceilings: dict[str, Ceilings]) -> Finding:
    """Measures them, and keeps them by dtype; float32 products at the device's own precision."""
    measured = machine_ceilings()
    copies = measured.copy_bytes_per_second
    ceilings["float32"] = measured
    ceilings["bfloat16"] = Ceilings(matmul_flops(matmul_side, jnp.bfloat16), copies)
    products = {dtype: ceiling.matmul_flops_per_second for dtype, ceiling in ceilings.items()}
    says = ", ".join(f"{dtype} products {rate / 1e12:.3g} TFLOP/s" for dtype, rate in products.items())
    return Finding(
        {"matmul_flops_per_second": products, "copy_bytes_per_second": copies},
        f"{says}, copies {copies / 1e9:.3g} GB/s",
    )


def share(
    bench: Bench, name: str, dtype: str, endpoint: str, size: int, flops_per_row: int, ceilings: Ceilings
) -> Finding:
    """The shares by the operations that the model needs, and by the compiler's account."""
    model = bench.models[name]
    executor = Executor(model, batch_sizes=(size,), dtype=computed_in(dtype), tuned=False)
    z = np.random.default_rng(0).standard_normal((size, model.latent_dim)).astype(np.float32)
    rows = {"x": bench.pictures(name, size)} if endpoint == "encode" else {"z": z}
    taken = execution_seconds(executor, endpoint, jax.device_put(rows), bench.sizes.num_rounds)
    cost = executor.cost(endpoint, size)
    limits = roofline(cost, taken, ceilings)
    of_matmul = size * flops_per_row / taken / ceilings.matmul_flops_per_second
    return Finding(
        {
            "execution_seconds": taken,
            "flops": {"needed": size * flops_per_row, "compiler": cost.flops},
            "bytes_accessed": cost.bytes_accessed,
            "share_of_matmul": round(of_matmul, 4),
            "share_of_roofline": round(limits.share_of_roofline, 4),
        },
        f"{1e3 * taken:.3f} ms, {of_matmul:.1%} of products, {limits.share_of_roofline:.1%} of the roofline",
    )


def execution_seconds(
    executor: Executor, endpoint: str, rows: dict[str, jax.Array], num_rounds: int
) -> float:
    """Of one execution among several that are dispatched in a row, the median over rounds."""

    def several() -> list[dict[str, jax.Array]]:
        return [executor(endpoint, rows) for _ in range(EXECUTIONS)]

    jax.block_until_ready(several())
    return statistics.median(seconds(several) / EXECUTIONS for _ in range(num_rounds))
