"""A model with what comes before and after it: pictures in, pictures out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex import __version__
from artifex.generative_models.core.between import MODES
from artifex.generative_models.core.endpoint import Endpoint, Model, endpoints_of
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.core.numerics import value_settings
from artifex.generative_models.core.processes import whole
from artifex.generative_models.core.sharding import Shard, WeightLayout
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.executor.settings import powers_up_to
from artifex.generative_models.inference.executor.shared import executor_for
from artifex.generative_models.inference.executor.stepping import Progress
from artifex.generative_models.inference.formats.loading import (
    check_image_range,
    find_directory,
)
from artifex.generative_models.inference.formats.warm_start import Snapshot
from artifex.generative_models.inference.images import denormalize_images, pictures_in, taking_uint8
from artifex.generative_models.inference.offline.batch import (
    collect_placed,
    collected,
    encode_chunks,
    generate_chunks,
)
from artifex.generative_models.inference.offline.calling import call_endpoint, map_said
from artifex.generative_models.inference.offline.chunks import Rows, num_rows, row_chunks
from artifex.generative_models.inference.offline.latents import decoded_name
from artifex.generative_models.inference.offline.sampling import sampling

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike
    from jaxtyping import Array
    from numpy.typing import NDArray

ArrayFn = Callable[[Any], Any]


class InferencePipeline:
    """Pre-processing, a model and post-processing.

    Both functions see a batch at a time, so jobs of any length run in constant memory. Pictures come back as
    NumPy arrays, to be shown and saved; latents stay on the device.

    Args:
        model: A model with endpoints, or an executor of one.
        preprocess_fn: Applied to pictures [batch, H, W, C] before the model; None passes them through.
        postprocess_fn: Applied to the model's pictures [batch, H, W, C]; None passes them through.
        batch_size: Rows a batch; None is what `tune` found for an endpoint, or 64.
        mesh: Devices to lay rows over, as for `Executor`.
        shard: How weights are cut over the mesh, as for `Executor`.
        dtype: Dtype of the computation, as for `Executor`.
        config: The model's config, for reference.
        metadata: The model's metadata, for reference.
        build_model: Gives the model that an executor was made of, when it is first asked for.
    """

    def __init__(
        self,
        model: Model | Executor,
        preprocess_fn: ArrayFn | None = None,
        postprocess_fn: ArrayFn | None = None,
        *,
        batch_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        shard: Shard | None = None,
        dtype: DTypeLike | None = None,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        build_model: Callable[[], Any] | None = None,
    ):
        self._model = model
        self._build_model = build_model
        self.executor = executor_for(model, batch_size=batch_size, mesh=mesh, shard=shard, dtype=dtype)
        self.preprocess_fn = preprocess_fn or _identity
        self.postprocess_fn = postprocess_fn or _identity
        self.batch_size = batch_size
        self.config = dict(config or {})
        self.metadata = dict(metadata or {})

    @property
    def model(self) -> Any:
        """The model: weights that are replaced in it are seen by the next call."""
        if self._build_model is not None:
            self._model, self._build_model = self._build_model(), None
        return self._model

    def encode(
        self, images: Rows, *, out: NDArray[Any] | None = None, progress: bool = False, **given: Any
    ) -> Array | NDArray[Any]:
        """Pre-processes pictures and encodes them to latents: the means of their posteriors, or codes.

        Args:
            images: Pictures [rows, H, W, C]: an array, memory-mapped or not, or an iterable of arrays.
            out: Array [rows, latent] to write into; it is returned.
            progress: Shows a bar on stderr.
            **given: What else the endpoint takes, such as a label: for all rows or, of an array, one a row.

        Returns:
            Latents [rows, latent]; of a model that gives codes [rows, h, w], integers.

        Raises:
            InputError: No rows, a wrong shape, values that are not finite, an `out` that does not fit, or
                something given that the endpoint does not take.
            InputTypeError: A wrong dtype.
        """
        chunks = self.encode_chunks(images, given)
        return collect_placed(self.executor, chunks, num_rows(images), "encode", out, progress)

    def decode(
        self, latents: Rows, *, out: NDArray[Any] | None = None, progress: bool = False, **given: Any
    ) -> NDArray[Any]:
        """Decodes what `encode` gives, latents [rows, latent], to post-processed pictures [rows, H, W, C].

        Arguments and errors are those of `encode`.
        """
        chunks = self.decode_chunks(latents, given)
        return collected(chunks, num_rows(latents), "decode", out, progress)

    def reconstruct(
        self, images: Rows, *, out: NDArray[Any] | None = None, progress: bool = False, **given: Any
    ) -> NDArray[Any]:
        """Encodes pictures [rows, H, W, C] and decodes them again.

        Arguments and errors are those of `encode`.
        """
        chunks = self.reconstruct_chunks(images, given)
        return collected(chunks, num_rows(images), "reconstruct", out, progress)

    def generate(
        self,
        num_samples: int,
        *,
        rngs: nnx.Rngs | int | None = None,
        temperature: float = 1.0,
        out: NDArray[Any] | None = None,
        progress: bool = False,
        **given: Any,
    ) -> NDArray[Any]:
        """Draws samples and post-processes them.

        Args:
            num_samples: How many, from 1.
            rngs: Random number generators, of which one `sample` key is drawn, or a seed; None is any.
            temperature: Standard deviation of the prior's noise, from 0.
            out: Array [num_samples, H, W, C] to write into; it is returned.
            progress: Shows a bar on stderr.
            **given: More inputs of the endpoint, such as a label, for all samples or one a sample; and
                options.

        Returns:
            Pictures [num_samples, H, W, C].

        Raises:
            InputError: No samples, a negative temperature, an `out` that does not fit, or something given
                that the endpoint does not take.
        """
        key = sample_key(rngs)
        chunks = self.generate_chunks(num_samples, key=key, temperature=temperature, given=given)
        return collected(chunks, num_samples, "generate", out, progress)

    def iterate(
        self,
        num_samples: int,
        *,
        every: int = 1,
        rngs: nnx.Rngs | int | None = None,
        temperature: float = 1.0,
        **given: Any,
    ) -> Iterator[Progress]:
        """Draws samples of a model that takes steps, with a look at them after every so many.

        Samples are those of `generate`. To stop to iterate is to stop the work.

        Args:
            num_samples: How many, from 1 to the largest batch size.
            every: Steps between two looks, from 1.

        The others are those of `generate`.

        Yields:
            `outputs["x"]`, pictures [num_samples, H, W, C]: the samples that are done, and previews of the
            others; `steps` that each has taken; and how many are `left`.

        Raises:
            InputError: As for `generate`, or a model that takes no steps.
        """
        how = sampling(self.executor, num_samples, temperature, given)
        rows, key = how.rows(0, num_samples), sample_key(rngs)
        looks = self.executor.iterate(
            "generate", rows, every=every, key=key, num_rows=num_samples, **how.options
        )
        for look in looks:
            pictures = np.asarray(self.postprocess_fn(pictures_in(look.outputs)))
            yield look._replace(outputs={**look.outputs, "x": pictures})

    def interpolate(
        self, start: Any, end: Any, num_steps: int, mode: str | None = None, **given: Any
    ) -> NDArray[Any]:
        """Pictures between two, both ends included, by what lies between their latents.

        A model that has an endpoint `interpolate` does it in its own way: one that removes noise on the great
        circle between the noises that it draws the ends from, which is the mode "spherical" and its only one.

        Args:
            start: Picture [H, W, C].
            end: Picture [H, W, C].
            num_steps: Pictures in all, from 2.
            mode: "linear", on the straight line between latents, or "spherical", on the arc; None is the
                line, or the way of such an endpoint.
            **given: What else the endpoints take, such as a label.

        Returns:
            Pictures [num_steps, H, W, C].

        Raises:
            InputError: Fewer than 2 steps, a mode that is not known or that the model does not have, latents
                that have nothing between them, or as for `encode`.
        """
        if num_steps < 2:
            raise InputError(f"num_steps: expected at least 2, got {num_steps}")
        weights = np.linspace(0, 1, num_steps, dtype=np.float32)
        if "interpolate" in self.executor.endpoints:
            ends = np.asarray(self.preprocess_fn(np.stack([start, end])))
            x, y = (np.repeat(picture[None], num_steps, axis=0) for picture in ends)
            said = given if mode is None else {**given, "mode": mode}
            pictures = self.call("interpolate", x=x, y=y, weight=weights, **said)["x"]
            return np.asarray(self.postprocess_fn(pictures))
        if mode not in (None, *MODES):
            raise InputError(f"interpolate: mode: expected one of {', '.join(MODES)}, got {mode!r:.100}")
        of_pictures, of_latents = self._said_between(given)
        latents = np.asarray(self.encode(np.stack([start, end]), **of_pictures))
        if latents.dtype.kind in "iub":
            raise InputError(f"interpolate: the latents are {latents.dtype}; there is nothing between them")
        first, last = (np.repeat(latent[None], num_steps, axis=0) for latent in latents)
        between = MODES[mode or "linear"](first, last, weights.astype(latents.dtype))
        return self.decode(between, **of_latents)

    def call(
        self,
        endpoint: str,
        *,
        num_rows: int | None = None,
        rngs: nnx.Rngs | int | None = None,
        **given: Any,
    ) -> dict[str, NDArray[Any]]:
        """Runs any endpoint of the model.

        `pipeline.call("inpaint", x=pictures, mask=mask, label=3, num_steps=20)["x"]` makes the missing parts
        of pictures, in the model's range; `postprocess_fn` makes pictures to look at of them.

        Args:
            endpoint: Its name.
            num_rows: How many rows, where no input tells it.
            rngs: As for `generate`, for endpoints that draw random numbers.
            **given: Its inputs, arrays [rows, ...], where pictures may be uint8; its fields, for all rows or
                one a row; and its options.

        Returns:
            Arrays [rows, ...] by name.

        Raises:
            InputError: An unknown endpoint, a name that it does not take, or a value that does not fit.
        """
        key = sample_key(rngs)
        return call_endpoint(
            self.executor, endpoint, given, key=key, num_rows=num_rows, batch_size=self.batch_size
        )

    def encode_chunks(self, images: Rows, given: Mapping[str, Any] | None = None) -> Iterator[NDArray[Any]]:
        """`encode` as a stream: latents, a batch at a time."""
        pictures = self._preprocessed(images, "encode")
        return encode_chunks(self.executor, pictures, self.batch_size, given, num_rows(images))

    def decode_chunks(self, latents: Rows, given: Mapping[str, Any] | None = None) -> Iterator[NDArray[Any]]:
        """`decode` as a stream: pictures, a batch at a time."""
        name = decoded_name(self.executor)
        chunks = ({name: chunk} for chunk in row_chunks(latents, self.rows_per_batch("decode")))
        made = map_said(self.executor, "decode", chunks, given or {}, num_rows(latents))
        return self._postprocessed(outputs["x"] for outputs in made)

    def reconstruct_chunks(
        self, images: Rows, given: Mapping[str, Any] | None = None
    ) -> Iterator[NDArray[Any]]:
        """`reconstruct` as a stream: pictures, a batch at a time."""
        chunks = ({"x": chunk} for chunk in self._preprocessed(images, "reconstruct"))
        made = map_said(self.executor, "reconstruct", chunks, given or {}, num_rows(images))
        return self._postprocessed(outputs["x"] for outputs in made)

    def generate_chunks(
        self,
        num_samples: int,
        *,
        key: Array,
        temperature: float = 1.0,
        first_row: int = 0,
        stop: int | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Iterator[NDArray[Any]]:
        """`generate` as a stream: of all samples numbers `first_row` to `stop`, a batch at a time."""
        how = sampling(self.executor, num_samples, temperature, given or {})
        stop = num_samples if stop is None else stop
        chunks = generate_chunks(self.executor, stop, self.batch_size, key, how, first_row)
        return self._postprocessed(chunks)

    def rows_per_batch(self, endpoint: str) -> int:
        """Rows of a whole batch of an endpoint.

        Raises:
            InputError: An unknown endpoint.
        """
        return self.batch_size or self.executor.batch_sizes_of(endpoint)[-1]

    def picture_dtype(self, endpoint: str) -> np.dtype[Any]:
        """Of the pictures that an endpoint gives, once they are post-processed.

        Raises:
            InputError: An unknown endpoint.
        """
        spec = pictures_in(self.executor.spec(endpoint)[1])
        return np.asarray(self.postprocess_fn(np.zeros((1, *spec.shape), spec.dtype))).dtype

    def job_identity(self, endpoint: str) -> dict[str, Any]:
        """What the rows that an endpoint gives depend on, besides their inputs and keys, as JSON takes it.

        Raises:
            InputError: An unknown endpoint.
        """
        executor, batch_size = self.executor, self.rows_per_batch(endpoint)
        model = hashlib.sha256(json.dumps([self.config, self.metadata], sort_keys=True).encode())
        for leaf in executor.weights:
            model.update(np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8).data)
        return {
            "model": model.hexdigest(),
            "batch_size": batch_size,
            "runs_in": sorted(executor.batch_sizes_for(endpoint, batch_size)),
            "tuned": repr(executor.tuned.get(endpoint)),
            "devices": 1 if executor.mesh is None else executor.mesh.size,
            "device_kind": jax.devices()[0].device_kind,
            "settings": value_settings(),
            "compute_dtype": None if executor.dtype is None else str(jnp.dtype(executor.dtype)),
            "artifex": __version__,
            "jax": jax.__version__,
        }

    def __repr__(self) -> str:
        kind = self.metadata.get("model_type", "a model")
        return f"InferencePipeline({kind}; {self.executor!r})"

    def _said_between(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is said to `encode` and to `decode`, each of which takes what it knows."""
        known: list[Mapping[str, Any]] = []
        for endpoint in ("encode", "decode"):
            made = self.executor.endpoints.get(endpoint)
            known.append({} if made is None or made.says is None else made.says.fields)
        for name in given:
            if not any(name in fields for fields in known):
                takes = ", ".join({**known[0], **known[1]}) or "nothing"
                raise InputError(f"interpolate: {name} is not taken; it takes {takes}")
        return [{name: given[name] for name in fields if name in given} for fields in known]

    def _preprocessed(self, images: Rows, endpoint: str) -> Iterator[NDArray[Any]]:
        chunks = row_chunks(images, self.rows_per_batch(endpoint))
        return (np.asarray(self.preprocess_fn(chunk)) for chunk in chunks)

    def _postprocessed(self, chunks: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        return (np.asarray(self.postprocess_fn(chunk)) for chunk in chunks)


def load_pipeline(
    name_or_dir: str | PathLike[str],
    *,
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    shard: Shard | None = None,
    dtype: DTypeLike | None = None,
    step: int | None = None,
    variant: str | None = None,
) -> InferencePipeline:
    """Loads a model that is bundled, exported or of diffusers, as a pipeline from and to uint8 pictures.

    Pictures go to the device as uint8 and are scaled there; a model that makes something else, such as
    latents, takes and gives what it does. Without a mesh, what one start finds out is kept
    in the user's cache directory for the next: weights, endpoints and executables. That one neither imports
    Flax and Orbax nor compiles, and builds the pipeline's `model` when it is asked for. Whatever a start
    depends on and that changed has it done anew.

    Args:
        name_or_dir: A bundled name, an export directory, or a model or pipeline that diffusers wrote.
        batch_size: Rows a batch; None is what `tune` found for an endpoint, or 64.
        mesh: Devices to lay rows over. Weights are restored to where they go on it; of several processes
            each reads its own.
        shard: How weights are cut over the mesh, as for `Executor`.
        dtype: Dtype of the computation.
        step: Training step of an export; None is the one that it names.
        variant: Of the weights of diffusers, such as "fp16"; None is the one without a name, or the only one.

    Raises:
        ConfigError: There is no such model, or its config or metadata is unusable.
        CheckpointError: Its weights are missing, damaged, or do not fit the config.
    """
    found = find_directory(name_or_dir, step=step, variant=variant)
    config, metadata = dict(found.config), dict(found.metadata)
    image_range = check_image_range(metadata["image_range"])
    snapshot = Snapshot(found.path, dtype, step, variant) if mesh is None else None
    kept = None if snapshot is None else snapshot.model(found.model_type, config)
    model: Any = None
    endpoints: Mapping[str, Endpoint]
    if kept is None:
        sharding = None if mesh is None else WeightLayout(mesh, shard)
        model = found.load(dtype, sharding)
        weights, endpoints = model, endpoints_of(model)
        if snapshot is not None:
            snapshot.keep_model(model)
    else:
        weights, endpoints = kept.leaves, kept.endpoints
    programs = None if snapshot is None else snapshot.programs
    settings = {"mesh": mesh, "shard": shard, "dtype": dtype, "kept": programs}
    executor = _picture_executor(weights, endpoints, image_range, batch_size, **settings)

    def build() -> Any:
        return model if kept is None else executor.follow(kept.build)

    return InferencePipeline(
        executor,
        postprocess_fn=_to_uint8(image_range),
        batch_size=batch_size,
        config=config,
        metadata=metadata,
        build_model=build,
    )


def picture_pipeline(
    model: Model,
    *,
    image_range: tuple[float, float] | None = (0.0, 1.0),
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike | None = None,
) -> InferencePipeline:
    """A model in memory as a pipeline from uint8 pictures to uint8 pictures, as `load_pipeline` makes one.

    Args:
        model: A model with endpoints.
        image_range: Range of its pixel values; None for a model that makes something else.
        batch_size: Rows a batch, and the others as for `load_pipeline`.

    Raises:
        InputTypeError: It has no endpoints.
    """
    executor = _picture_executor(model, endpoints_of(model), image_range, batch_size, mesh=mesh, dtype=dtype)
    return InferencePipeline(
        executor, postprocess_fn=_to_uint8(image_range), batch_size=batch_size, build_model=lambda: model
    )


def _picture_executor(
    weights: Any,
    endpoints: Mapping[str, Endpoint],
    image_range: tuple[float, float] | None,
    batch_size: int | None,
    **settings: Any,
) -> Executor:
    sizes = None if batch_size is None else powers_up_to(batch_size)
    taking = endpoints if image_range is None else taking_uint8(endpoints, image_range)
    return Executor(weights, taking, batch_sizes=sizes, **settings)


def _to_uint8(image_range: tuple[float, float] | None) -> ArrayFn | None:
    return None if image_range is None else partial(denormalize_images, image_range=image_range)


def _identity(array: Any) -> Any:
    return array
