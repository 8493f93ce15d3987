"""The fastest way to run an endpoint on this machine, found by measuring."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Endpoint, Model
from artifex.generative_models.core.errors import CacheError, InputError, OutOfDeviceMemoryError
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.settings import (
    powers_up_to,
    save_tuned,
)
from artifex.generative_models.inference.executor.shared import forget_executors
from artifex.generative_models.inference.measure.timing import check_count
from artifex.generative_models.inference.tuning.bench import Bench
from artifex.generative_models.inference.tuning.results import Trial, TuningReport
from artifex.generative_models.inference.tuning.search import search

if TYPE_CHECKING:
    from jax.typing import DTypeLike


def tune(
    model: Model | Executor | Any,
    endpoint: str = "generate",
    *,
    endpoints: Mapping[str, Endpoint] | None = None,
    batch_sizes: Sequence[int] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike | None = None,
    max_memory: int | None = None,
    exhaustive: bool = False,
    store: bool = True,
    progress: Callable[[Trial], None] | None = None,
) -> TuningReport:
    """Finds the batch size and the way to compile and overlap batches that give the most rows a second.

    Executors made from then on use the result, in this process and in later ones, for models of the same
    shapes on the same kind of device and version of jaxlib. `search` says what is tried, in which order, and
    when that ends; the best few are then measured again in turns, until the sizes on either side of the best
    were among them. Of those that are as fast within 2 %, in nearly every turn, the smallest batch is chosen.
    Where callers can say a number of steps, 10 are taken: batches are compared with each other alone. On a
    CPU it then takes the forms of 3×3 convolutions that are the fastest for their shapes, if the whole
    network is faster by them and within 1e-4 of the deviation of its outputs.

    Arguments that are not named here are those of `Executor`.

    Args:
        endpoint: Name of the endpoint; its options stay at their defaults.
        batch_sizes: Rows a batch to choose from; None is the powers of two up to 256.
        max_memory: Bytes of each device that batches may take; None is what is free. A batch size whose
            executions the compiler says need more is never run.
        exhaustive: Whether to try every combination instead.
        store: Whether to keep the result.
        progress: Called with each trial.

    Raises:
        InputError: An unknown endpoint; no batch size, or one below 1.
        OutOfDeviceMemoryError: There is no memory for even the smallest batch size.
    """
    start = time.perf_counter()
    make: Callable[..., Executor]
    if not isinstance(model, Executor):
        make = partial(Executor, model, endpoints, mesh=mesh, dtype=dtype)
    elif (endpoints, mesh, dtype) == (None, None, None):
        make = model.remade
    else:
        raise InputError("endpoints, mesh and dtype are those of the executor; leave them out")
    bench = Bench(endpoint, make, max_memory, progress)
    space = bench.space(powers_up_to(256) if batch_sizes is None else batch_sizes)
    freezes = not gc.get_freeze_count()  # else whoever called has done so, and what is frozen is its business
    gc.collect()
    if freezes:  # else the collection that each measurement starts with looks through all that lives already
        gc.freeze()
    try:
        if exhaustive:
            for candidate in space:
                bench.measure(candidate)
        else:
            search(space, bench.measure)
        if not bench.trials:
            raise OutOfDeviceMemoryError(
                f"{endpoint}: no memory for a batch of {space.batch_sizes[0]}, the smallest of all"
            )
        chosen, convolutions = bench.convolutions(bench.best())
    finally:
        if freezes:
            gc.unfreeze()
    report = TuningReport(
        endpoint,
        DeviceManager().default_device.device_kind,
        version("jaxlib"),
        tuple(sorted(bench.trials.values(), key=lambda trial: trial.candidate.batch_size)),
        chosen,
        bench.too_large,
        convolutions,
        time.perf_counter() - start,
        None if store else "not asked for",
    )
    if store:
        try:
            save_tuned(bench.executor(chosen.candidate).tuning_name(endpoint), report.tuned)
        except CacheError as error:
            return replace(report, not_stored=str(error))
        if not isinstance(model, Executor):
            forget_executors(model)
    return report


def optimize_batch_size(
    model: Model,
    max_batch_size: int = 256,
    step: int = 16,
    *,
    endpoint: str = "generate",
    max_memory: int | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> int:
    """The batch size of the most rows a second among `step`, 2 `step`, … up to `max_batch_size`.

    Nothing is kept; `tune` keeps what it finds. Arguments that are not named here are those of `tune`.

    Args:
        max_batch_size: The largest to consider, from 1.
        step: Distance between those considered, from 1.

    Raises:
        InputError: A number below 1, a step above the maximum, or an unknown endpoint.
        OutOfDeviceMemoryError: There is no memory for even `step` rows.
    """
    check_count("max_batch_size", max_batch_size, 1)
    check_count("step", step, 1)
    if step > max_batch_size:
        raise InputError(f"step: expected at most max_batch_size, {max_batch_size}, got {step}")
    report = tune(
        model,
        endpoint,
        batch_sizes=range(step, max_batch_size + 1, step),
        max_memory=max_memory,
        store=False,
        progress=progress,
    )
    return report.chosen.candidate.batch_size
