"""How fast a function runs, the two halves of a VAE, and sampling."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.measure.timing import MIN_RUNS, check_count, time_calls
from artifex.generative_models.inference.offline.calling import with_said
from artifex.generative_models.inference.offline.sampling import sampling

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Float

_log = logging.getLogger("artifex")


def benchmark_inference(
    inference_fn: Callable[[], Any],
    num_runs: int = 100,
    warmup_runs: int = 10,
    *,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Times a function, each call until everything that it returns is computed.

    A first call comes apart, since it may compile. The function is then warmed up until it gets no faster,
    at most 50 calls more than asked for (`time_calls` has the rule).

    Args:
        inference_fn: A function without arguments that returns a pytree with a JAX or NumPy array in it.
        num_runs: Calls to time, from 1; it takes 6 to say how reliable the median is.
        warmup_runs: Calls that are not counted, from 0.
        batch_size: Rows a call, from 1, for `samples_per_second`.

    Returns:
        `mean_ms`, `std_ms`, `min_ms`, `max_ms`, `median_ms`, `p5_ms`, `p95_ms` and `p99_ms` of a call;
        `compile_ms`, the time of the first call; `num_runs`; `warmup_runs`, those really made;
        `samples_per_second` at the median time, if `batch_size` is given; `noise`, how far off the median
        may be, relative to itself (half of its 95 % confidence interval, or half of what it drifted
        between the first and the second half of the runs where that is more); and `is_reliable`, whether
        that is at most 5 %. Where it is not, a warning is logged too.

    Raises:
        InputError: A number is out of range.
        InputTypeError: `inference_fn` is not callable, or returns no array.

    What `inference_fn` raises is passed on, with a note that says in which run.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    timing = time_calls(inference_fn, num_runs, warmup_runs=warmup_runs)
    if len(timing.seconds) < MIN_RUNS:
        _log.warning("%d runs are too few to rely on: time %d or more", len(timing.seconds), MIN_RUNS)
    elif not timing.is_reliable:
        _log.warning(
            "the median of %d runs may be off by %.0f %%, too much to rely on: close other programs, or time "
            "more runs",
            len(timing.seconds),
            100 * timing.noise,
        )
    facts = timing.as_dict()
    if batch_size is not None:
        facts["samples_per_second"] = batch_size / timing.median
    return facts


def benchmark_vae_inference(
    model: Model | Executor,
    *,
    batch_size: int = 32,
    num_runs: int = 100,
    rngs: nnx.Rngs | int | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times encoding and decoding of random rows that are on the device already, and prints both.

    They run as in `encode_images_jit` and `generate_samples_jit`.

    Args:
        model: A model with `encode` and `decode` endpoints.
        batch_size: Rows a call, from 1.
        num_runs: Calls to time, from 1.
        rngs: Random number generators or a seed for the rows; None is seed 42.

    Returns:
        What `benchmark_inference` tells of encoding, and of decoding.

    Raises:
        InputError: A number is out of range, or the model lacks an endpoint.
    """
    check_count("batch_size", batch_size, 1)
    executor = executor_for(model)
    of_pictures, of_latents = jax.random.split(sample_key(42 if rngs is None else rngs))
    pictures, latents = executor.spec("encode")[0]["x"], executor.spec("decode")[0]["z"]
    x = jax.random.uniform(of_pictures, (batch_size, *pictures.shape), pictures.dtype)
    z = jax.random.normal(of_latents, (batch_size, *latents.shape), latents.dtype)
    calls: dict[str, Callable[[], Any]] = {}
    for name, given in {"encode": {"x": x}, "decode": {"z": z}}.items():
        inputs, options = with_said(executor, name, given)
        calls[name] = partial(executor, name, inputs, **options)
    found = []
    for name, call in calls.items():
        facts = benchmark_inference(call, num_runs, batch_size=batch_size)
        found.append(facts)
        unsure = "" if facts["is_reliable"] else ", unreliable"
        print(
            f"{name}, {batch_size} rows: {facts['mean_ms']:.2f} ± {facts['std_ms']:.2f} ms, "
            f"median {facts['median_ms']:.2f} ms, {facts['samples_per_second']:,.0f} rows/s{unsure}"
        )
    return found[0], found[1]


def inference_with_jit(model: Model | Executor, num_samples: int = 16) -> Float[Array, "rows h w c"]:
    """Draws samples eleven times and prints what the first call cost and what the others do.

    Args:
        model: A model with a `generate` endpoint.
        num_samples: Samples a call.

    Returns:
        The samples of the last call.

    Raises:
        InputError: No samples.
    """
    from flax import nnx  # not loaded by a warm start of the command line

    executor = executor_for(model)
    rngs = nnx.Rngs(42)
    how = sampling(executor, num_samples, 1.0, {})
    inputs = how.rows(0, num_samples)

    def draw() -> tuple[Array, float]:
        start = time.perf_counter()
        given: dict[str, Any] = {"key": sample_key(rngs), "num_rows": num_samples, **how.options}
        samples = executor("generate", inputs, **given)["x"]
        return jax.block_until_ready(samples), time.perf_counter() - start

    samples, seconds = draw()
    print(f"first call {seconds:.3f} s, compilation included: samples {samples.shape}")
    runs = [draw() for _ in range(10)]
    milliseconds = 1e3 * float(np.median([seconds for _, seconds in runs]))
    print(f"then {milliseconds:.2f} ms a call, {1e3 * num_samples / milliseconds:,.0f} samples/s")
    return runs[-1][0]
