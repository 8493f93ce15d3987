"""Encoding, decoding and sampling: any number of rows from memory, from disk or from an iterator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.jobs import aligned_empty
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.images import pictures_in
from artifex.generative_models.inference.offline.calling import map_said, with_said
from artifex.generative_models.inference.offline.chunks import Rows, collect, num_rows, row_chunks
from artifex.generative_models.inference.offline.latents import decoded_name, encoded_name
from artifex.generative_models.inference.offline.progress import track_rows
from artifex.generative_models.inference.offline.sampling import Sampling, sampling

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float
    from numpy.typing import NDArray


def generate_samples_jit(model: Model | Executor, z: ArrayLike) -> Float[Array, "rows h w c"]:
    """Decodes latents [rows, latent], compiled; any number of rows.

    Raises:
        InputError: A wrong shape, no rows, or values that are not finite.
        InputTypeError: A wrong dtype.
    """
    executor = executor_for(model)
    inputs, options = with_said(executor, "decode", {decoded_name(executor): z})
    return executor("decode", inputs, **options)["x"]


def encode_images_jit(model: Model | Executor, images: ArrayLike) -> Float[Array, "rows latent"]:
    """Encodes pictures [rows, H, W, C] to the means of their posteriors, compiled; any number of rows.

    Raises:
        InputError: A wrong shape, no rows, or values that are not finite.
        InputTypeError: A wrong dtype.
    """
    return _encode_at_once(executor_for(model), images)


def batch_encode_images(
    model: Model | Executor,
    images: Rows,
    batch_size: int | None = None,
    *,
    out: NDArray[np.floating] | None = None,
    progress: bool = False,
) -> Float[Array, "rows latent"] | NDArray[np.floating]:
    """Encodes pictures in batches, to the means of their posteriors.

    Args:
        model: A model with an `encode` endpoint, or an executor of one.
        images: Pictures [rows, H, W, C] in the model's range: a NumPy or JAX array, memory-mapped or
            not, or an iterable of such arrays.
        batch_size: Rows a batch; None is what `tune` found, or 64.
        out: Array [rows, latent] to write into, for results that memory cannot hold; it is returned.
        progress: Shows a bar on stderr.

    Raises:
        InputError: No rows, a wrong shape, values that are not finite, or an `out` that does not fit.
        InputTypeError: A wrong dtype, uint8 among them: scale pictures first, or use an `InferencePipeline`.
    """
    executor = executor_for(model, batch_size=batch_size)
    return _encode(executor, images, batch_size, out, progress)


def batch_generate_samples(
    model: Model | Executor,
    num_samples: int,
    batch_size: int | None = None,
    *,
    rngs: nnx.Rngs | int | None = None,
    temperature: float = 1.0,
    out: NDArray[np.floating] | None = None,
    progress: bool = False,
    **given: Any,
) -> Float[Array, "rows h w c"] | NDArray[np.floating]:
    """Draws samples in batches.

    Sample i depends on the generators and on i alone, not on the batch size or the number of samples.

    Args:
        model: A model with a `generate` endpoint, or an executor of one.
        num_samples: How many, from 1.
        batch_size: Rows a batch; None is what `tune` found, or 64.
        rngs: Random number generators, of which one `sample` key is drawn, or a seed; None is any.
        temperature: Standard deviation of the prior's noise, from 0; 1 is the model's own.
        out: Array [rows, H, W, C] to write into, for results that memory cannot hold; it is returned.
        progress: Shows a bar on stderr.
        **given: More inputs of the endpoint, such as a label, for all samples or one a sample; and options.

    Raises:
        InputError: No samples, a negative or infinite temperature, an `out` that does not fit, or something
            given that the endpoint does not take.
    """
    executor = executor_for(model, batch_size=batch_size)
    how, key = sampling(executor, num_samples, temperature, given), sample_key(rngs)
    is_small = num_samples <= executor.batch_sizes_of("generate")[-1]
    # What is made of fields may be much larger than the samples, so that is for a batch at a time.
    at_once = is_small or executor.endpoints["generate"].says is None
    if out is None and not progress and at_once:
        inputs = how.rows(0, num_samples)
        return pictures_in(executor("generate", inputs, key=key, num_rows=num_samples, **how.options))
    chunks = generate_chunks(executor, num_samples, batch_size, key, how)
    return collect_placed(executor, chunks, num_samples, "generate", out, progress)


def parallel_batch_inference(
    model: Model,
    images: Rows,
    num_devices: int | None = None,
    *,
    batch_size: int = 32,
    out: NDArray[np.floating] | None = None,
    progress: bool = False,
) -> Float[Array, "rows latent"] | NDArray[np.floating]:
    """Encodes pictures on several devices at once; no row is dropped, whatever their number.

    Arguments that are not named here are those of `batch_encode_images`.

    Args:
        num_devices: The first so many devices; None is all.
        batch_size: Rows a batch on each device.

    Raises:
        InputError: There are not so many devices; or as for `batch_encode_images`.
    """
    mesh = DeviceManager().mesh(num_devices)
    rows = batch_size * mesh.size
    executor = executor_for(model, batch_size=rows, mesh=mesh)
    return _encode(executor, images, rows, out, progress)


def memory_efficient_inference(
    model: Model | Executor, images: Rows, batch_size: int = 16, *, progress: bool = False
) -> NDArray[np.floating]:
    """Encodes pictures with as little device memory as a batch needs; the results stay on the host.

    Arguments and errors are those of `batch_encode_images`; a small batch size means little memory.

    Returns:
        Latents [rows, latent], a NumPy array.
    """
    DeviceManager().cleanup()
    executor = executor_for(model, batch_size=batch_size)
    chunks = encode_chunks(executor, images, batch_size)
    return collected(chunks, num_rows(images), "encode", None, progress)


def generate_chunks(
    executor: Executor,
    num_samples: int,
    batch_size: int | None,
    key: Array,
    how: Sampling,
    first_row: int = 0,
) -> Iterator[NDArray[np.floating]]:
    """Samples `first_row` to `num_samples` of a job, in batches; a size of None is the executor's largest."""
    batch_size = batch_size or executor.batch_sizes_of("generate")[-1]
    starts = range(first_row, num_samples, batch_size)
    spans = ((start, min(start + batch_size, num_samples)) for start in starts)
    chunks = (how.rows(start, stop) or stop - start for start, stop in spans)
    given = executor.map("generate", chunks, key=key, first_row=first_row, **how.options)
    return map(pictures_in, given)


def encode_chunks(
    executor: Executor,
    images: Rows,
    batch_size: int | None,
    given: Mapping[str, Any] | None = None,
    num_rows: int | None = None,
) -> Iterator[NDArray[np.floating]]:
    """Latents of pictures, a batch at a time; a size of None is the executor's largest.

    What is given and the number of rows are as for `map_said`.
    """
    name = encoded_name(executor)
    rows = batch_size or executor.batch_sizes_of("encode")[-1]
    chunks = ({"x": chunk} for chunk in row_chunks(images, rows))
    found = map_said(executor, "encode", chunks, given or {}, num_rows)
    return (outputs[name] for outputs in found)


def collected(
    chunks: Iterable[NDArray[Any]],
    total: int | None,
    description: str,
    out: NDArray[Any] | None,
    progress: bool,
) -> NDArray[Any]:
    """Puts chunks together, in `out` or in a new array; shows a bar on stderr if asked to."""
    return collect(track_rows(chunks, total, description) if progress else chunks, total, out, aligned_empty)


def collect_placed(
    executor: Executor,
    chunks: Iterable[NDArray[Any]],
    total: int | None,
    description: str,
    out: NDArray[Any] | None,
    progress: bool,
) -> Array | NDArray[Any]:
    """Puts chunks together as `collected` does; a new array is handed to the device."""
    values = collected(chunks, total, description, out, progress)
    return executor.place(values) if out is None else out


def _encode(
    executor: Executor, images: Rows, batch_size: int | None, out: NDArray[Any] | None, progress: bool
) -> Any:
    in_memory = isinstance(images, np.ndarray | jax.Array) and not isinstance(images, np.memmap)
    if in_memory and out is None and not progress:
        return _encode_at_once(executor, images)
    chunks = encode_chunks(executor, images, batch_size)
    return collect_placed(executor, chunks, num_rows(images), "encode", out, progress)


def _encode_at_once(executor: Executor, images: Any) -> Any:
    inputs, options = with_said(executor, "encode", {"x": images})
    return executor("encode", inputs, **options)[encoded_name(executor)]
