"""Rows are independent: whether a device holds the law that padding, merging and streaming rest on.

Within one batch size results are the same bit for bit. Across batch sizes those of the smaller model
agree to the tolerance at the highest precision of matrix products. How far they are apart at the
device's own precision, such as TF32, is found out as well, and so for bfloat16 and for the larger model,
whose sums are ten times as long: no tolerance is stated for these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from common import Facts
from flax import nnx
from parts.bench import Bench, Finding, NotApplicableError, Step, computed_in, on_cpu, random_vae

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.inference import Batcher, Executor, StreamingGenerator
from artifex.generative_models.models.vae import VAE

# As in the tests: one float32 rounding of a sum of a few thousand products, summed in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
ENDPOINTS = ("encode", "decode", "generate")
SEED = 11

Outputs = dict[str, np.ndarray]
Rows = slice | Sequence[int] | np.ndarray
ALL = slice(None)


class Case(NamedTuple):
    """Rows of one endpoint.

    Args:
        executor: Runs them.
        endpoint: Name of the endpoint.
        inputs: Arrays [rows, ...] by name.
        words: Those of a key a row, on the host; None where the endpoint draws nothing.
    """

    executor: Executor
    endpoint: str
    inputs: dict[str, np.ndarray | jax.Array]
    words: np.ndarray | None = None

    def run(self, rows: Rows) -> Outputs:
        """The outputs of some of the rows, in one call."""
        part = {name: value[rows] for name, value in self.inputs.items()}
        keys = None if self.words is None else jax.random.wrap_key_data(self.words[rows])
        outputs = self.executor(self.endpoint, part, keys=keys)
        return {name: np.asarray(value) for name, value in outputs.items()}


def same_bits(found: Outputs, expected: Outputs) -> bool:
    return all(np.array_equal(found[name], value) for name, value in expected.items())


def error(found: Outputs, expected: Outputs) -> float:
    """The largest difference, in tolerances."""
    largest = 0.0
    for name, value in expected.items():
        allowed = TOLERANCE["atol"] + TOLERANCE["rtol"] * np.abs(value)
        largest = max(largest, float(np.nan_to_num(np.abs(found[name] - value) / allowed, nan=1e9).max()))
    return round(min(largest, 1e9), 4)


def far(tolerances: float) -> str:
    return f"{tolerances:.3g} of the tolerance"


def executor_of(
    bench: Bench,
    model: VAE,
    endpoints: Sequence[str] = ENDPOINTS,
    dtype: str = "float32",
    highest: bool = True,
) -> Executor:
    """An executor that computes at the highest precision, or at the device's own."""
    sizes = bench.sizes.law_batch_sizes
    with jax.default_matmul_precision("highest") if highest else nullcontext():
        executor = Executor(model, batch_sizes=sizes, dtype=computed_in(dtype), tuned=False)
        executor.warmup(endpoints)
    return executor


def exact(bench: Bench) -> Executor:
    """That of the smaller model at the highest precision, made once for all parts."""
    if bench.exact is None:
        bench.exact = executor_of(bench, bench.models[bench.smaller])
    return bench.exact


def cases(
    bench: Bench, name: str, executor: Executor, endpoints: Sequence[str] = ENDPOINTS
) -> Iterator[Case]:
    """Rows for each endpoint: twice the largest batch size, less three."""
    num_rows = 2 * bench.sizes.law_batch_sizes[-1] - 3
    model, rng = bench.models[name], np.random.default_rng(0)
    sources = {
        "x": bench.pictures(name, num_rows),
        "z": rng.standard_normal((num_rows, model.latent_dim)).astype(np.float32),
        "temperature": np.linspace(0.1, 1.5, num_rows, dtype=np.float32),
    }
    words = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(7), num_rows)))
    for endpoint in endpoints:
        inputs = {input_name: sources[input_name] for input_name in executor.spec(endpoint)[0]}
        yield Case(executor, endpoint, inputs, words if executor.draws(endpoint) else None)


def rows_are_independent(bench: Bench) -> Iterator[Step]:
    """Split, pad, permute, for each endpoint, dtype and precision."""
    smaller, larger = bench.models
    kinds = [(smaller, "float32", True), (smaller, "float32", False), (smaller, "bfloat16", False)]
    kinds += [(larger, "float32", on_cpu())]
    for name, dtype, highest in kinds:
        if on_cpu() and dtype == "float32" and not highest:
            continue  # where it is the same as the highest
        strict = highest and name == smaller
        executor = (
            exact(bench) if strict else executor_of(bench, bench.models[name], dtype=dtype, highest=highest)
        )
        precision = "highest" if highest else "default"
        for case in cases(bench, name, executor):
            what = f"{name} {case.endpoint}, {dtype}, {precision} precision"
            yield Step(what, partial(independence, case, bench.sizes.law_batch_sizes[-1], strict=strict))


def independence(case: Case, size: int, *, strict: bool) -> Finding:
    """Whether bits stay within a batch size, and how far results are apart across sizes."""
    bits, apart = within_one_size(case, size), across_sizes(case, size)
    broken = [f"{law} changes bits" for law, holds in bits.items() if not holds]
    says = f"{', '.join(broken) or 'bits equal'} at {size} rows; {far(apart)} across batch sizes"
    if strict and apart > 1:
        broken.append(f"{far(apart)} across batch sizes")
    facts: Facts = {"same_bits": bits, "tolerances_across_batch_sizes": apart, "tolerance_must_hold": strict}
    return Finding(facts, says, broken)


def within_one_size(case: Case, size: int) -> dict[str, bool]:
    """Which laws hold bit for bit at one batch size."""
    full = case.run(slice(size))
    first = {name: value[:1] for name, value in full.items()}
    strangers = case.run(np.array([0, *range(size, 2 * size - 3), 1, 2]))
    order = np.random.default_rng(1).permutation(size)
    return {
        "padding": same_bits(case.run(slice(size - 3)), {name: value[:-3] for name, value in full.items()}),
        "neighbours": same_bits({name: value[:1] for name, value in strangers.items()}, first),
        "permutation": same_bits(case.run(order), {name: value[order] for name, value in full.items()}),
    }


def across_sizes(case: Case, size: int) -> float:
    """How far rows alone and in parts are from the same rows in one call, in tolerances."""
    whole = case.run(ALL)
    ways = [[slice(row, row + 1) for row in range(5)]]
    ways += [[slice(cut), slice(cut, 2 * size - 3)] for cut in (1, size // 3, size + 1)]
    errors = []
    for way in ways:
        parts = [case.run(rows) for rows in way]
        found = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        errors.append(error(found, {name: value[: way[-1].stop] for name, value in whole.items()}))
    return max(errors)


def one_seed_everywhere(bench: Bench) -> Iterator[Step]:
    """The same seed alone, streamed and through a busy batcher, beside one call."""
    model, size = bench.models[bench.smaller], bench.sizes.law_batch_sizes[-1]
    single = Executor(model, batch_sizes=(size,), tuned=False)
    yield Step("one batch size", partial(one_seed, single, 2 * size - 3, strict=True))
    yield Step("several batch sizes", partial(one_seed, exact(bench), 2 * size - 3, strict=False))


def one_seed(executor: Executor, num_rows: int, *, strict: bool) -> Finding:
    """Whether samples are the same, bit for bit where that is strict."""
    found, whole = drawn(executor, num_rows)
    wanted = {way: whole[: len(value)] for way, value in found.items()}
    bits = {way: np.array_equal(value, wanted[way]) for way, value in found.items()}
    apart = {way: error({"x": value}, {"x": wanted[way]}) for way, value in found.items()}
    return Finding(
        {"same_bits": bits, "tolerances": apart, "bits_must_be_same": strict},
        ", ".join(f"{way} {'bits equal' if bits[way] else far(apart[way])}" for way in found),
        [f"{way} differs" for way in found if not bits[way] and (strict or apart[way] > 1)],
    )


def drawn(executor: Executor, num_rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Samples of one seed in several ways, and all of them in one call."""
    key = nnx.Rngs(SEED).sample()
    whole = np.asarray(executor("generate", key=key, num_rows=num_rows)["x"])
    alone = [next(executor.map("generate", [1], key=key, first_row=row))["x"] for row in range(5)]
    with StreamingGenerator(executor, SEED, num_samples=num_rows) as stream:
        streamed = np.stack(list(stream))
    with Batcher(executor) as batcher:
        others = [batcher.submit("generate", seed=seed, num_rows=3) for seed in range(4)]
        future = batcher.submit("generate", seed=SEED, num_rows=num_rows)
        others += [batcher.submit("generate", seed=seed, num_rows=5) for seed in range(4)]
        batched = future.result()["x"]
        for other in others:
            other.result()
    return {"alone": np.concatenate(alone), "streamed": streamed, "through a busy batcher": batched}, whole


def arrays_of_the_device(bench: Bench) -> Iterator[Step]:
    """Inputs that are on the device already, beside those of the host."""
    for case in cases(bench, bench.smaller, exact(bench)):
        yield Step(case.endpoint, partial(from_the_device, case, bench.sizes.law_batch_sizes[-1]))


def from_the_device(case: Case, size: int) -> Finding:
    """Whether a whole batch and more than one give the same bits."""
    there = case._replace(inputs={name: jax.device_put(value) for name, value in case.inputs.items()})
    equal = all(same_bits(there.run(rows), case.run(rows)) for rows in (slice(size), ALL))
    says = "bits equal" if equal else "bits differ"
    return Finding({"same_bits": equal}, says, [] if equal else [says])


def swap_of_weights(bench: Bench) -> Iterator[Step]:
    """New weights under the same executables, and the first ones again."""
    model = bench.models[bench.smaller]
    other = random_vae(model.config, seed=5)
    ours, theirs = (
        next(cases(bench, bench.smaller, executor_of(bench, weights, ["encode"])))
        for weights in (model, other)
    )
    yield Step("encode", partial(swapped, ours, model, theirs, other))


def swapped(ours: Case, model: VAE, theirs: Case, other: VAE) -> Finding:
    """Whether swapping gives what an executor of the other model gives, and compiles nothing."""
    expected = [ours.run(ALL), theirs.run(ALL)]
    before = ours.executor.compile_count
    ours.executor.swap(other)
    there = same_bits(ours.run(ALL), expected[1]) and not same_bits(*expected)
    ours.executor.swap(model)
    back = same_bits(ours.run(ALL), expected[0])
    compiled = ours.executor.compile_count - before
    holds = there and back and not compiled
    facts: Facts = {"swapped": there, "swapped_back": back, "compiled": compiled}
    says = "bits equal, nothing compiled" if holds else f"does not hold: {facts}"
    return Finding(facts, says, [] if holds else [says])


def mesh_of_all_devices(bench: Bench) -> Iterator[Step]:
    """Rows over all devices, beside one."""
    if len(jax.devices()) == 1:
        raise NotApplicableError("one device")
    model, sizes = bench.models[bench.smaller], bench.sizes.law_batch_sizes
    with jax.default_matmul_precision("highest"):
        on_mesh = Executor(model, mesh=DeviceManager().mesh(), batch_sizes=sizes, tuned=False)
        on_mesh.warmup(ENDPOINTS)
    for case in cases(bench, bench.smaller, exact(bench)):
        yield Step(case.endpoint, partial(over_mesh, case, on_mesh))


def over_mesh(case: Case, on_mesh: Executor) -> Finding:
    """How far results of all devices are from those of one."""
    apart = error(case._replace(executor=on_mesh).run(ALL), case.run(ALL))
    facts: Facts = {"devices": len(jax.devices()), "tolerances": apart}
    return Finding(facts, far(apart), [far(apart)] if apart > 1 else [])
