"""The executor: runs a model's endpoints compiled, on batches of any size, on any number of devices.

Nothing outside this package compiles, pads, shards, places or transfers.

A job is cut into *pieces* of at most the largest batch size; each is padded up to the smallest batch
size that holds it and runs as one call of an executable compiled ahead of time. Weights are arguments
of the executable, in the order of the flattened model, and live on the device already. Row *i* of a
job carries its key and its row number into the executable, which derives the row's own key from them;
so what a row gives does not depend on its neighbours, the padding, the piece or the device.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from artifex.generative_models.core.convolutions import ConvShape
from artifex.generative_models.core.endpoint import Endpoint, Model
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import RowKeys
from artifex.generative_models.core.sharding import Shard
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.executor.catalog import Catalog
from artifex.generative_models.inference.executor.cost import Cost, cost_of
from artifex.generative_models.inference.executor.current import Current
from artifex.generative_models.inference.executor.jobs import (
    Inputs,
    Job,
    Late,
    Piece,
    checked,
    row_keys,
    without_rows,
)
from artifex.generative_models.inference.executor.kept import KeptPrograms
from artifex.generative_models.inference.executor.lockstep import Lockstep
from artifex.generative_models.inference.executor.overlap import Runner
from artifex.generative_models.inference.executor.placement import Placement
from artifex.generative_models.inference.executor.program import FINITE, Program
from artifex.generative_models.inference.executor.settings import Tuned
from artifex.generative_models.inference.executor.slot_batch import SlotBatch
from artifex.generative_models.inference.executor.stepping import Progress, side_by_side
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Key

Specs = Mapping[str, TensorSpec]

_CORE_ROWS = 8  # of a loop that one core has enough of
_FEW_ROWS = 2  # of a loop, with which one core is nearly as fast a row


class Executor:
    """Runs the endpoints of one model.

    Calls may come from any number of threads.

    Args:
        model: An NNX module, any pytree of arrays, or None for endpoints that are plain functions.
            What is replaced in it is seen by the next call, unlike a number within a NumPy array.
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
        dtype: Casts floating-point weights and inputs for the computation, scalars left out; outputs come
            back as float32.
        tuned: Whether to use what `tune` found out on this kind of device; or results to use, by endpoint.
            Those in use are in the attribute of that name.
        kept: What earlier processes found out about the same model; what this one does goes there too.

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
        kept: KeptPrograms | None = None,
    ):
        self.mesh = mesh
        self.dtype = dtype
        self._place = Placement(mesh, shard)
        self._current = Current(
            model, endpoints, self._place, dtype, batch_sizes=batch_sizes, tuned=tuned, kept=kept
        )

    @property
    def _catalog(self) -> Catalog:
        return self._current.catalog

    @property
    def _runner(self) -> Runner:
        return self._current.runner

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints by name."""
        return self._catalog.endpoints

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

        When the rows are exactly one batch size the outputs stay on the device; otherwise, and where rows of
        a loop are spread over cores, they are put together on the host, since slicing on a device would
        compile anew for each length.

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
            NonFiniteError: The model computed a NaN or an infinity.
            OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
        """
        if self._place.spans_processes:  # of which this one may have no rows
            empty = num_rows == 0 or any(
                np.ndim(value) and not len(value) for value in (inputs or {}).values()
            )
            chunks = [] if empty else [(inputs, num_rows)]
            results = list(self._stream(endpoint, chunks, options, key=key, keys=keys))
            if not results:
                catalog = self._catalog
                results = [without_rows(catalog.find(endpoint, options), catalog.weights).allocate()]
            return {name: self.place(value) for name, value in results[0].items()}
        catalog = self._catalog
        program = catalog.find(endpoint, options, inputs, num_rows)
        job = checked(program, catalog.weights, inputs, num_rows, key=key, keys=keys).take_weights()
        if job.num_rows in program.batch_sizes and program.rows_of_a_piece(job.num_rows) >= job.num_rows:
            try:
                placed = self._runner.dispatch(job, 0, job.num_rows, job.num_rows, stay=True)
                job.check_results(0, job.num_rows, placed)
                return {name: placed[name] for name in program.outputs}
            except jax.errors.JaxRuntimeError as error:
                self._runner.halve(program, job.num_rows, error)
        outputs = self._runner.run(job)
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
            InputError, InputTypeError, NonFiniteError, OutOfDeviceMemoryError: As for a call.
        """
        given = ((None, chunk) if isinstance(chunk, int) else (chunk, None) for chunk in chunks)
        return self._stream(endpoint, given, options, key=key, first_row=first_row)

    def iterate(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        every: int = 1,
        key: Key[Array, ""] | None = None,
        keys: Key[Array, " rows"] | None = None,
        num_rows: int | None = None,
        **options: Hashable,
    ) -> Iterator[Progress]:
        """Runs an endpoint that takes steps, a few at a time, with a look at each row in between.

        Rows give what a call gives. Whoever stops to iterate stops the work, but for the steps under way.
        Inputs are not copied: leave them as they are until the last look.

        Args:
            endpoint: Name of the endpoint; it must be a loop.
            every: Steps between two looks, from 1.

        The others, and errors, are those of a call; there may be as many rows as the largest batch.
        """
        if every < 1:
            raise InputError(f"every: expected at least 1, got {every}")
        if self._place.spans_processes:
            raise InputError("a mesh of several processes runs whole jobs; look at samples in one process")
        catalog = self._catalog
        program = catalog.find(endpoint, options, inputs, num_rows)
        job = checked(program, catalog.weights, inputs, num_rows, key=key, keys=keys).take_weights()
        if job.num_rows > program.max_batch_size:
            raise InputError(
                f"{endpoint}: {job.num_rows} rows to look at, and batches have {program.max_batch_size}"
            )
        job.check_finite(0, job.num_rows)
        pieces = list(job.pieces({}))
        runs = [
            catalog.stepped(program, piece.size).run(
                self._on_device(piece), piece.stop - piece.start, piece.size, every
            )
            for piece in pieces
        ]
        for looks in side_by_side(runs):
            parts = []
            for piece, (found, broken, done) in zip(pieces, looks, strict=True):
                job.check_results(piece.start, piece.stop, {**found.outputs, FINITE: broken}, done)
                parts.append(found)
            yield Progress.joined(parts)

    def slots(self, job: Job, width: int) -> SlotBatch:
        """Places for so many rows of a loop, with the weights that a job has taken; no row is there yet.

        Args:
            job: Any job of the loop, with its weights.
            width: One of the batch sizes of its endpoint.
        """
        return SlotBatch(
            job.program,
            job.weights,
            functools.partial(self._catalog.part, job.program),
            self._runner.dispatching,
            width,
        )

    def programs(self, endpoint: str, **options: Hashable) -> list[Program]:
        """What runs an endpoint, for pictures of each of the dtypes that it takes.

        Raises:
            InputError: An unknown endpoint or option.
        """
        return self._catalog.forms(endpoint, options)

    def slot_widths(self, program: Program) -> tuple[int, ...]:
        """The row counts of batches that rows of a loop join and leave, ascending.

        They are its batch sizes. Where it was not tuned, on a CPU, they are those up to 8: a core is busy
        with so many, and each row more makes all of them slower.
        """
        sizes = program.batch_sizes
        if not self._place.on_cpu or program.name in self.tuned:
            return sizes
        return tuple(size for size in sizes if size <= _CORE_ROWS) or sizes[:1]

    def rows_at_once(self, program: Program, num_rows: int) -> int:
        """How many rows of a loop to run side by side, of so many that are there for one execution.

        They are all that find a place. On a CPU a step takes the longer the wider it is, so as long as there
        are fewer rows than a core has enough of, they are few, and done the sooner.
        """
        widths = self.slot_widths(program)
        if not self._place.on_cpu or num_rows >= min(_CORE_ROWS, widths[-1]):
            return min(num_rows, widths[-1])
        return min(num_rows, next((size for size in widths if size >= _FEW_ROWS), widths[-1]))

    @property
    def usual_width(self) -> int:
        """One row count for everything: the largest, or where a core is busy with it."""
        sizes = self.batch_sizes
        few = [size for size in sizes if size <= _CORE_ROWS] if self._place.on_cpu else []
        return max(few or sizes)

    def prepare(self, program: Program, size: int) -> bool:
        """Compiles a batch size of a program; whether it fits the device, and so may be used.

        Raises:
            OutOfDeviceMemoryError: Not even the smallest does.
        """
        return self._runner.prepare(program, size, self._catalog.weights)

    def prepare_slots(self, program: Program, width: int, ready: Sequence[int]) -> bool:
        """Compiles what slots of a width are run with; whether they fit the device, and so may be used.

        Args:
            program: A loop.
            width: One of its batch sizes.
            ready: Widths that were prepared before, ascending: rows can move to and from those beside it.

        Raises:
            OutOfDeviceMemoryError: Not even the smallest do.
        """
        return self._current.prepare_slots(program, width, ready)

    def narrow(self, program: Program, width: int, error: Exception) -> None:
        """Remembers that a width does not fit the device; raises any other failure as it is.

        Raises:
            OutOfDeviceMemoryError: There is no smaller one.
        """
        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise error
        self._runner.halve(program, width, error)

    def recheck(self, job: Job) -> Job:
        """A checked call, for the model with the parts that it has now."""
        return self._current.recheck(job)

    def check(
        self,
        endpoint: str,
        inputs: Inputs | None = None,
        *,
        key: Key[Array, ""] | None = None,
        keys: Key[Array, " rows"] | RowKeys | None = None,
        seed: int | Sequence[int] | None = None,
        num_rows: int | None = None,
        first_row: int = 0,
        values: bool = True,
        late: Late | None = None,
        **options: Hashable,
    ) -> Job:
        """Checks a call that is to run later, merged with others: what queues are made of.

        Arguments and errors are those of a call, and a few more. Inputs are not copied: leave them as they
        are until they ran.

        Args:
            keys: One key a row, or what they are derived from.
            seed: An integer in place of a key, which is then that of `nnx.Rngs(seed).sample()`; or one a
                row, each of which is then sample 0 of its seed.
            first_row: Number of the first row, where this call is a part of a longer job.
            values: Whether to look for values that are not finite; else that is for `Job.check_finite`.
            late: Inputs that are made when their rows are about to run.
        """
        if self._place.spans_processes:
            raise InputError(
                "a mesh of several processes runs whole jobs, which each of them calls for; queues are of one"
            )
        given: dict[str, Any] = {"key": key, "keys": keys, "seed": seed, "first_row": first_row, "late": late}
        job = self._current.check(endpoint, options, inputs, num_rows, given).cast()
        if values:
            job.check_finite(0, job.num_rows)
            job.is_finite = True
        return job

    def run(self, job: Job) -> dict[str, np.ndarray]:
        """Runs a job of at most one batch and waits for it.

        Args:
            job: What `check` or `merged` gives.

        Returns:
            Arrays [at least rows, ...] by name; not to be written to.

        Raises:
            InputError: A value that is not finite.
            NonFiniteError: The model computed a NaN or an infinity.
            OutOfDeviceMemoryError: Not even the smallest batch size fits the device.
        """
        job = self._current.recheck(job).take_weights()
        program = job.program
        if job.num_rows <= program.max_batch_size:
            size = program.batch_size_for(job.num_rows)
            try:
                results = self._runner.dispatch(job, 0, job.num_rows, size)
                job.check_results(0, job.num_rows, results)
                return {name: np.asarray(results[name]) for name in program.outputs}
            except jax.errors.JaxRuntimeError as error:
                self._runner.halve(program, size, error)
        outputs = job.allocate()
        self._runner.complete(job.pieces(outputs))
        return outputs

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The row counts that endpoints are compiled for, ascending."""
        return self._catalog.all_batch_sizes

    def batch_sizes_of(self, endpoint: str) -> tuple[int, ...]:
        """The row counts that one endpoint runs in, ascending; fewer when the device runs out of memory.

        Raises:
            InputError: An unknown endpoint.
        """
        return self._catalog.find(endpoint, {}).batch_sizes

    def batch_sizes_for(self, endpoint: str, num_rows: int) -> set[int]:
        """The row counts that a call with so many rows runs in.

        Raises:
            InputError: An unknown endpoint.
        """
        return {size for _, _, size in self._catalog.find(endpoint, {}).cuts(0, num_rows)}

    @property
    def tuned(self) -> dict[str, Tuned]:
        """What tuning found out and is in use, by endpoint; it may be changed, not replaced."""
        return self._current.tuned

    def captured_bytes(self, endpoint: str) -> int:
        """Bytes of arrays that an endpoint's function has closed over."""
        return self._catalog.find(endpoint, {}).captured_bytes

    def reads_random_state(self, endpoint: str) -> bool:
        """Whether an endpoint reads the state of a random number generator within the model."""
        catalog = self._catalog
        return catalog.weights.has_random_state(catalog.find(endpoint, {}).weights)

    def row_bytes(self, endpoint: str) -> int:
        """Bytes of one row's inputs and outputs."""
        return self._catalog.find(endpoint, {}).bytes_per_row

    @property
    def parallel_executions(self) -> int:
        """How many batches compute at the same time: one a core on the CPU, else one."""
        return self._runner.parallel_executions

    @property
    def executions_in_flight(self) -> int:
        """How many batches to have under way: those that compute, and one that is copied or queued."""
        return self._runner.executions_in_flight

    def warmup(
        self,
        endpoints: Iterable[str] | None = None,
        batch_sizes: Iterable[int] | None = None,
        *,
        image_dtype: DTypeLike | None = None,
    ) -> dict[str, dict[int, float]]:
        """Compiles ahead of the first call; after it, no number of rows compiles anything.

        Batch sizes that take more memory than is free, by the compiler's account, are left out from then on.

        Args:
            endpoints: Names of the endpoints, with their default options; None is all.
            batch_sizes: Which of the executor's batch sizes; None is all of each endpoint.
            image_dtype: Dtype that pictures will have, where uint8 ones are taken too; None is both.

        Returns:
            Seconds that each batch size of each endpoint took to compile; 0 where it was there.
        """
        catalog = self._catalog
        wanted = None if batch_sizes is None else catalog.known(batch_sizes)
        return {
            name: self._current.warm(name, wanted, image_dtype)
            for name in (catalog.endpoints if endpoints is None else endpoints)
        }

    def spec(self, endpoint: str, **options: Hashable) -> tuple[Specs, Specs]:
        """The inputs and outputs of an endpoint, one row each; traces it for pictures of all dtypes."""
        program = self._catalog.forms(endpoint, options)[0]
        return program.inputs, program.outputs

    def draws(self, endpoint: str, **options: Hashable) -> bool:
        """Whether an endpoint draws random numbers, so that its calls need a key or a seed."""
        return self._catalog.find(endpoint, options).needs_keys

    def takes_steps(self, endpoint: str, **options: Hashable) -> bool:
        """Whether an endpoint is a loop, so that its rows have previews."""
        return self._catalog.find(endpoint, options).takes_steps

    def cost(self, endpoint: str, batch_size: int, **options: Hashable) -> Cost:
        """What one execution takes, by the compiler's own account; compiles, but runs nothing.

        Args:
            endpoint: Name of the endpoint.
            batch_size: One of the executor's.
            **options: Static options of the endpoint.

        Raises:
            InputError: An unknown endpoint, option or batch size.
        """
        catalog = self._catalog
        catalog.known([batch_size])
        program = catalog.find(endpoint, options)
        weight_bytes = sum(leaf.nbytes for leaf in catalog.weights.placed(program.weights))
        return cost_of(catalog.executable(program, batch_size), weight_bytes)

    def convolution_shapes(self, endpoint: str, batch_size: int) -> set[ConvShape]:
        """The shapes of an endpoint's 3×3 convolutions in a batch size, with the default options."""
        catalog = self._catalog
        return catalog.find(endpoint, {}).convolution_shapes(batch_size, catalog.weights)

    def tuning_name(self, endpoint: str) -> str:
        """Name of the cache entry that keeps what `tune` found out about an endpoint."""
        catalog = self._catalog
        return self._current.tuning_name(catalog.endpoints[endpoint], catalog.weights)

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
        return self._place.rows_of_this_process(num_rows, self.batch_sizes_of(endpoint)[-1])

    @property
    def compile_count(self) -> int:
        """How many executables were compiled so far."""
        return self._catalog.compile_count

    @property
    def weights(self) -> list[Array]:
        """The weights on the device, in the order of the flattened model."""
        weights = self._catalog.weights
        return weights.placed(weights.all)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return self._catalog.weights.num_parameters

    def swap(self, model: Any) -> None:
        """Puts new weights under the same executables; calls under way finish with the old ones.

        Args:
            model: A model of the same structure, shapes and dtypes.

        Raises:
            InputError: It differs.
        """
        weights = Weights(model, self._place, self.dtype)
        ours = self._catalog.weights
        if weights.signature() != ours.signature():
            raise InputError(
                "swap: the new model differs in structure, shapes or dtypes; make a new Executor"
            )
        ours.swap(weights)

    def follow(self, build: Callable[[list[Any]], Any]) -> Any:
        """Builds an NNX module of the flat weights, and reads them from it from now on.

        Args:
            build: Makes it of the arrays that the executor got, in the order of the flattened model.
        """
        return self._current.follow(build)

    def reuse_executables(self, other: Executor) -> bool:
        """Takes over what another executor compiled, if that was for the same weights but for their values.

        What is queued there finishes with its own weights, unlike after `swap`.

        Args:
            other: An executor of the same endpoints: the same functions with the same inputs and options.

        Returns:
            Whether it fits: structure, shapes, dtypes, devices and batch sizes are the same.
        """
        catalogs = self._catalog, other._catalog
        ours, theirs = (
            (c.weights.signature(), e.dtype, e._place.rows, e._place.shard, c.batch_sizes, e.tuned)
            for e, c in zip((self, other), catalogs, strict=True)
        )
        if ours != theirs:
            return False
        catalogs[0].share(catalogs[1])
        return True

    def remade(
        self, *, batch_sizes: Sequence[int] | None = None, tuned: bool | Mapping[str, Tuned] = True
    ) -> Executor:
        """An executor of the same model, on the same devices and with the same weights, in other batches."""
        made = copy.copy(self)
        made._current = self._current.remade(batch_sizes, tuned)
        return made

    def __repr__(self) -> str:
        catalog = self._current.opened
        kinds = ", ".join(sorted({device.device_kind for device in self._place.devices}))
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"Executor({', '.join(catalog.endpoints)}; batches of {sizes} rows; "
            f"{len(self._place.devices)} x {kinds}; {catalog.compile_count} compiled)"
        )

    def _on_device(self, piece: Piece) -> list[Array]:
        """All that an executable takes for a piece, put where it takes it from however often."""
        arguments = piece.job.arguments(piece.start, piece.stop, piece.size)
        return [*piece.job.weights, *jax.device_put(arguments, self._place.rows)]

    def _stream(
        self,
        endpoint: str,
        chunks: Iterable[tuple[Inputs | None, int | None]],
        options: Mapping[str, Hashable],
        *,
        key: Any = None,
        keys: Any = None,
        first_row: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of chunks, each of inputs or of a number of rows."""
        catalog = self._catalog
        weights_of = functools.cache(
            lambda program: catalog.weights.placed(program.weights)
        )  # as they are now

        def jobs() -> Iterator[Job]:
            row = first_row or 0
            for inputs, num_rows in chunks:
                program = catalog.find(endpoint, options, inputs, num_rows)
                job = checked(program, catalog.weights, inputs, num_rows, key=key, keys=keys, first_row=row)
                job.weights = weights_of(program)
                row += job.num_rows
                yield job

        if not self._place.spans_processes:
            yield from self._runner.outputs(piece for job in jobs() for piece in job.pieces(job.allocate()))
            return
        forms = catalog.forms(endpoint, options)
        together = Lockstep(self._place, forms, catalog.weights)
        with together.failing_together():
            any_keys = None
            if forms[0].needs_keys:
                any_keys = row_keys(forms[0], None, key=key, keys=keys)
            pieces = together.pieces(jobs(), any_keys, weights_of, numbered=first_row is not None)
            yield from self._runner.outputs(pieces)
