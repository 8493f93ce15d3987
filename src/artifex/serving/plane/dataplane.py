"""What requests mean, whatever protocol they come by: they are checked, queued and answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifex.generative_models.core.errors import ArtifexError, InputError
from artifex.generative_models.core.fields import Finishing, Said, checked_fields
from artifex.generative_models.core.keys import RowKeys
from artifex.generative_models.inference.batching.previews import Preview
from artifex.generative_models.inference.executor.jobs import Job, Late
from artifex.generative_models.inference.images import is_picture
from artifex.serving.plane.loaded_model import LoadedModel, ServedEndpoint
from artifex.serving.plane.pictures import decode_pictures
from artifex.serving.plane.repository import Repository
from artifex.serving.plane.requests import InferRequest, InferResponse, Parameters
from artifex.serving.plane.seeds import MAX_SEED, FreshSeeds
from artifex.serving.plane.statuses import NotFoundError, NotReadyError, TooLargeError
from artifex.serving.plane.tensors import as_dtype, short


@dataclass(slots=True)
class Call:
    """A checked request, ready for its model's queue.

    Args:
        seed: None where nothing is drawn; one integer for all rows, or one a row.
        timeout: Seconds until it is given up if none of its rows is under way; where the client has said
            them, of a model that takes steps if they are not done.
        only_waits: Whether they are the server's, which bound how long it waits and not how long it takes.
        every: Steps of a row between two previews of it; None has no previews.
    """

    request: InferRequest
    loaded: LoadedModel
    endpoint: ServedEndpoint
    job: Job
    seed: int | list[int] | None
    timeout: float | None
    only_waits: bool
    every: int | None = None

    def submit(
        self,
        start: int = 0,
        stop: int | None = None,
        on_preview: Callable[[Preview], object] | None = None,
    ) -> asyncio.Future[dict[str, np.ndarray]]:
        """Queues the rows from `start` on and before `stop`, by default all."""
        job = self.job if stop is None else self.job.part(start, stop)
        try:
            return self.loaded.batcher.submit_job(
                job,
                outputs=self._computed(),
                timeout=self.timeout,
                only_waits=self.only_waits,
                on_preview=on_preview,
                every=1 if self.every is None else self.every,
            )
        except InputError:
            self.loaded.refused[self.endpoint.name] += 1
            raise

    def given(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the client gets of what was computed: text too, where there is some."""
        says, wanted = self.endpoint.says, self.request.outputs
        if not isinstance(says, Finishing):
            return dict(outputs)
        found = says.finished(outputs)
        return found if wanted is None else {name: found[name] for name in wanted}

    def _computed(self) -> Sequence[str] | None:
        """Names of the outputs that are computed for it; None is all."""
        wanted, texts = self.request.outputs, self.endpoint.texts
        if wanted is None or not texts:
            return wanted
        there = (*texts, *self.endpoint.outputs)
        for name in wanted:
            if name not in there:
                raise InputError(
                    f"{self.endpoint.name}: no output {short(name)}; it gives {', '.join(there)}"
                )
        return None

    def finished(self) -> None:
        """Notes that it has been answered."""
        self.loaded.last_inference = int(1e3 * time.time())

    def response(
        self, outputs: Mapping[str, np.ndarray], looks: Mapping[str, np.ndarray] | None = None
    ) -> InferResponse:
        """The response to a request, or one of those before it.

        Args:
            outputs: What was computed.
            looks: The numbers and steps of the rows of a preview, which this then is, as more outputs.
        """
        if looks is None:
            self.finished()
        request, loaded = self.request, self.loaded
        parameters: Parameters = {"seed": self.seed} if isinstance(self.seed, int) else {}
        if looks is not None:
            parameters["preview"] = True
        return InferResponse(
            request.model, loaded.version, request.id, parameters, {**self.given(outputs), **(looks or {})}
        )


class DataPlane:
    """Decides what requests mean.

    Args:
        repository: The models.
        max_rows: Rows of one request.
        timeout: Seconds that a request may wait, unless it says otherwise; None is for ever.
    """

    def __init__(self, repository: Repository, *, max_rows: int, timeout: float | None):
        self.repository = repository
        self.max_rows = max_rows
        self.timeout = timeout
        self.draining = False
        self._fresh_seeds = FreshSeeds()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: every model is loaded, and the server does not drain."""
        return self.repository.is_ready and not self.draining

    def find(self, model: str, version: str = "") -> tuple[LoadedModel, ServedEndpoint]:
        """The model and endpoint of a name.

        Raises:
            NotFoundError: There is no such model, endpoint or version.
            NotReadyError: It is not loaded, or the server drains.
        """
        if self.draining:
            raise NotReadyError("the server drains; send it elsewhere")
        return self.repository.find(model, version)

    def is_model_ready(self, model: str, version: str = "") -> bool:
        """Whether requests for a model are taken.

        Raises:
            NotFoundError: There is no such model, endpoint or version.
        """
        try:
            self.find(model, version)
        except NotReadyError:
            return False
        return True

    async def prepare(self, request: InferRequest, *, is_stream: bool = False) -> Call:
        """Checks a request; in a thread where that takes longer.

        That is where there are pictures to decode or new options to trace, or where what was said becomes
        something else. The answer to a stream has parts, so it may ask for previews.

        Raises:
            NotFoundError, NotReadyError: As for `find`.
            InputError: A wrong input, parameter or number of rows.
            TooLargeError: Too many rows.
        """
        loaded, endpoint = self.find(request.model, request.version)
        options = {name: request.parameters[name] for name in endpoint.options if name in request.parameters}
        has_files = any(array.dtype.kind == "O" for array in request.inputs.values())
        if not has_files and endpoint.says is None and loaded.knows(endpoint.name, options):
            return self._checked(request, loaded, endpoint, is_stream)
        with loaded.in_use():
            return await asyncio.to_thread(self._checked, request, loaded, endpoint, is_stream)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Runs a request.

        Raises:
            ArtifexError: As for `prepare` and for `Batcher.submit_async`.
        """
        call = await self.prepare(request)
        return call.response(await call.submit())

    def count_refused(self, model: str) -> None:
        """Counts a request that could not even be read."""
        with contextlib.suppress(NotFoundError, NotReadyError):
            loaded, endpoint = self.find(model)
            loaded.refused[endpoint.name] += 1

    def _checked(
        self, request: InferRequest, loaded: LoadedModel, endpoint: ServedEndpoint, is_stream: bool
    ) -> Call:
        try:
            return self._call(request, loaded, endpoint, is_stream)
        except ArtifexError:
            loaded.refused[endpoint.name] += 1
            raise

    def _call(
        self, request: InferRequest, loaded: LoadedModel, endpoint: ServedEndpoint, is_stream: bool
    ) -> Call:
        given = dict(request.inputs)
        parameters = dict(request.parameters)
        timeout = _timeout(parameters)
        every = _every(endpoint, parameters) if is_stream else None
        seeds = _seeds(endpoint, given.pop("seed", None), parameters.pop("seed", None))
        num_rows = self._num_rows(parameters.pop("num_samples", None), seeds)
        options = _options(endpoint, parameters)
        fields = _fields(endpoint, given, parameters)
        if parameters:
            drawing = ["seed", "num_samples"] if endpoint.draws else []
            looks = ["every"] if is_stream and endpoint.takes_steps else []
            known = [*drawing, *looks, "timeout", "priority", *endpoint.options, *endpoint.fields]
            raise InputError(
                f"{request.model}: unknown parameter {short(next(iter(parameters)))}; "
                f"it takes {', '.join(known)}"
            )
        inputs = {name: self._input(loaded, endpoint, name, array) for name, array in given.items()}
        if num_rows is None:
            arrays = [a for a in (*inputs.values(), *fields.values()) if isinstance(a, np.ndarray)]
            num_rows = max((len(array) for array in arrays if array.ndim), default=1)
            self._limit(num_rows)
        if num_rows > 1:
            for name, array in inputs.items():
                if array.shape == (1,) and endpoint.inputs[name].shape == ():
                    inputs[name] = array[0, ...]  # for all rows
        late = None
        if endpoint.says is not None:
            said = Said(endpoint.says, checked_fields(endpoint.name, endpoint.fields, fields, num_rows))
            options |= said.options
            late = Late(endpoint.made, said.rows)
        seed: int | list[int] | None = None
        keys = None
        if seeds is not None:
            seed = seeds[0] if len(seeds) == 1 else seeds
            keys = RowKeys.of_seed(seed)
        elif endpoint.draws:
            seed, keys = self._fresh_seeds.draw()
        loaded.learn(endpoint.name, options)
        job = loaded.executor.check(
            endpoint.name, inputs, keys=keys, num_rows=num_rows, values=False, late=late, **options
        )
        only_waits = timeout is None
        timeout = self.timeout if only_waits else timeout
        return Call(request, loaded, endpoint, job, seed, timeout, only_waits, every)

    def _num_rows(self, wanted: Any, seeds: list[int] | None) -> int | None:
        """How many rows a request is for, where that is said other than by its inputs."""
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            raise InputError(f"num_samples: expected a number from 1, got {short(wanted)}")
        if seeds is not None and len(seeds) > 1:
            if wanted not in (None, len(seeds)):
                raise InputError(f"seed: got {len(seeds)} seeds for {wanted} samples")
            wanted = len(seeds)
        self._limit(wanted or 1)
        return wanted

    def _limit(self, num_rows: int) -> None:
        if num_rows > self.max_rows:
            raise TooLargeError(
                f"{num_rows} rows in one request; this server takes {self.max_rows}: send them in parts"
            )

    def _input(
        self, loaded: LoadedModel, endpoint: ServedEndpoint, name: str, array: np.ndarray
    ) -> np.ndarray:
        """An input as an array, before the executor checks it."""
        spec = endpoint.inputs.get(name)
        if spec is None:
            raise InputError(f"{endpoint.name}: unknown input {short(name)}; it takes {endpoint.takes}")
        if spec.shape == () and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]  # the way of clients that give every tensor two axes
        if spec.shape and not array.ndim:
            raise InputError(f"{endpoint.name}: {name}: expected shape {[-1, *spec.shape]}, got []")
        takes_pictures = is_picture(spec)
        if array.dtype.kind == "O":
            if not takes_pictures:
                raise InputError(f"{endpoint.name}: {name}: expected numbers, got BYTES")
            self._limit(array.size)
            array = decode_pictures(name, array.reshape(-1), spec)
        dtype = np.dtype(spec.dtype)
        if array.dtype != dtype:
            is_pixels = takes_pictures and array.dtype == np.uint8
            # What the executor refuses is left to it.
            is_refused = array.dtype.kind == "b" or (array.dtype.kind, dtype.kind) == ("f", "i")
            if not (is_pixels or is_refused):
                array = as_dtype(name, array, dtype)
        if takes_pictures and array.ndim == 1 + len(spec.shape):
            array = np.asarray(loaded.pipeline.preprocess_fn(array))
        return array


def _options(endpoint: ServedEndpoint, parameters: Parameters) -> dict[str, Any]:
    """Takes an endpoint's static options out of a request's parameters."""
    options: dict[str, Any] = {}
    for name, option in endpoint.options.items():
        default = option.default
        if name not in parameters:
            continue
        value: Any = parameters.pop(name)
        if type(default) is float and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise InputError(f"{name}: expected {type(default).__name__}, got {short(value)}")
        options[name] = value
    return options


def _fields(
    endpoint: ServedEndpoint, inputs: dict[str, np.ndarray], parameters: Parameters
) -> dict[str, Any]:
    """Takes what is said out of a request's inputs and parameters."""
    said: dict[str, Any] = {}
    for name in endpoint.fields:
        if name in inputs and name in parameters:
            raise InputError(f"{name}: expected a tensor or a parameter, got both")
        if name in inputs:
            array = inputs.pop(name)
            said[name] = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        elif name in parameters:
            said[name] = parameters.pop(name)
    return said


def _timeout(parameters: Parameters) -> float | None:
    """Seconds, from the schedule policy's microseconds. Its priority is taken, and all are alike."""
    priority = parameters.pop("priority", 0)
    if type(priority) is not int or priority < 0:
        raise InputError(f"priority: expected a number from 0, got {short(priority)}")
    timeout = parameters.pop("timeout", 0)
    if isinstance(timeout, bool | str) or not 0 <= timeout < 2**63:
        raise InputError(f"timeout: expected microseconds from 0, got {short(timeout)}")
    return timeout / 1e6 if timeout else None


def _every(endpoint: ServedEndpoint, parameters: Parameters) -> int | None:
    """Steps between previews, where a stream asks for them."""
    every = parameters.pop("every", None)
    if every is None:
        return None
    if not endpoint.takes_steps:
        raise InputError(f"{endpoint.name} takes no steps, so it has no previews: leave out every")
    if type(every) is not int or every < 1:
        raise InputError(f"every: expected a number of steps from 1, got {short(every)}")
    return every


def _seeds(endpoint: ServedEndpoint, tensor: np.ndarray | None, parameter: Any) -> list[int] | None:
    """The seeds of a request: one for all rows, or one a row."""
    if tensor is None and parameter is None:
        return None
    if not endpoint.draws:
        raise InputError(f"{endpoint.name} draws nothing, so it takes no seed")
    if tensor is not None and parameter is not None:
        raise InputError("seed: expected a tensor or a parameter, got both")
    if tensor is None:
        seeds = [parameter]
    elif tensor.dtype.kind in "iu" and tensor.size and tensor.size == max(tensor.shape, default=1):
        seeds = tensor.reshape(-1).tolist()
    else:
        raise InputError(f"seed: expected integers, got {tensor.dtype} of shape {list(tensor.shape)}")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise InputError(f"seed: expected integers from 0 to {MAX_SEED}, got {short(seed)}")
    return seeds
