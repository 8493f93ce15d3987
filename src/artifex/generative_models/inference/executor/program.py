"""One endpoint with one choice of options: traced once, compiled for each batch size that is asked for."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.convolutions import (
    ConvShape,
    forms_of_convolutions,
    shapes_of_convolutions,
)
from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.core.keys import KEY_IMPL, KEY_WORDS, derived_keys
from artifex.generative_models.core.numerics import using
from artifex.generative_models.core.sampling.loop import Loop
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.cache import without_compilation_cache
from artifex.generative_models.inference.executor import stepping
from artifex.generative_models.inference.executor.kept import KeptProgram, Trace
from artifex.generative_models.inference.executor.settings import Setting
from artifex.generative_models.inference.executor.stepping import Opened
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array


_log = logging.getLogger("artifex")

# An output beside the endpoint's own: of each row of a loop, the step after which it was not finite; and on
# accelerators, whether all that a row takes and gives is, since there the host takes longer to look through
# rows than the device to compute with them.
FINITE = " finite"
FINE, BAD_INPUT, BAD_OUTPUT = stepping.FINE, -2, -3
MANY_CAPTURED = 1 << 16  # bytes of captured constants, from which they are taken to be weights


class Program:
    """One endpoint with one choice of options, and its executables by batch size.

    Args:
        name: The endpoint's name.
        endpoint: The endpoint.
        options: The options that differ from their defaults.
        uint8: Names of the pictures that come as uint8, for the executable to scale.
        weights: Of the model to trace with; rows lie where they do, and have the dtype that they are cast to.
        batch_sizes: The row counts to compile for, ascending.
        settings: How to compile some of them.
        numerics: JAX's settings to trace with.
        kept: What earlier processes found out.
        num_rows: Rows that it will be run with first, where that is known: what tracing for them gives is
            then compiled too.
        trace: What tracing found out for pictures of another dtype; it is the same for all.

    Raises:
        InputError: An output has no batch axis.
        InputTypeError: What it returns are not arrays by name, or what it requires is no output, bool [rows].
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        options: Mapping[str, Hashable],
        uint8: tuple[str, ...],
        weights: Weights,
        *,
        batch_sizes: tuple[int, ...],
        settings: Mapping[int, Setting],
        numerics: Mapping[str, Any],
        kept: KeptProgram | None,
        num_rows: int | None = None,
        trace: Trace | None = None,
    ):
        self.name = name
        self.options = {**endpoint.defaults, **options}
        specs = {name: spec.resolved(self.options) for name, spec in endpoint.inputs.items()}
        self.inputs = {
            name: dataclasses.replace(spec, dtype=np.uint8) if name in uint8 else spec
            for name, spec in specs.items()
        }
        self.place = weights.place
        self.batch_sizes = batch_sizes  # fewer when the device runs out of memory
        self.executables: dict[int, jax.stages.Compiled] = {}
        self._endpoint = endpoint
        self._uint8 = uint8
        self._dtype = weights.dtype
        self._settings = settings
        self._numerics = numerics
        self._lock = threading.Lock()
        self._pending: dict[int, Future[jax.stages.Compiled]] = {}
        self._parts: dict[str, Callable[..., Any]] = {}
        self._compiling_parts = threading.Lock()
        self.weights = tuple(weights.all)  # those that the endpoint reads, once it is traced
        self.needs_keys = True
        self._kept = kept
        self._traced: tuple[int, Any, Any] | None = None  # rows, program and structure of its outputs
        known = None if kept is None else kept.trace()
        if known is None:
            with using(numerics):
                known = trace or self._trace(weights, self._likely_size(num_rows))
            if kept is not None:
                kept.keep_trace(known)
        self.trace = known
        self.weights, self.needs_keys = known.weights, known.needs_keys
        self.outputs, self._strided = known.outputs, known.strided
        self.captured_bytes = known.captured_bytes
        self.requires = endpoint.requires
        if self.requires is not None and self.outputs.get(self.requires[0]) != TensorSpec((), np.bool_):
            raise InputTypeError(
                f"{name}: requires: expected an output that is bool [rows], got {self.requires[0]!r}"
            )

    @property
    def max_batch_size(self) -> int:
        """The most rows of one execution; falls when the device runs out of memory."""
        return self.batch_sizes[-1]

    @functools.cached_property
    def bytes_per_row(self) -> int:
        """Bytes of one row's inputs and outputs."""
        return sum(map(bytes_of, (*self.inputs.values(), *self.outputs.values())))

    @property
    def takes_steps(self) -> bool:
        """Whether it is a loop."""
        return isinstance(self._endpoint.fn, Loop)

    def rows_of_a_piece(self, num_rows: int) -> int:
        """How many rows of so many to run as one batch, at most.

        A row of a loop takes long enough to be worth a thread of its own, so where several executions compute
        at the same time they share even a few rows: all cores work then, which XLA's CPU backend leaves idle.
        """
        if not self.takes_steps or not num_rows:
            return self.max_batch_size
        at_once = self.place.parallel_executions
        num_pieces = -(-num_rows // (self.max_batch_size * at_once)) * at_once
        size = self.batch_size_for(-(-num_rows // num_pieces))
        return -(-num_rows // -(-num_rows // size))  # as many in each of the batches that it takes

    def cuts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where the batches of rows begin and end, and their batch sizes, which may fall in the meantime."""
        num_rows = self.rows_of_a_piece(stop - start)
        while start < stop:
            end = min(start + min(num_rows, self.max_batch_size), stop)
            yield start, end, self.batch_size_for(end - start)
            start = end

    def batch_size_for(self, num_rows: int) -> int:
        """The smallest batch size that holds so many rows."""
        return next(size for size in self.batch_sizes if size >= num_rows)

    def setting(self, size: int) -> Setting:
        """How to compile a batch size: as tuned, or by a rule that `benchmarks/kernels.py` supports."""
        if self.place.cuts_weights:
            return Setting()  # XLA's fusions do not know the layouts that partitioning gives
        rows_per_device = size // self.place.num_shards
        setting = self._settings.get(size, Setting())
        if setting.fusion is not None:
            return setting
        return dataclasses.replace(
            setting, fusion=self.place.on_cpu and self._strided and rows_per_device >= 16
        )

    def executable(self, size: int, weights: Weights, compiled: Callable[[], None]) -> jax.stages.Compiled:
        """Compiles a batch size for such weights, once however many threads ask for it.

        `compiled` is told if it was, rather than taken from what earlier processes kept.
        """
        ready = self.executables.get(size)
        if ready is not None:
            return ready
        with self._lock:
            pending = self._pending.get(size)
            mine = pending is None
            if pending is None:
                pending = self._pending[size] = Future()
        if not mine:
            return pending.result()
        try:
            loaded = None if self._kept is None else self._kept.executable(str(size))
            executable = loaded or self._compile(size, weights)
        except BaseException as error:
            with self._lock:
                del self._pending[size]
            pending.set_exception(error)
            raise
        if loaded is None:
            compiled()
        self.executables[size] = executable
        pending.set_result(executable)
        return executable

    def _compile(self, size: int, weights: Weights) -> jax.stages.Compiled:
        placed = weights.placed(self.weights)
        num_rows = size * self.place.num_parts
        rows = self._row_avals(num_rows)
        shardings = (*[leaf.sharding for leaf in placed], *[self.place.rows] * len(rows))
        function = self._retraced(weights, num_rows, size) or self._function(weights, num_rows)
        jitted = jax.jit(function, in_shardings=shardings, out_shardings=self.place.rows)
        return self._kept_compiled(str(size), size, lambda: jitted.lower(*placed, *rows))

    def _kept_compiled(
        self, part: str, size: int, lower: Callable[[], jax.stages.Lowered]
    ) -> jax.stages.Compiled:
        """Compiles a part of it for a batch size, and keeps that for later processes."""
        setting = self.setting(size)
        options = cpu_options() if setting.fusion else None
        with using(self._numerics), forms_of_convolutions(dict(setting.convolutions)):
            lowered = lower()
        if self._kept is None:
            return lowered.compile(options)
        with without_compilation_cache():
            executable = lowered.compile(options)
        self._kept.keep_executable(part, executable)
        return executable

    def part(
        self, size: int, kind: str, *numbers: int, weights: Weights, compiled: Callable[[], None]
    ) -> Callable[..., Any]:
        """One of the parts of a loop, compiled once for such weights.

        Args:
            size: The batch size.
            kind: Which method of `stepping.Parts` gives it.
            *numbers: What that method takes.
            weights: The weights.
            compiled: Is told if it was, rather than taken from what earlier processes kept.

        Raises:
            InputError: It is no loop.
        """
        name = " ".join(map(str, (size, kind, *numbers)))
        ready = self._parts.get(name)
        if ready is not None:
            return ready
        with self._compiling_parts:
            if name not in self._parts:
                lower = getattr(self.lowered(size, weights), kind)
                loaded = None if self._kept is None else self._kept.executable(name)
                self._parts[name] = loaded or self._kept_compiled(name, size, lambda: lower(*numbers))
                if loaded is None:
                    compiled()
            return self._parts[name]

    def lowered(self, size: int, weights: Weights) -> stepping.Parts:
        """What parts of a loop are compiled from.

        Raises:
            InputError: It is no loop.
        """
        loop = self._endpoint.fn
        if not isinstance(loop, Loop):
            raise InputError(f"{self.name}: it takes no steps; call it, or map it")
        return stepping.Parts(
            loop,
            size,
            opened=lambda num_rows: self._opened(weights, num_rows),
            named=lambda found: self._named(found, size),
            weights=weights.placed(self.weights),
            row_avals=self._row_avals,
            rows=self.place.rows,
            everywhere=self.place.everywhere,
        )

    def _named(self, found: Any, num_rows: int) -> dict[str, Any]:
        """The outputs that an endpoint returned, by name, float32 where it is cast to something else."""
        outputs = _by_name(self.name, found, num_rows)
        if self._dtype is None:
            return outputs
        return {name: _as_floating(value, jnp.float32) for name, value in outputs.items()}

    def _opened(self, weights: Weights, size: int) -> Opened:
        """What flat arguments stand for: weights, keys where the endpoint reads them, and inputs."""
        others = [i for i in weights.all if i not in self.weights]
        unread = dict(zip(others, map(_stand_in, weights.placed(others)), strict=True))

        def opened(*arguments: Any) -> tuple[Any, Any, dict[str, Any], list[Any]]:
            given = iter(arguments)
            leaves = unread | dict(zip(self.weights, given, strict=False))
            if self.needs_keys:
                keys = derived_keys(next(given))
            else:
                keys = jax.random.split(jax.random.key(0, impl=KEY_IMPL), size)
            inputs = {name: self._prepared(name, next(given)) for name in self.inputs}
            return weights.rebuild([leaves[i] for i in weights.all]), keys, inputs, list(given)

        return opened

    def _function(self, weights: Weights, size: int) -> Callable[..., dict[str, Any]]:
        """The endpoint as a function of flat arguments."""
        opened = self._opened(weights, size)

        def run(*arguments: Any) -> dict[str, Any]:
            model, keys, inputs, _ = opened(*arguments)
            found, broken = stepping.run(self._endpoint.fn, model, keys, inputs, self.options)
            outputs = self._named(found, size)
            if self.place.on_cpu:
                return outputs if broken is None else {**outputs, FINITE: broken}
            codes = _where_finite(outputs, jnp.full(size, FINE, jnp.int32), BAD_OUTPUT)
            if broken is not None:
                codes = jnp.where(broken == FINE, codes, broken)
            return {**outputs, FINITE: _where_finite(inputs, codes, BAD_INPUT)}

        return run

    def _retraced(self, weights: Weights, num_rows: int, size: int) -> Callable[..., dict[str, Any]] | None:
        """The endpoint as `_function` gives it, of what was traced; None where that is something else."""
        traced = self._traced  # which a thread that compiles another batch size may take meanwhile
        if traced is None or traced[0] != num_rows or self.setting(size).convolutions:
            return None
        _, closed, structure = traced
        self._traced = None  # which is not needed again
        from jax.extend.core import jaxpr_as_fun  # which imports Pallas, as tracing did

        run = jaxpr_as_fun(closed)
        others = [i for i in weights.all if i not in self.weights]
        unread = dict(zip(others, map(_stand_in, weights.placed(others)), strict=True))

        def function(*arguments: Any) -> dict[str, Any]:
            given = iter(arguments)
            leaves = unread | dict(zip(self.weights, given, strict=False))
            keys = [] if self.needs_keys else [jnp.zeros((num_rows, KEY_WORDS + 2), np.uint32)]
            outputs = run(*[leaves[i] for i in weights.all], *keys, *given)
            return jax.tree.unflatten(structure, outputs)

        return function

    def _likely_size(self, num_rows: int | None) -> int:
        """Rows of the batches that so many run in, or of the largest; one would hide a missing batch axis."""
        rows = self.max_batch_size
        if isinstance(num_rows, int) and num_rows > 0:
            rows = min(num_rows, self.rows_of_a_piece(num_rows))
        return max(self.batch_size_for(rows) * self.place.num_parts, 2)

    def convolution_shapes(self, size: int, weights: Weights) -> set[ConvShape]:
        """The shapes of its 3×3 convolutions in a batch size."""
        placed = weights.placed(self.weights)
        avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in placed]
        with using(self._numerics), shapes_of_convolutions() as shapes:
            jax.eval_shape(self._function(weights, size), *avals, *self._row_avals(size))
        return shapes

    def _prepared(self, name: str, value: Any) -> Any:
        """An input as the endpoint takes it: in the model's range, in the dtype of the computation.

        Times, labels and sizes stay as they are, since 999 is not 1000 in few bits, and all that a loop reads
        at every step, such as a sampler's coefficients.
        """
        spec = self._endpoint.inputs[name]
        if name in self._uint8 and spec.image_range is not None:
            low, high = spec.image_range

            def scale(levels: Any) -> Any:
                return levels.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)

            if self.place.on_cpu:  # where a lookup is free, and arithmetic slows what XLA fuses it with
                scaled = jnp.asarray(scale(np.arange(256))).at[value].get(mode="promise_in_bounds")
            else:
                scaled = scale(value)
            value = scaled.astype(spec.dtype)
        if self._dtype is None or spec.shape == () or self.takes_steps:
            return value
        return _as_floating(value, self._dtype)

    def _row_avals(self, size: int) -> list[jax.ShapeDtypeStruct]:
        avals = [jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in self.inputs.values()]
        if self.needs_keys:
            avals.insert(0, jax.ShapeDtypeStruct((size, KEY_WORDS + 2), np.uint32))
        return avals

    def _trace(self, weights: Weights, size: int) -> Trace:
        """Finds out which weights the endpoint reads, whether it reads its keys, and what it returns."""
        avals = [*weights.avals(), *self._row_avals(size)]
        closed, shapes = jax.make_jaxpr(self._function(weights, size), return_shape=True)(*avals)
        self._traced = size, closed, jax.tree.structure(shapes)
        shapes.pop(FINITE, None)
        captured = sum(
            constant.nbytes
            for program in _programs(closed)
            for constant in program.consts
            if isinstance(constant, jax.Array | np.ndarray)
        )
        if captured >= MANY_CAPTURED:
            _log.warning(
                "%s: %.1f MB of arrays are no part of the model: a function has closed over them, so they "
                "become a part of each program; what is put in their place is not seen",
                self.name,
                captured / 1e6,
            )
        read = {id(var) for var in closed.jaxpr.outvars}
        for equation in reversed(closed.jaxpr.eqns):
            if any(id(var) in read for var in equation.outvars):
                read.update(id(var) for var in equation.invars)
        is_read = [id(var) in read for var in closed.jaxpr.invars]
        return Trace(
            weights=tuple(i for i in weights.all if is_read[i]),
            needs_keys=is_read[len(weights.all)],
            outputs={name: TensorSpec(value.shape[1:], value.dtype) for name, value in shapes.items()},
            strided=_is_mostly_strided(closed),
            captured_bytes=captured,
        )


def bytes_of(spec: TensorSpec) -> int:
    """Bytes of a row."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


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


def _stand_in(leaf: Array) -> Array:
    """What to trace with in place of a weight that is not read; others' devices cannot be closed over."""
    return leaf if leaf.is_fully_addressable else jnp.zeros(leaf.shape, leaf.dtype)


def _by_name(endpoint: str, outputs: Any, num_rows: int) -> dict[str, Any]:
    """What an endpoint returned, if that is arrays by name, of so many rows."""
    if not isinstance(outputs, Mapping):
        wrong = _described(outputs)
    elif not outputs:
        wrong = "none"
    else:
        wrong = ", ".join(
            f"{name!r}: {_described(value)}"
            for name, value in outputs.items()
            if not isinstance(name, str) or not _is_array(value)
        )
    if wrong:
        raise InputTypeError(
            f"{endpoint}: expected the endpoint to return a dict of arrays by name, got {wrong}"
        )
    short = [f"{name} {value.shape}" for name, value in outputs.items() if value.shape[:1] != (num_rows,)]
    if short:
        raise InputError(
            f"{endpoint}: outputs have no leading batch axis: "
            f"expected {num_rows} rows, got {', '.join(short)}"
        )
    return dict(outputs)


def _is_array(value: Any) -> bool:
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return isinstance(value, jax.Array | np.ndarray) and not is_key


def _described(value: Any) -> str:
    return f"array of {value.dtype}" if isinstance(value, jax.Array) else type(value).__name__


def _where_finite(arrays: Mapping[str, Any], codes: Array, otherwise: int) -> Array:
    """The codes of rows, with another in place of those that have a number which is not finite."""
    for value in arrays.values():
        if jnp.issubdtype(value.dtype, jnp.inexact):
            finite = jnp.isfinite(value).reshape(len(codes), -1).all(axis=1)
            codes = jnp.where(finite, codes, otherwise)
    return codes


def _programs(closed: Any) -> Iterator[Any]:
    """A traced program, and those within it: of loops, of branches, and of compiled functions."""
    from jax.extend.core import ClosedJaxpr  # which imports Pallas

    yield closed
    for equation in closed.jaxpr.eqns:
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, tuple | list) else [parameter]:
                if isinstance(part, ClosedJaxpr):
                    yield from _programs(part)


def _is_mostly_strided(closed: Any) -> bool:
    """Whether strided convolutions are at least half of what a traced program multiplies.

    One that only cuts pictures into the patches of a transformer is not: the library that is quick at strided
    convolutions is slow at the products that follow (`benchmarks/kernels.py`).
    """
    strided = other = 0
    for program in _programs(closed):
        for equation in program.jaxpr.eqns:
            flops = _flops(equation)
            is_strided = max(equation.params.get("window_strides") or (), default=1) > 1
            strided, other = (strided + flops, other) if is_strided else (strided, other + flops)
    return strided > 0 and strided >= other


def _flops(equation: Any) -> int:
    """Multiplications and additions of a convolution or a matrix product."""
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    return 0


def _as_floating(value: Any, dtype: DTypeLike) -> Any:
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
