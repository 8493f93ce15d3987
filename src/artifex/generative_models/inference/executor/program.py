"""One endpoint with one choice of options: traced once, compiled for each batch size that is asked for."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.endpoint import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.keys import default_key_impl, derived_keys
from artifex.generative_models.inference.cache import without_compilation_cache
from artifex.generative_models.inference.executor.kept import KeptProgram, Trace
from artifex.generative_models.inference.executor.settings import Setting
from artifex.generative_models.inference.executor.weights import Weights

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array


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
        kept: What earlier processes found out.

    Raises:
        InputError: An output has no batch axis.
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
        kept: KeptProgram | None,
    ):
        self.name = name
        self.options = {**endpoint.options, **options}
        self.inputs = {
            name: dataclasses.replace(spec, dtype=np.uint8) if name in uint8 else spec
            for name, spec in endpoint.inputs.items()
        }
        self.place = weights.place
        self.batch_sizes = batch_sizes  # fewer when the device runs out of memory
        self.executables: dict[int, jax.stages.Compiled] = {}
        self.key_impl = default_key_impl()
        self._endpoint = endpoint
        self._uint8 = uint8
        self._dtype = weights.dtype
        self._settings = settings
        self._lock = threading.Lock()
        self._pending: dict[int, Future[jax.stages.Compiled]] = {}
        self._key_words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]
        self.weights = tuple(weights.all)  # those that the endpoint reads, once it is traced
        self.needs_keys = True
        self._kept = kept
        trace = None if kept is None else kept.trace()
        if trace is None:
            trace = self._trace(weights)
            if kept is not None:
                kept.keep_trace(trace)
        self.weights, self.needs_keys = trace.weights, trace.needs_keys
        self.outputs, self._strided = trace.outputs, trace.strided

    @property
    def max_batch_size(self) -> int:
        """The most rows of one execution; falls when the device runs out of memory."""
        return self.batch_sizes[-1]

    @functools.cached_property
    def bytes_per_row(self) -> int:
        """Bytes of one row's inputs and outputs."""
        specs = (*self.inputs.values(), *self.outputs.values())
        return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)

    def batch_size_for(self, num_rows: int) -> int:
        """The smallest batch size that holds so many rows."""
        return next(size for size in self.batch_sizes if size >= num_rows)

    def setting(self, size: int) -> Setting:
        """How to compile a batch size: as tuned, or by a rule that `benchmarks/kernels.py` supports."""
        if self.place.cuts_weights:
            return Setting()  # XLA's fusions do not know the layouts that partitioning gives
        rows_per_device = size // self.place.num_shards
        rule = Setting(fusion=self.place.on_cpu and self._strided and rows_per_device >= 16)
        return self._settings.get(size, rule)

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
            loaded = None if self._kept is None else self._kept.executable(size)
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
        function = self._function(weights, num_rows)
        jitted = jax.jit(function, in_shardings=shardings, out_shardings=self.place.rows)
        options = cpu_options() if self.setting(size).fusion else None
        lowered = jitted.lower(*placed, *rows)
        if self._kept is None:
            return lowered.compile(options)
        with without_compilation_cache():
            executable = lowered.compile(options)
        self._kept.keep_executable(size, executable)
        return executable

    def _function(self, weights: Weights, size: int) -> Callable[..., dict[str, Any]]:
        """The endpoint as a function of flat arguments: weights, keys where it reads them, inputs."""
        placed = enumerate(weights.placed(weights.all))
        unread = {i: _stand_in(leaf) for i, leaf in placed if i not in self.weights}

        def run(*arguments: Any) -> dict[str, Any]:
            given = iter(arguments)
            leaves = unread | dict(zip(self.weights, given, strict=False))
            if self.needs_keys:
                keys = derived_keys(next(given), self.key_impl)
            else:
                keys = jax.random.split(jax.random.key(0, impl=self.key_impl), size)
            inputs = {name: self._prepared(name, next(given)) for name in self.inputs}
            model = weights.rebuild([leaves[i] for i in weights.all])
            outputs = self._endpoint.fn(model, keys, inputs, **self.options)
            if self._dtype is not None:
                outputs = {name: _as_floating(value, jnp.float32) for name, value in outputs.items()}
            return outputs

        return run

    def _prepared(self, name: str, value: Any) -> Any:
        """An input as the endpoint takes it: in the model's range, in the dtype of the computation."""
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
        return value if self._dtype is None else _as_floating(value, self._dtype)

    def _row_avals(self, size: int) -> list[jax.ShapeDtypeStruct]:
        avals = [jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in self.inputs.values()]
        if self.needs_keys:
            avals.insert(0, jax.ShapeDtypeStruct((size, self._key_words + 2), np.uint32))
        return avals

    def _trace(self, weights: Weights) -> Trace:
        """Finds out which weights the endpoint reads, whether it reads its keys, and what it returns."""
        size = 2
        placed = weights.placed(weights.all)
        avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in placed] + self._row_avals(size)
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
