"""A model in memory, compiled, with the queue that its requests wait in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.endpoint import changed_options
from artifex.generative_models.core.errors import ArtifexError, InputError
from artifex.generative_models.core.fields import Field, Finishing, Preparation
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.inference.batching.batcher import Batcher
from artifex.generative_models.inference.batching.stats import BatcherStats
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.images import is_picture
from artifex.generative_models.inference.pipeline import InferencePipeline
from artifex.serving.plane.tensors import datatype_of, field_datatype

_MAX_CHOICES = 64  # of options, since each is compiled and kept

Progress = Callable[[str, int, int], None]  # endpoint, executables ready, executables in all


@dataclass(frozen=True)
class ServedEndpoint:
    """An endpoint as the protocols show it.

    Args:
        name: Its name within its model.
        inputs: One row of each input that callers give as it is.
        outputs: One row of each output.
        options: Static options that callers choose.
        draws: Whether it draws random numbers, and so takes a seed.
        takes_steps: Whether its rows take steps, of which there are previews.
        doc: One line for people.
        says: What callers say in place of its other inputs and options, if there are any.
        made: Names of the inputs that are made of what they say.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    options: Mapping[str, Option]
    draws: bool
    takes_steps: bool
    doc: str
    says: Preparation | None = None
    made: Sequence[str] = ()

    @staticmethod
    def of(executor: Executor, name: str) -> ServedEndpoint:
        """An endpoint of an executor."""
        made = executor.endpoints[name]
        inputs, outputs = executor.spec(name)
        given = {input_name: inputs[input_name] for input_name in made.given}
        return ServedEndpoint(
            name,
            given,
            outputs,
            made.given_options,
            executor.draws(name),
            executor.takes_steps(name),
            made.doc,
            made.says,
            [input_name for input_name in inputs if input_name not in given],
        )

    @property
    def fields(self) -> Mapping[str, Field]:
        """What callers say, one value for all rows or one a row; any of it may be left out."""
        return {} if self.says is None else self.says.fields

    @property
    def takes(self) -> str:
        """The names of its inputs and fields, for people."""
        return ", ".join([*self.inputs, *self.fields]) or "none"

    @property
    def texts(self) -> Collection[str]:
        """Names of the outputs that are strings, one a row."""
        return self.says.texts if isinstance(self.says, Finishing) else ()

    @property
    def picture_inputs(self) -> list[str]:
        """Names of the inputs that are pictures [H, W, C]."""
        return [name for name, spec in self.inputs.items() if is_picture(spec)]

    @property
    def picture_outputs(self) -> list[str]:
        """Names of the outputs that are pictures [H, W, C]."""
        return [name for name, spec in self.outputs.items() if is_picture(spec)]

    @property
    def tensors(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The inputs and outputs as the protocol's metadata names them, -1 for the rows."""
        inputs = [_tensor(name, spec) for name, spec in self.inputs.items()]
        for name, field in self.fields.items():
            inputs.append({"name": name, "datatype": field_datatype(field), "shape": [-1]})
        if self.draws:
            inputs.append({"name": "seed", "datatype": "INT64", "shape": [-1]})
        outputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in self.texts]
        return inputs, outputs + [_tensor(name, spec) for name, spec in self.outputs.items()]

    def is_optional(self, name: str) -> bool:
        """Whether requests may leave an input out."""
        return name not in self.inputs or self.inputs[name].default is not None


class LoadedModel:
    """A model that is ready: every batch size of every endpoint is compiled.

    Args:
        pipeline: The model, and what turns its pictures into uint8.
        version: The protocol's name of its checkpoint.
        replaces: An earlier state of the same model, whose executables are used if they fit.
        max_queued_rows: Rows that may wait.
        deterministic: Whether everything runs in batches of one size, as for `Batcher`.
        progress: Told of every executable that is ready.
    """

    def __init__(
        self,
        pipeline: InferencePipeline,
        version: str,
        *,
        replaces: LoadedModel | None = None,
        max_queued_rows: int,
        deterministic: bool = False,
        progress: Progress,
    ):
        self.pipeline = pipeline
        self.version = version
        self.batcher = Batcher(
            pipeline.executor, max_queued_rows=max_queued_rows, deterministic=deterministic
        )
        executor = self.executor
        if replaces is not None and _is_alike(pipeline, replaces.pipeline):
            executor.reuse_executables(replaces.executor)
        start, compiled = time.perf_counter(), executor.compile_count
        _warm_up(self.batcher, progress)
        self.warmup_seconds = time.perf_counter() - start
        self.num_compiled = executor.compile_count - compiled
        self.endpoints = {name: ServedEndpoint.of(executor, name) for name in executor.endpoints}
        self._options = {name: made.options for name, made in executor.endpoints.items()}
        self.refused: Counter[str] = Counter()  # by endpoint: requests that never came to the queue
        self.last_inference = 0  # milliseconds since 1970
        self._known: set[tuple[str, tuple[tuple[str, Hashable], ...]]] = set()
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def executor(self) -> Executor:
        """What runs it."""
        return self.batcher.executor

    def counters(self) -> dict[str, BatcherStats]:
        """What was done so far, by endpoint; requests that never came to the queue count as failed."""
        stats = self.batcher.stats()
        counters = {name: stats.get(name, BatcherStats()) for name in self.endpoints}
        for name, refused in self.refused.items():
            counters[name].failed += refused
        return counters

    def knows(self, endpoint: str, options: Mapping[str, Hashable]) -> bool:
        """Whether a choice of options was traced already; the default one was."""
        changed = changed_options(self._options[endpoint], options)
        return not changed or (endpoint, changed) in self._known

    def learn(self, endpoint: str, options: Mapping[str, Hashable]) -> None:
        """Traces a choice of options, if it is not known.

        Raises:
            InputError: The endpoint does not take it, or clients have chosen too many others before.
        """
        if self.knows(endpoint, options):
            return
        if len(self._known) >= _MAX_CHOICES:
            raise InputError(f"{endpoint}: this server compiles {_MAX_CHOICES} choices of options, and has")
        try:
            self.executor.spec(endpoint, **options)
        except ArtifexError:
            raise
        except Exception as error:  # of the model's own code, which refuses them in its own way
            raise InputError(f"{endpoint}: it does not take these options") from error
        self._known.add((endpoint, changed_options(self._options[endpoint], options)))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it from being closed between the parts of a stream; for the event loop's thread."""
        self._num_users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._unused.set()

    async def unused(self) -> None:
        """Waits until no stream uses it."""
        await self._unused.wait()


def _is_alike(pipeline: InferencePipeline, other: InferencePipeline) -> bool:
    """Whether two models have the same endpoints."""
    ours, theirs = ((p.metadata.get("model_type"), p.config) for p in (pipeline, other))
    return ours == theirs


def _warm_up(batcher: Batcher, progress: Progress) -> None:
    ahead = [name for name, endpoint in batcher.executor.endpoints.items() if endpoint.ahead]
    sizes = [(name, size) for name in ahead for size in batcher.batch_sizes_of(name)]
    for done, (name, size) in enumerate(sizes, 1):
        batcher.warmup([name], [size])
        progress(name, done, len(sizes))


def _tensor(name: str, spec: TensorSpec) -> dict[str, Any]:
    return {"name": name, "datatype": datatype_of(np.dtype(spec.dtype)), "shape": [-1, *spec.shape]}
