"""The executor: runs a model's endpoints compiled, on batches of any size, on any number of devices.

Nothing else in Artifex compiles, pads, shards, places or transfers.

A job is cut into *pieces* of at most the largest batch size; each is padded up to the smallest batch
size that holds it and runs as one call of an executable compiled ahead of time. Weights are arguments
of the executable, in the order of the flattened model, and live on the device already. Row *i* of a
job carries its key and its row number into the executable, which derives the row's own key from them;
so what a row gives does not depend on its neighbours, the padding, the piece or the device.

Pieces overlap. XLA's CPU backend leaves cores idle, so there several executions are in flight, each
from a thread of one pool shared by all executors of the process; elsewhere dispatch is asynchronous
and the next piece is dispatched while results of the last are copied back.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from artifex.generative_models.core.endpoint import (
    Endpoint,
    Model,
    TensorSpec,
    row_keys,
    sample_key_data,
    sample_keys_data,
)
from artifex.generative_models.core.errors import InputError, InputTypeError, OutOfDeviceMemoryError
from artifex.generative_models.core.sharding import AxisNames, Shard, shard_identity
from artifex.generative_models.inference.cache import without_compilation_cache
from artifex.generative_models.inference.executor.cost import Cost, cost_of
from artifex.generative_models.inference.executor.jobs import (
    MAX_ROWS,
    OWN_KEY,
    Job,
    Part,
    Piece,
    aligned_empty,
    checked_array,
    checked_scalar,
    identities,
    joined,
)
from artifex.generative_models.inference.executor.placement import Lockstep, Placement
from artifex.generative_models.inference.executor.settings import (
    Setting,
    Tuned,
    load_tuned,
    tuning_name,
)
from artifex.generative_models.inference.formats.warm_start import Snapshot, Trace

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Key

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

Inputs = Mapping[str, Any]
Specs = Mapping[str, TensorSpec]
_Identity = tuple[str, tuple[tuple[str, Hashable], ...]]  # endpoint, and the options that were changed


class Executor:
    """Runs the endpoints of one model.

    Calls may come from any number of threads.

    Args:
        model: An NNX module, any pytree of arrays, or None for endpoints that are plain functions.
            Weights that are replaced in place are seen by the next call.
        endpoints: The endpoints by name; None asks the model.
        mesh: Devices with a `data` axis over which rows are laid; None is the default device. Batch
            sizes round up to a multiple of the axis; no row is dropped. Where it has devices of several
            processes (`jax.distributed`), each calls with its own rows and gets theirs; batch sizes are those
            of one process, and rows are numbered through the processes, of a stream chunk by chunk.
        shard: None replicates the weights over the mesh. The name of an axis, such as "model", cuts each
            over it, and rules such as {"features": "model"} along the axes that layers name: for models that
            one device does not hold. `WeightLayout` says how.
        batch_sizes: The row counts to compile for. Larger jobs are cut, smaller ones padded. None is the
            powers of two up to an endpoint's tuned batch size, or up to 64 where it was not tuned.
        dtype: Casts floating-point weights and inputs for the computation; outputs come back as float32.
        tuned: Whether to use what `tune` found out on this kind of device; or results to use, by endpoint.
            Those in use are in the attribute of that name.
        snapshot: What an earlier process found out about the same model; what this one does goes there too.

    Raises:
        InputError: No batch size, one below 1, a mesh without a `data` axis or with unequal processes, or
            weights that cannot be cut so.
    """

    def __init__(
        self,
        model: Model | Any,
        endpoints: Mapping[str, Endpoint] | None = None,
        *,
        mesh: Mesh | None = None,
        shard: Shard | None = None,
        batch_sizes: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        tuned: bool | Mapping[str, Tuned] = True,
        snapshot: Snapshot | None = None,
    ):
        if endpoints is None:
            if not isinstance(model, Model):
                raise InputTypeError(f"{type(model).__name__} has no endpoints(); pass endpoints=")
            endpoints = model.endpoints()
        if batch_sizes is not None and (not batch_sizes or min(batch_sizes) < 1):
            raise InputError(f"batch_sizes: expected positive row counts, got {tuple(batch_sizes)}")
        self.endpoints: Mapping[str, Endpoint] = dict(endpoints)
        self.mesh = mesh
        self._place = Placement(mesh, shard)
        platforms = [device.platform for device in self._place.devices]
        self._on_cpu = "cpu" in platforms
        self._threaded = platforms == ["cpu"]
        self._one_place = jax.default_backend() == "cpu" and len(jax.devices()) == 1
        if self._on_cpu:
            _keep_freed_memory()
        self._weights = _Weights(model, self._place, dtype)
        self._dtype = dtype
        self.tuned: dict[str, Tuned] = self._load_tuned() if tuned is True else dict(tuned or {})
        self._batch_sizes = {name: self._sizes_of(name, batch_sizes) for name in self.endpoints}
        self._snapshot = snapshot
        self._programs: dict[_Identity, Program] = {}
        self._lock = threading.Lock()
        self._compile_count = 0

    def __call__(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        key: Key[Array, ""] | None = None,
        keys: Key[Array, " rows"] | None = None,
        num_rows: int | None = None,
        **options: Hashable,
    ) -> dict[str, Array]:
        """Runs an endpoint on any number of rows.

        When the rows are exactly one batch size the outputs are returned before they are computed, as
        JAX does; otherwise they are put together on the host, since slicing on a device would compile
        anew for each length.

        Args:
            endpoint: Name of the endpoint.
            inputs: Arrays [rows, ...] by name. Per-row scalars may be one number for all rows, and may
                be left out where they have a default.
            key: The job's key: row i uses `fold_in(key, i)`.
            keys: One key a row instead.
            num_rows: Number of rows, where no input tells it.
            **options: Static options of the endpoint.

        Returns:
            Arrays [rows, ...] by name.

        Raises:
            InputError: An unknown endpoint, input or option; a wrong shape or a value that is not
                finite; no rows; no key for an endpoint that draws random numbers.
            InputTypeError: A wrong dtype.
            OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
        """
        program = self._program(endpoint, options)
        if self._place.spans_processes:
            return self._call_in_step(program, inputs, num_rows, key=key, keys=keys)
        job = self._job(program, inputs, num_rows, key=key, keys=keys)
        weights = self._weights.placed(program.weights)
        if job.num_rows in program.batch_sizes:
            try:
                return self._dispatch(weights, job, 0, job.num_rows, job.num_rows)
            except jax.errors.JaxRuntimeError as error:
                self._halve(program, job.num_rows, error)
        outputs = program.allocate(job.num_rows)
        for _ in self._flow(weights, self._pieces(job, outputs)):
            pass
        return {name: self.place(value) for name, value in outputs.items()}

    def map(
        self,
        endpoint: str,
        chunks: Iterable[Inputs | int],
        *,
        key: Key[Array, ""] | None = None,
        first_row: int | None = None,
        **options: Hashable,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Runs an endpoint over a stream of chunks in constant memory.

        A few chunks are read ahead, so that copies and executions overlap; results come in order.

        Args:
            endpoint: Name of the endpoint.
            chunks: Inputs as for a call, of any number of rows each, or just a number of rows.
            key: The job's key. Rows are numbered through all chunks.
            first_row: Number of the first row: where a job that was stopped goes on; on a mesh of several
                processes, where this one's rows begin.
            **options: Static options of the endpoint.

        Yields:
            One dict of NumPy arrays for each chunk.

        Raises:
            InputError, InputTypeError, OutOfDeviceMemoryError: As for a call.
        """
        program = self._program(endpoint, options)

        def jobs() -> Iterator[Job]:
            row = first_row or 0
            for chunk in chunks:
                inputs, num_rows = (None, chunk) if isinstance(chunk, int) else (chunk, None)
                job = self._job(program, inputs, num_rows, key=key, first_row=row)
                row += job.num_rows
                yield job

        if self._place.spans_processes:
            yield from self._map_in_step(program, jobs(), key, numbered=first_row is not None)
            return
        pieces = (piece for job in jobs() for piece in self._pieces(job, program.allocate(job.num_rows)))
        yield from self._outputs(self._flow(self._weights.placed(program.weights), pieces))

    def check(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        key: Key[Array, ""] | np.ndarray | None = None,
        keys: Key[Array, " rows"] | None = None,
        seed: int | Sequence[int] | None = None,
        num_rows: int | None = None,
        first_row: int = 0,
        values: bool = True,
        **options: Hashable,
    ) -> Job:
        """Checks a call that is to run later, merged with others: what queues are made of.

        Args:
            endpoint: Name of the endpoint.
            inputs: As for a call. They are not copied: leave them as they are until they ran.
            key: As for a call, or its words, uint32 on the host.
            keys: As for a call.
            seed: An integer in place of a key, which is then that of `nnx.Rngs(seed).sample()`; or one a
                row, each of which is then sample 0 of its seed.
            num_rows: As for a call.
            first_row: Number of the first row, where this call is a part of a longer job.
            values: Whether to look for values that are not finite; else that is for `Job.check_finite`.
            **options: As for a call.

        Raises:
            InputError, InputTypeError: As for a call.
        """
        if self._place.spans_processes:
            raise InputError(
                "a mesh of several processes runs whole jobs, which each of them calls for; queues are of one"
            )
        program = self._program(endpoint, options)
        job = self._job(program, inputs, num_rows, key=key, keys=keys, seed=seed, first_row=first_row)
        for name, spec in program.endpoint.inputs.items():
            job.inputs[name] = np.ascontiguousarray(job.inputs[name], spec.dtype)
        if values:
            job.check_finite(0, job.num_rows)
            job.is_finite = True
        return job

    def merge(self, parts: Sequence[Part]) -> Job:
        """Puts rows of several checked calls together, padded to a batch size.

        Args:
            parts: Rows of calls of one endpoint with the same options, at most its largest batch size
                together.
        """
        program = parts[0][0].program
        num_rows = sum([stop - start for _, start, stop in parts])
        sizes = program.batch_sizes
        missing = _holding(sizes, num_rows) - num_rows if num_rows <= sizes[-1] else 0
        inputs = {name: joined(name, spec, parts, missing) for name, spec in program.endpoint.inputs.items()}
        is_finite = all(job.is_finite for job, _, _ in parts)
        if not program.needs_keys:
            return Job(program, num_rows, inputs, None, 0, is_finite)
        return Job(program, num_rows, inputs, *identities(parts, num_rows), is_finite)

    def run(self, job: Job) -> dict[str, np.ndarray]:
        """Runs a job of at most one batch and waits for it.

        Args:
            job: What `merge` gives.

        Returns:
            Arrays [at least rows, ...] by name; not to be written to.

        Raises:
            InputError: A value that is not finite.
            OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
        """
        program = job.program
        weights = self._weights.placed(program.weights)
        sizes = program.batch_sizes
        if job.num_rows <= sizes[-1]:
            size = _holding(sizes, job.num_rows)
            try:
                results = self._dispatch(weights, job, 0, job.num_rows, size)
                if not self._on_cpu:
                    for result in results.values():
                        result.copy_to_host_async()
                return {name: np.asarray(result) for name, result in results.items()}
            except jax.errors.JaxRuntimeError as error:
                self._halve(program, size, error)
        outputs = program.allocate(job.num_rows)
        self._complete(weights, self._pieces(job, outputs))
        return outputs

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The row counts that endpoints are compiled for, ascending."""
        return tuple(sorted(set().union(*self._batch_sizes.values())))

    def batch_sizes_of(self, endpoint: str) -> tuple[int, ...]:
        """The row counts that one endpoint runs in, ascending; fewer when the device runs out of memory.

        Raises:
            InputError: An unknown endpoint.
        """
        return self._program(endpoint, {}).batch_sizes

    @property
    def parallel_executions(self) -> int:
        """How many batches compute at the same time: one a core on the CPU, else one."""
        return _cores() if self._threaded else 1

    @property
    def executions_in_flight(self) -> int:
        """How many batches to have under way: those that compute, and one that is copied or queued."""
        return self.parallel_executions + 1

    def warmup(
        self, endpoints: Iterable[str] | None = None, batch_sizes: Iterable[int] | None = None
    ) -> dict[str, dict[int, float]]:
        """Compiles ahead of the first call; after it, no number of rows compiles anything.

        Args:
            endpoints: Names of the endpoints, with their default options; None is all.
            batch_sizes: Which of the executor's batch sizes; None is all of each endpoint.

        Returns:
            Seconds that each batch size of each endpoint took to compile; 0 where it was there.
        """
        names = list(self.endpoints if endpoints is None else endpoints)
        wanted = None if batch_sizes is None else self._known_batch_sizes(batch_sizes)
        seconds: dict[str, dict[int, float]] = {name: {} for name in names}
        for name in names:
            program = self._program(name, {})
            for size in program.batch_sizes if wanted is None else wanted:
                start = time.perf_counter()
                ready = size in program.executables
                self._executable(program, size)
                seconds[name][size] = 0.0 if ready else time.perf_counter() - start
        return seconds

    def spec(self, endpoint: str, **options: Hashable) -> tuple[Specs, Specs]:
        """The inputs and outputs of an endpoint, one row each."""
        program = self._program(endpoint, options)
        return program.endpoint.inputs, program.outputs

    def draws(self, endpoint: str, **options: Hashable) -> bool:
        """Whether an endpoint draws random numbers, so that its calls need a key or a seed."""
        return self._program(endpoint, options).needs_keys

    def cost(self, endpoint: str, batch_size: int, **options: Hashable) -> Cost:
        """What one execution takes, by the compiler's own account; compiles, but runs nothing.

        Args:
            endpoint: Name of the endpoint.
            batch_size: One of the executor's.
            **options: Static options of the endpoint.

        Raises:
            InputError: An unknown endpoint, option or batch size.
        """
        self._known_batch_sizes([batch_size])
        program = self._program(endpoint, options)
        weight_bytes = sum(leaf.nbytes for leaf in self._weights.placed(program.weights))
        return cost_of(self._executable(program, batch_size), weight_bytes)

    def tuning_name(self, endpoint: str) -> str:
        """Name of the cache entry that keeps what `tune` found out about an endpoint."""
        return tuning_name(
            self.endpoints[endpoint],
            self._weights.placed(self._weights.all),
            dtype=self._dtype,
            devices=self._place.devices,
            cores=_cores(),
        )

    def place(self, rows: np.ndarray) -> Array:
        """Hands host rows [rows, ...] to the device; over a mesh where they divide, else to each device."""
        return self._place.put_result(rows)

    def rows_of_all(self, endpoint: str) -> int:
        """Rows of a whole batch of an endpoint, those of all processes of the mesh together."""
        return self.batch_sizes_of(endpoint)[-1] * self._place.num_parts

    def local_rows(self, endpoint: str, num_rows: int) -> range:
        """Which rows of a job this process is to feed, where the mesh has devices of several.

        Each gets whole batches, as equally many as can be, and the last one what is left. So every row runs
        in the batch size that it runs in where one process does the whole job, and comes out bit for bit the
        same. Elsewhere they are all rows.

        Args:
            endpoint: Name of the endpoint.
            num_rows: Rows of the whole job.
        """
        size = self.batch_sizes_of(endpoint)[-1]
        part, num_parts = self._place.part, self._place.num_parts
        full = num_rows // size
        share = -(-full // num_parts)
        start = size * min(part * share, full)
        return range(start, num_rows if part == num_parts - 1 else size * min((part + 1) * share, full))

    @property
    def compile_count(self) -> int:
        """How many executables were compiled so far."""
        return self._compile_count

    @property
    def weights(self) -> list[Array]:
        """The weights on the device, in the order of the flattened model."""
        return self._weights.placed(self._weights.all)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(leaf.shape) for leaf in self.weights)

    def swap(self, model: Any) -> None:
        """Puts new weights under the same executables; calls under way finish with the old ones.

        Args:
            model: A model of the same structure, shapes and dtypes.

        Raises:
            InputError: It differs.
        """
        weights = _Weights(model, self._place, self._dtype)
        if weights.signature() != self._weights.signature():
            raise InputError(
                "swap: the new model differs in structure, shapes or dtypes; make a new Executor"
            )
        self._weights = weights

    def reuse_executables(self, other: Executor) -> bool:
        """Takes over what another executor compiled, if that was for the same weights but for their values.

        What is queued there finishes with its own weights, unlike after `swap`.

        Args:
            other: An executor of the same endpoints: the same functions with the same inputs and options.

        Returns:
            Whether it fits: structure, shapes, dtypes, devices and batch sizes are the same.
        """
        if self._weights.signature() != other._weights.signature() or self._how() != other._how():
            return False
        self._programs, self._lock = other._programs, other._lock
        if self._snapshot is not None and other._snapshot is not None:
            self._snapshot.keep_programs_of(other._snapshot)
        return True

    def _how(self) -> tuple[Any, ...]:
        """What executables depend on besides the weights and endpoints."""
        shard = shard_identity(self._place.shard)
        return self._dtype, self._place.rows, shard, self._batch_sizes, self.tuned

    def _load_tuned(self) -> dict[str, Tuned]:
        found = {name: load_tuned(self.tuning_name(name)) for name in self.endpoints}
        return {name: tuned for name, tuned in found.items() if tuned is not None}

    def _sizes_of(self, name: str, batch_sizes: Sequence[int] | None) -> tuple[int, ...]:
        """An endpoint's batch sizes: those asked for, or powers of two up to the tuned one."""
        if batch_sizes is None:
            tuned = self.tuned.get(name)
            batch_sizes = BATCH_SIZES if tuned is None else powers_up_to(tuned.batch_size)
        num_shards = self._place.num_shards
        return tuple(sorted({-(-size // num_shards) * num_shards for size in batch_sizes}))

    def _in_flight(self, name: str) -> int:
        tuned = self.tuned.get(name)
        return self.executions_in_flight if tuned is None else tuned.executions_in_flight

    def _known_batch_sizes(self, batch_sizes: Iterable[int]) -> list[int]:
        sizes = list(batch_sizes)
        unknown = set(sizes) - set(self.batch_sizes)
        if unknown:
            raise InputError(f"batch_sizes: {sorted(unknown)} are not among {self.batch_sizes}")
        return sizes

    def _program(self, endpoint: str, options: Mapping[str, Hashable]) -> Program:
        identity: _Identity = (endpoint, self._changed(endpoint, options) if options else ())
        return self._programs.get(identity) or self._new_program(identity)

    def _changed(self, endpoint: str, options: Mapping[str, Hashable]) -> tuple[tuple[str, Hashable], ...]:
        """The options that differ from their defaults, so that equal choices share executables."""
        defaults = self.endpoints[endpoint].options if endpoint in self.endpoints else {}
        for name, value in options.items():
            if name not in defaults:
                raise InputError(
                    f"{endpoint}: unknown option {name!r}; it takes {', '.join(defaults) or 'none'}"
                )
            if not isinstance(value, Hashable):
                raise InputTypeError(f"{endpoint}: option {name}: expected something hashable, got {value!r}")
        return tuple(sorted((name, value) for name, value in options.items() if value != defaults[name]))

    def _new_program(self, identity: _Identity) -> Program:
        name, options = identity
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            raise InputError(f"no endpoint {name!r}; there are {', '.join(self.endpoints)}")
        with self._lock:
            if identity not in self._programs:
                self._programs[identity] = Program(
                    name,
                    endpoint,
                    dict(options),
                    self._weights,
                    self._place,
                    self._dtype,
                    batch_sizes=self._batch_sizes[name],
                    settings=self.tuned[name].settings if name in self.tuned else {},
                    on_cpu=self._on_cpu,
                    snapshot=self._snapshot,
                )
            return self._programs[identity]

    def _job(
        self,
        program: Program,
        inputs: Inputs | None,
        num_rows: int | None,
        *,
        key: Any = None,
        keys: Any = None,
        seed: int | Sequence[int] | None = None,
        first_row: int = 0,
    ) -> Job:
        """Checks what a caller gives and puts it into the form that pieces are cut from."""
        if first_row < 0:
            raise InputError(f"{program.name}: first_row: expected a row number from 0, got {first_row}")
        inputs = inputs or {}
        specs = program.endpoint.inputs
        for name in inputs:
            if name not in specs:
                raise InputError(f"{program.name}: unknown input {name!r}; it takes {', '.join(specs)}")
        arrays: dict[str, Any] = {}
        scalars: dict[str, float] = {}
        for name, spec in specs.items():
            value = inputs.get(name, spec.default)
            if value is None:
                raise InputError(f"{program.name}: missing input {name!r}, rows of {spec.shape}")
            if spec.shape == () and np.ndim(value) == 0:
                scalars[name] = checked_scalar(program.name, name, spec, value)
                continue
            array = checked_array(program.name, name, spec, value)
            if num_rows is None:
                num_rows = len(array)
            elif num_rows != len(array):
                raise InputError(
                    f"{program.name}: {name} has {len(array)} rows where {num_rows} were expected"
                )
            on_host = isinstance(array, np.ndarray)
            arrays[name] = array if on_host else self._as_pieces_need(program, array, spec)
        if keys is not None and num_rows is None:
            num_rows = len(keys)
        if num_rows is None:
            raise InputError(f"{program.name}: pass num_rows=, since no input tells the number of rows")
        if not 1 <= num_rows <= MAX_ROWS - first_row:
            raise InputError(
                f"{program.name}: expected at least one row and at most {MAX_ROWS}, got {num_rows}"
            )
        for name, value in scalars.items():
            arrays[name] = np.full(num_rows, value, specs[name].dtype)
        if not program.needs_keys:
            return Job(program, num_rows, arrays, None, first_row)
        if (key is not None) + (keys is not None) + (seed is not None) != 1:
            raise InputError(
                f"{program.name} draws random numbers: pass either key= or keys=; a Batcher takes seed= too"
            )
        if isinstance(seed, list | tuple):
            if len(seed) != num_rows:
                raise InputError(f"{program.name}: got {len(seed)} seeds for {num_rows} rows")
            data = sample_keys_data([_checked_seed(program.name, one) for one in seed])
            return Job(program, num_rows, arrays, data, np.zeros(num_rows, np.uint32))
        if seed is not None:
            data = _seed_key_data(_checked_seed(program.name, seed))
            return Job(program, num_rows, arrays, data, first_row)
        if keys is not None and len(keys) != num_rows:
            raise InputError(f"{program.name}: got {len(keys)} keys for {num_rows} rows")
        data = program.key_data(key if keys is None else keys, ndim=0 if keys is None else 1)
        return Job(program, num_rows, arrays, data, first_row)

    def _as_pieces_need(self, program: Program, array: jax.Array, spec: TensorSpec) -> jax.Array | np.ndarray:
        """Leaves an array on the device if it is a whole batch; others are cut on the host."""
        as_it_is = array.shape[0] in program.batch_sizes and array.dtype == spec.dtype
        if not as_it_is or self._place.spans_processes:
            return np.asarray(array)
        if self._one_place or array.sharding == self._place.rows:
            return array
        return jax.device_put(array, self._place.rows)

    def _pieces(
        self, job: Job, outputs: dict[str, np.ndarray], start: int = 0, stop: int = 0
    ) -> Iterator[Piece]:
        stop = stop or job.num_rows
        while start < stop:
            sizes = job.program.batch_sizes
            end = min(start + sizes[-1], stop)
            yield Piece(job, start, end, _holding(sizes, end - start), outputs)
            start = end

    def _call_in_step(
        self, program: Program, inputs: Inputs | None, num_rows: int | None, *, key: Any, keys: Any
    ) -> dict[str, Array]:
        """A call on a mesh of several processes, of which this one may have no rows: a job of one chunk."""
        arrays = [value for value in (inputs or {}).values() if np.ndim(value)]
        chunks = 0 if num_rows == 0 or any(len(array) == 0 for array in arrays) else 1
        jobs = (self._job(program, inputs, num_rows, key=key, keys=keys) for _ in range(chunks))
        results = list(self._map_in_step(program, jobs, key if keys is None else keys, numbered=False))
        outputs = results[0] if results else program.allocate(0)
        return {name: self.place(value) for name, value in outputs.items()}

    def _map_in_step(
        self, program: Program, jobs: Iterator[Job], key: Any, *, numbered: bool
    ) -> Iterator[dict[str, np.ndarray]]:
        """Runs jobs while the other processes of the mesh run theirs, batch by batch.

        Args:
            program: What to run.
            jobs: This process's.
            key: Any key of the job, for batches in which this process has no rows.
            numbered: Whether rows have their numbers; else they are numbered through the processes.
        """
        together = Lockstep(self._place, repr((program.name, program.options, program.batch_sizes)))

        def pieces() -> Iterator[Piece]:
            if program.needs_keys and key is None:
                raise InputError(f"{program.name} draws random numbers: pass key=")
            first_row = 0
            while True:
                job = next(jobs, None)
                counts = together.counts(None if job is None else job.num_rows)
                if counts is None:
                    return
                if job is None:
                    job = program.empty_job(key)
                elif not numbered:
                    job.first_row = first_row + sum(counts[: self._place.part])
                first_row += sum(counts)
                own = deque(self._pieces(job, program.allocate(job.num_rows)))
                for size in _common_batches(counts, program.batch_sizes):
                    if own and own[0].size == size:
                        yield own.popleft()
                    else:  # a batch of others
                        yield Piece(job, 0, 0, size, {})

        with together.failing_together():
            yield from self._outputs(self._flow(self._weights.placed(program.weights), pieces()))

    def _outputs(self, pieces: Iterable[Piece]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of each job whose last piece has run."""
        return (piece.outputs for piece in pieces if 0 < piece.stop == piece.job.num_rows)

    def _flow(self, weights: Sequence[Array], pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Runs pieces, several at once, and yields them in order when their outputs are on the host."""
        pieces = iter(pieces)
        head = list(itertools.islice(pieces, 2))
        if not head:
            return
        if len(head) == 1:  # nothing to overlap with, so no thread is worth waking
            self._complete(weights, head)
            yield head[0]
            return
        pieces = itertools.chain(head, pieces)
        window: deque[tuple[list[Piece], Future[None] | _Dispatched]] = deque()
        in_flight = self._in_flight(head[0].job.program.name)
        depth = 2 * in_flight if self._threaded else in_flight - 1
        try:
            for group in _groups(pieces, in_flight) if self._threaded else ([piece] for piece in pieces):
                if self._threaded:
                    window.append((group, _pool(in_flight).submit(self._complete, weights, group)))
                else:
                    window.append((group, _Dispatched(self, weights, group[0])))
                if len(window) > depth:
                    yield from _finished(window)
            while window:
                yield from _finished(window)
        finally:
            for _, waiting in window:
                waiting.cancel()

    def _complete(self, weights: Sequence[Array], pieces: Iterable[Piece]) -> None:
        """Runs pieces to the end, one after another, in smaller ones where they no longer fit the device."""
        for piece in pieces:
            if piece.size <= piece.job.program.max_batch_size:
                try:
                    piece.write(self._dispatch(weights, piece.job, piece.start, piece.stop, piece.size))
                    continue
                except jax.errors.JaxRuntimeError as error:
                    self._halve(piece.job.program, piece.size, error)
            smaller = self._pieces(piece.job, piece.outputs, piece.start, piece.stop)
            self._complete(weights, smaller)

    def _dispatch(
        self, weights: Sequence[Array], job: Job, start: int, stop: int, size: int
    ) -> dict[str, Array]:
        program = job.program
        executable = program.executables.get(size) or self._executable(program, size)
        arguments = job.arguments(start, stop, size)
        if self._place.spans_processes:
            arguments = [self._place.put_rows(argument) for argument in arguments]
        with _in_order if self._place.cuts_weights else nullcontext():
            results = executable(*weights, *arguments)
        if not job.is_finite:
            job.check_finite(start, stop)  # while the device computes; a bad row spoils no other
        if self._place.spans_processes:
            return {name: self._place.take_rows(result) for name, result in results.items()}
        return results

    def _halve(self, program: Program, size: int, error: jax.errors.JaxRuntimeError) -> None:
        """Remembers that a batch size does not fit the device; raises any other failure as it is."""
        if not is_out_of_memory(error):
            raise error
        smaller = [s for s in program.batch_sizes if s < size]
        if self._place.spans_processes:
            raise OutOfDeviceMemoryError(
                f"{program.name}: out of device memory at {size} rows; give all processes a smaller batch"
            ) from error
        if not smaller:
            raise OutOfDeviceMemoryError(
                f"{program.name}: out of device memory at {size} rows, the smallest batch size"
            ) from error
        half = max((s for s in smaller if s <= size // 2), default=smaller[0])
        program.batch_sizes = tuple(s for s in program.batch_sizes if s <= half)

    def _executable(self, program: Program, size: int) -> jax.stages.Compiled:
        """Compiles a batch size, once however many threads ask for it."""
        with self._lock:
            pending = program.pending.get(size)
            mine = pending is None
            if pending is None:
                pending = program.pending[size] = Future()
        if not mine:
            return pending.result()
        try:
            loaded = program.load(size)
            executable = loaded or program.compile(size, self._weights)
        except BaseException as error:
            with self._lock:
                del program.pending[size]
            pending.set_exception(error)
            raise
        with self._lock:
            self._compile_count += loaded is None
            program.executables[size] = executable
        pending.set_result(executable)
        return executable


class _Weights:
    """A model's weights on the device, in flattened order, and how to put the model together again."""

    def __init__(self, model: Any, place: Placement, dtype: DTypeLike | None):
        self._place = place
        self._dtype = dtype
        names: list[AxisNames]
        if _is_nnx(model):
            from flax import nnx

            graphdef, state = nnx.split(model)
            leaves, treedef = jax.tree.flatten(state)
            variables = [variable for _, variable in nnx.to_flat_state(state)]
            names = [variable.get_metadata().get("out_sharding") or () for variable in variables]
            readers = [variable.get_raw_value for variable in variables]
            self._structure: Hashable = graphdef
            self._read = lambda which: [readers[i]() for i in which]
            self.rebuild = lambda leaves: nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        else:
            leaves, treedef = jax.tree.flatten(model)
            names = [()] * len(leaves)
            self._structure = treedef
            self._read = lambda which: list(map(jax.tree.leaves(model).__getitem__, which))
            self.rebuild = lambda leaves: jax.tree.unflatten(treedef, leaves)
        self.all = range(len(leaves))
        self._shardings = [
            place.weight_sharding(np.shape(leaf), axes) for leaf, axes in zip(leaves, names, strict=True)
        ]
        self._cells: list[tuple[Any, Any]] = [(None, None)] * len(leaves)  # (the user's array, ours)

    def placed(self, which: Sequence[int]) -> list[Array]:
        """The weights as they are now; only those that were replaced since are placed again."""
        cells = self._cells
        current = self._read(which)
        for i, leaf in zip(which, current, strict=True):
            if cells[i][0] is not leaf:
                cells[i] = leaf, self._placed(leaf, self._shardings[i])
        return [cells[i][1] for i in which]

    def signature(self) -> Hashable:
        return self._structure, tuple((leaf.shape, leaf.dtype) for leaf in self.placed(self.all))

    def _placed(self, leaf: Any, sharding: jax.sharding.Sharding) -> Array:
        if self._dtype is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            leaf = jnp.asarray(leaf, self._dtype)
        return self._place.put_weight(leaf, sharding)


class Program:
    """One endpoint with one choice of options, and its executables by batch size."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        options: Mapping[str, Hashable],
        weights: _Weights,
        place: Placement,
        dtype: DTypeLike | None,
        *,
        batch_sizes: tuple[int, ...],
        settings: Mapping[int, Setting],
        on_cpu: bool,
        snapshot: Snapshot | None,
    ):
        self.name = name
        self.endpoint = endpoint
        self.options = {**endpoint.options, **options}
        self.dtype = dtype
        self._place = place
        self.batch_sizes = batch_sizes  # fewer when the device runs out of memory
        self.settings = settings
        self.on_cpu = on_cpu
        self.strided = False  # whether it has a strided convolution, once it is traced
        self.executables: dict[int, jax.stages.Compiled] = {}
        self.pending: dict[int, Future[jax.stages.Compiled]] = {}
        self.key_impl: str = jax.config.values["jax_default_prng_impl"]
        self.key_words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]
        self.weights = tuple(weights.all)  # those that the endpoint reads, once it is traced
        self.needs_keys = True
        self._kept = None if snapshot is None else snapshot.program(name, options, settings)
        trace = None if self._kept is None else self._kept.trace()
        if trace is None:
            trace = self._trace(weights)
            if self._kept is not None:
                self._kept.keep_trace(trace)
        self.weights, self.needs_keys = trace.weights, trace.needs_keys
        self.outputs, self.strided = trace.outputs, trace.strided

    def _function(self, weights: _Weights, size: int) -> Callable[..., dict[str, Any]]:
        """The endpoint as a function of flat arguments: weights, keys where it reads them, inputs."""
        placed = enumerate(weights.placed(weights.all))
        unread = {i: _stand_in(leaf) for i, leaf in placed if i not in self.weights}

        def run(*arguments: Any) -> dict[str, Any]:
            given = iter(arguments)
            leaves = unread | dict(zip(self.weights, given, strict=False))
            if self.needs_keys:
                keys = self._row_keys(next(given), next(given))
            else:
                keys = jax.random.split(jax.random.key(0, impl=self.key_impl), size)
            inputs = dict(zip(self.endpoint.inputs, given, strict=True))
            if self.dtype is not None:
                inputs = {name: _as_floating(value, self.dtype) for name, value in inputs.items()}
            model = weights.rebuild([leaves[i] for i in weights.all])
            outputs = self.endpoint.fn(model, keys, inputs, **self.options)
            if self.dtype is not None:
                outputs = {name: _as_floating(value, jnp.float32) for name, value in outputs.items()}
            return outputs

        return run

    def _row_keys(self, key_data: Any, numbers: Any) -> Any:
        keys = jax.random.wrap_key_data(key_data, impl=self.key_impl)
        return jnp.where(numbers == OWN_KEY, keys, row_keys(keys, numbers))

    def _row_avals(self, size: int) -> list[jax.ShapeDtypeStruct]:
        avals = [jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in self.endpoint.inputs.values()]
        if self.needs_keys:
            key_data = jax.ShapeDtypeStruct((size, self.key_words), np.uint32)
            avals = [key_data, jax.ShapeDtypeStruct((size,), np.uint32), *avals]
        return avals

    def _trace(self, weights: _Weights) -> Trace:
        """Finds out which weights the endpoint reads, whether it reads its keys, and what it returns."""
        size = 2
        avals = [*map(_aval, weights.placed(weights.all)), *self._row_avals(size)]
        closed, shapes = jax.make_jaxpr(self._function(weights, size), return_shape=True)(*avals)
        wrong = [name for name, value in shapes.items() if value.shape[:1] != (size,)]
        if wrong:
            raise InputError(f"{self.name}: outputs {wrong} have no leading batch axis")
        read = {id(var) for var in closed.jaxpr.outvars}
        for equation in reversed(closed.jaxpr.eqns):
            if any(id(var) in read for var in equation.outvars):
                read.update(id(var) for var in equation.invars)
        is_read = [id(var) in read for var in closed.jaxpr.invars]
        return Trace(
            weights=tuple(i for i in weights.all if is_read[i]),
            needs_keys=is_read[len(weights.all)],
            outputs={name: TensorSpec(value.shape[1:], value.dtype) for name, value in shapes.items()},
            strided=_has_strided_convolution(closed.jaxpr),
        )

    def compile(self, size: int, weights: _Weights) -> jax.stages.Compiled:
        """Compiles a batch size: so many rows from each part of the mesh that processes feed."""
        placed = weights.placed(self.weights)
        num_rows = size * self._place.num_parts
        rows = self._row_avals(num_rows)
        shardings = (*[leaf.sharding for leaf in placed], *[self._place.rows] * len(rows))
        jitted = jax.jit(
            self._function(weights, num_rows), in_shardings=shardings, out_shardings=self._place.rows
        )
        options = cpu_options() if self.setting(size).fusion else None
        lowered = jitted.lower(*placed, *rows)
        if self._kept is None:
            return lowered.compile(options)
        with without_compilation_cache():
            executable = lowered.compile(options)
        self._kept.keep_executable(size, executable)
        return executable

    def load(self, size: int) -> jax.stages.Compiled | None:
        """The executable of a batch size that an earlier process compiled."""
        return None if self._kept is None else self._kept.executable(size)

    @property
    def max_batch_size(self) -> int:
        """The most rows of one execution; falls when the device runs out of memory."""
        return self.batch_sizes[-1]

    def setting(self, size: int) -> Setting:
        """How to compile a batch size: as tuned, or by a rule that `benchmarks/kernels.py` supports."""
        if self._place.cuts_weights:
            return Setting()  # XLA's fusions do not know the layouts that partitioning gives
        rows_per_device = size // self._place.num_shards
        rule = Setting(fusion=self.on_cpu and self.strided and rows_per_device >= 16)
        return self.settings.get(size, rule)

    def key_data(self, keys: Any, ndim: int) -> np.ndarray:
        """The words of one key, or of one key a row."""
        if ndim == 0 and isinstance(keys, np.ndarray) and keys.dtype == np.uint32:
            if keys.shape != (self.key_words,):
                raise InputError(f"{self.name}: expected {self.key_words} words of a key, got {keys.shape}")
            return keys
        if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            raise InputTypeError(f"{self.name}: expected keys of jax.random.key, got {keys.dtype}")
        if keys.ndim != ndim or str(jax.random.key_impl(keys)) != self.key_impl:
            raise InputError(
                f"{self.name}: expected {ndim}-dimensional {self.key_impl} keys, got {keys.dtype}{keys.shape}"
            )
        return np.asarray(jax.random.key_data(keys))

    @functools.cached_property
    def bytes_per_row(self) -> int:
        """Bytes of one row's inputs and outputs."""
        specs = (*self.endpoint.inputs.values(), *self.outputs.values())
        return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)

    def empty_job(self, key: Any) -> Job:
        """A job without rows, to run batches of others with."""
        inputs = {name: np.empty((0, *spec.shape), spec.dtype) for name, spec in self.endpoint.inputs.items()}
        data = self.key_data(key, key.ndim) if self.needs_keys else None
        return Job(self, 0, inputs, data, 0, is_finite=True)

    def allocate(self, num_rows: int, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays for the outputs of so many rows, all or those named."""
        specs = {name: self.outputs[name] for name in (self.outputs if names is None else names)}
        return {name: aligned_empty((num_rows, *spec.shape), spec.dtype) for name, spec in specs.items()}


class _Dispatched:
    """A piece under way on a backend that runs asynchronously."""

    def __init__(self, executor: Executor, weights: Sequence[Array], piece: Piece):
        self._again = functools.partial(executor._complete, weights, [piece])
        self._halve = functools.partial(executor._halve, piece.job.program, piece.size)
        self._piece = piece
        self._results: dict[str, Array] | None = None
        if piece.size > piece.job.program.max_batch_size:
            return
        try:
            self._results = executor._dispatch(weights, piece.job, piece.start, piece.stop, piece.size)
            for result in self._results.values():
                result.copy_to_host_async()
        except jax.errors.JaxRuntimeError as error:
            self._halve(error)
            self._results = None

    def result(self) -> None:
        """Waits, and copies the outputs to the host."""
        if self._results is None:
            return self._again()
        try:
            self._piece.write(self._results)
        except jax.errors.JaxRuntimeError as error:
            self._halve(error)
            self._again()

    def cancel(self) -> None:
        """What is dispatched runs to its end; nobody waits for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory is too small."""
    return isinstance(error, OutOfDeviceMemoryError) or "RESOURCE_EXHAUSTED" in str(error)


# Devices that exchange parts of weights or activations must all run the same executions in the same order.
_in_order = threading.Lock()


def _holding(batch_sizes: tuple[int, ...], num_rows: int) -> int:
    """The smallest batch size that holds so many rows."""
    return next(size for size in batch_sizes if size >= num_rows)


def _finished(window: deque[tuple[list[Piece], Future[None] | _Dispatched]]) -> list[Piece]:
    pieces, task = window.popleft()
    task.result()
    return pieces


def _groups(pieces: Iterator[Piece], in_flight: int) -> Iterator[list[Piece]]:
    """Pieces for one thread to run in a row: few at first, so that all start, then enough to pay a hop."""
    for size in itertools.chain(*([n] * in_flight for n in (1, 2, 4)), itertools.repeat(8)):
        group = list(itertools.islice(pieces, size))
        if not group:
            return
        yield group


def _common_batches(counts: Sequence[int], batch_sizes: tuple[int, ...]) -> Iterator[int]:
    """Batch sizes that processes with so many rows each run together: each row in that of its own process."""
    largest = batch_sizes[-1]
    yield from [largest] * (max(counts) // largest)
    lasts = {_holding(batch_sizes, count % largest) for count in counts if count % largest}
    yield from sorted(lasts, reverse=True)


def _stand_in(leaf: Array) -> Array:
    """What to trace with in place of a weight that is not read; others' devices cannot be closed over."""
    return leaf if leaf.is_fully_addressable else jnp.zeros(leaf.shape, leaf.dtype)


@functools.cache
def _cores() -> int:
    """How many executions compute at once on the CPU."""
    return min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, 8)


@functools.cache
def _keep_freed_memory() -> None:
    """Makes the C library hold on to the temporary buffers that executions free.

    GNU's gives large blocks back to the system and has the next execution fault every page in anew, until
    it has once seen a block of such a size freed: then it keeps all up to that size, 32 MiB at most. Without
    this a batch of 64 pictures alone takes twice as long.
    """
    np.empty(31 << 20, np.uint8)


@functools.cache
def cpu_options() -> dict[str, bool | str] | None:
    """Compiler options for fusion on the CPU, where XLA knows them.

    They run chains of convolutions, matrix products and elementwise work as one library call. That adds half
    to the rate of strided convolutions from 16 rows on; smaller batches lose latency by it, and matrix
    products that stand alone lose a quarter of their rate (`benchmarks/kernels.py`).
    """
    kinds = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_ELTWISE"
    options: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": kinds}
    try:
        jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), np.float32)).compile(options)
    except jax.errors.JaxRuntimeError:
        return None  # an XLA that does not know them
    return options


@functools.cache
def _pool(in_flight: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(in_flight, thread_name_prefix="artifex")


def _checked_seed(endpoint: str, seed: Any) -> int:
    if not isinstance(seed, int | np.integer):
        raise InputTypeError(f"{endpoint}: seed: expected an integer, got {seed!r}")
    return int(seed) & 0xFFFFFFFF  # as `nnx.Rngs` takes it


_seed_key_data = functools.lru_cache(maxsize=1024)(sample_key_data)


def _is_nnx(model: Any) -> bool:
    if "flax.nnx" not in sys.modules:
        return False  # importing it takes longer than all else that a start from a snapshot does
    from flax import nnx

    return isinstance(model, nnx.Module)


def _aval(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _has_strided_convolution(jaxpr: Any) -> bool:
    from jax.extend.core import ClosedJaxpr  # which imports Pallas

    return any(
        max(equation.params["window_strides"], default=1) > 1
        if equation.primitive.name == "conv_general_dilated"
        else any(
            _has_strided_convolution(p.jaxpr) for p in equation.params.values() if isinstance(p, ClosedJaxpr)
        )
        for equation in jaxpr.eqns
    )


def _as_floating(value: Any, dtype: DTypeLike) -> Any:
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value


_shared: weakref.WeakKeyDictionary[Any, dict[Hashable, Executor]] = weakref.WeakKeyDictionary()
_shared_lock = threading.Lock()


def powers_up_to(batch_size: int) -> tuple[int, ...]:
    """The powers of two below a batch size, and the batch size."""
    powers = itertools.takewhile(lambda size: size < batch_size, (2**n for n in itertools.count()))
    return (*powers, batch_size)


def executor_for(
    model: Model | Executor,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    shard: Shard | None = None,
    dtype: DTypeLike | None = None,
) -> Executor:
    """The executor that calls on the same model share, so that none compiles twice.

    It lives as long as the model.

    Args:
        model: A model with endpoints; an executor is returned as it is.
        batch_size: The largest batch; smaller ones are powers of two. None is as for `Executor`.
        mesh: As for `Executor`.
        shard: As for `Executor`.
        dtype: As for `Executor`.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size: expected a positive integer, got {batch_size!r}")
    if isinstance(model, Executor):
        return model
    batch_sizes = None if batch_size is None else powers_up_to(batch_size)
    settings = batch_size, mesh, shard_identity(shard), None if dtype is None else jnp.dtype(dtype)
    with _shared_lock:
        executors = _shared.setdefault(model, {})
        if settings not in executors:
            executors[settings] = Executor(
                model, mesh=mesh, shard=shard, batch_sizes=batch_sizes, dtype=dtype
            )
        return executors[settings]


def forget_executors(model: Model) -> None:
    """Has the next call on a model make a new executor, such as after tuning."""
    with _shared_lock:
        _shared.pop(model, None)
