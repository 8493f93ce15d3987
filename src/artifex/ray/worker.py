"""The processes of a job: each holds a model, and writes the shards that come to it."""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from artifex.generative_models.core.errors import ArtifexError, OutputError
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.cache import enable_compilation_cache
from artifex.generative_models.inference.images import pictures_in
from artifex.generative_models.inference.offline.latents import encoded_name
from artifex.generative_models.inference.offline.parts import Place
from artifex.generative_models.inference.offline.sources import PictureFiles
from artifex.generative_models.inference.pipeline import InferencePipeline, load_pipeline
from artifex.ray.cluster import import_ray
from artifex.ray.cores import claimed_cores
from artifex.ray.inputs import Inputs, Pictures


@dataclass(frozen=True)
class Setup:
    """What an actor needs to open its model.

    Args:
        model: A bundled name, or an absolute path.
        endpoint: "encode" or "generate".
        batch_size: Rows a batch; None is what `tune` found, or 64.
        num_cpus: Cores that Ray gives an actor, besides the GPUs.
    """

    model: str
    endpoint: Literal["encode", "generate"]
    batch_size: int | None
    dtype: str | None
    num_cpus: float
    num_gpus: float

    def device(self) -> contextlib.AbstractContextManager[None]:
        """Keeps this process to the devices that Ray gave it; before JAX looks for any."""
        if self.num_gpus:
            if self.num_gpus < 1:  # JAX would take three quarters of the memory
                os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 * self.num_gpus:.3f}")
            return contextlib.nullcontext()
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        return claimed_cores(int(self.num_cpus)) if self._owns_cores() else contextlib.nullcontext()

    def open(self) -> InferencePipeline:
        """The model."""
        enable_compilation_cache()
        pipeline = load_pipeline(self.model, batch_size=self.batch_size, dtype=self.dtype)
        executor = pipeline.executor
        sizes = executor.batch_sizes_for(self.endpoint, executor.batch_sizes_of(self.endpoint)[-1])
        executor.warmup([self.endpoint], sizes)
        return pipeline

    def _owns_cores(self) -> bool:
        """Whether cores can be shared out: whole ones, of a machine whose every core is Ray's."""
        if sys.platform != "linux" or self.num_cpus < 1 or self.num_cpus % 1:
            return False
        ray = import_ray()
        here = ray.get_runtime_context().get_node_id()
        (node,) = [node for node in ray.nodes() if node["NodeID"] == here]
        return node["Resources"].get("CPU") == len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Task:
    """What an actor does with its model.

    Args:
        identity: What its rows must depend on, as `InferencePipeline.job_identity` tells it.
        place: Where they go.
        inputs: Pictures to encode; None generates.
        pictures: Their identity.
        given: The seed, and what else samples are drawn with.
    """

    identity: dict[str, Any]
    place: Place
    inputs: Inputs | None = None
    pictures: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What the driver must know of a model, which it does not load itself: it may have no such device."""

    identity: dict[str, Any]
    input_shape: tuple[int, ...]
    output: str
    output_shape: tuple[int, ...]
    output_dtype: str


class Worker:
    """An actor: a model, to which shards come.

    What can go wrong on purpose comes back as a row, so that the driver raises it as it is.
    """

    def __init__(self, setup: Setup, task: Task):
        self._task = task
        self._failure: Exception | None = None
        self._device = contextlib.ExitStack()
        try:
            self._device.enter_context(setup.device())
            self._pipeline = setup.open()
            self._pictures = self._checked(setup)
        except (ArtifexError, OSError) as error:
            self._failure = error

    def __call__(self, shards: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Writes shards, which come one at a time."""
        begun = time.perf_counter()
        (start,), (stop,) = shards["start"].tolist(), shards["stop"].tolist()
        try:
            if self._failure is not None:
                raise self._failure
            self._task.place.write(start, stop, self._rows(start, stop))
        except Exception as error:  # whatever it is, the driver raises it
            return {**shards, "seconds": [0.0], "failure": [_pickled(error)]}
        return {**shards, "seconds": [time.perf_counter() - begun], "failure": [b""]}

    def _rows(self, start: int, stop: int) -> Iterator[np.ndarray]:
        if self._pictures is not None:
            return self._pipeline.encode_chunks(self._pictures.rows(start, stop))
        given = dict(self._task.given)
        key = sample_key(given.pop("seed"))
        return self._pipeline.generate_chunks(key=key, first_row=start, stop=stop, **given)

    def _checked(self, setup: Setup) -> Pictures | None:
        """The pictures, if they and the model are those of the other machines."""
        ours = self._pipeline.job_identity(setup.endpoint)
        theirs = self._task.identity
        changed = [
            f"{name} is {ours[name]} here and was {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        pictures = None
        if self._task.inputs is not None:
            pictures = self._task.inputs.open(self._pipeline.executor.spec(setup.endpoint)[0]["x"].shape)
            # Files are named one by one; to look at each again would take a long time where there are many.
            is_list = isinstance(pictures, PictureFiles)
            if not is_list and pictures.identity() != self._task.pictures:
                changed.append(f"the pictures are {pictures.identity()} here and were {self._task.pictures}")
        if changed:
            raise OutputError(
                f"{platform.node()} would write other rows than the machine that began the job: "
                f"{'; '.join(changed)}; give all machines the same files"
            )
        return pictures


def describe(setup: Setup) -> Facts | Exception:
    """Loads a model and tells of it, or why it cannot."""
    try:
        with setup.device():
            pipeline = setup.open()
            inputs, outputs = pipeline.executor.spec(setup.endpoint)
            identity = pipeline.job_identity(setup.endpoint)
            if setup.endpoint == "generate":
                shape = pictures_in(outputs).shape
                return Facts(identity, (), "x", shape, pipeline.picture_dtype("generate").name)
            name = encoded_name(pipeline.executor)
            latent = outputs[name]
            return Facts(identity, inputs["x"].shape, name, latent.shape, np.dtype(latent.dtype).name)
    except (ArtifexError, OSError) as error:
        return error


def _pickled(error: Exception) -> bytes:
    """An error for another process, with the traceback of this one as a note."""
    if not isinstance(error, ArtifexError | OSError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.dumps(error)
    except Exception:  # such as one that holds a lock
        return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
