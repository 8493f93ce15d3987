"""What a start found out about an export, kept in the user's cache for the next one.

A start restores the weights, builds the model, traces its endpoints and compiles them; this takes longer
than everything else it does. The cache keeps the weights in flattened order, the endpoints' inputs, what
tracing found out, and the executables. From these an executor runs without the model ever being built, and
without Flax and Orbax being imported.

A snapshot is used only where the export's files, the sources of all modules that were loaded when it was
made, the machine, the versions and the settings are as they were; else it is made anew. Its parts are named
after their SHA-256, so that damaged ones are not loaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Endpoint, TensorSpec
from artifex.generative_models.inference import cache
from artifex.generative_models.inference.executor.program import Trace
from artifex.generative_models.inference.formats import fingerprint

if TYPE_CHECKING:
    from jax.typing import DTypeLike

MAX_WEIGHT_BYTES = 256 << 20  # larger weights are restored from their checkpoint each time

_log = logging.getLogger("artifex")


@dataclass(frozen=True)
class KeptModel:
    """A model in parts, none of which needed Flax.

    Args:
        leaves: Its weights on the device, in flattened order.
        endpoints: Its endpoints, as functions of the flat weights. They build the model when they are traced,
            which calls of kept executables never do.
        build: Makes the NNX module of flat weights.
    """

    leaves: list[jax.Array]
    endpoints: Mapping[str, Endpoint]
    build: Callable[[list[Any]], Any]


class Snapshot:
    """What the cache holds of one export, on this machine and with these settings.

    A cache that cannot be used is one warning; the snapshot is then empty and stays so.

    Args:
        export_dir: The export.
        dtype: Dtype of the computation, as for `Executor`.
        step: Training step; None is the one that the export names.
    """

    def __init__(self, export_dir: Path, dtype: DTypeLike | None = None, step: int | None = None):
        self._dir = export_dir.resolve()
        self.device = DeviceManager().default_device
        self._stats = fingerprint.stats_under(self._dir)
        depends_on = [
            str(self._dir),
            None if dtype is None else str(jnp.dtype(dtype)),
            step,
            fingerprint.environment(self.device),
        ]
        self._name = f"starts/{_digest(json.dumps(depends_on).encode())}"
        self._lock = threading.Lock()
        self._record = self._stored() or {"files": {}, "weights": None, "endpoints": None, "programs": {}}

    def model(self, model_type: str, config: Mapping[str, Any]) -> KeptModel | None:
        """The model in parts, where it is kept.

        Args:
            model_type: The model's family.
            config: The model's config.
        """
        record = self._record["weights"]
        data = None if record is None else _read_part(record["part"])
        if data is None:
            return None
        arrays, offset = [], 0
        for shape, dtype in record["arrays"]:
            array = np.frombuffer(data, jnp.dtype(dtype), int(np.prod(shape)), offset).reshape(shape)
            arrays.append(array)
            offset += array.nbytes
        merge = functools.cache(lambda: _merge(model_type, config))
        endpoints = {
            name: Endpoint(
                _rebuilding(merge, name, kept["module"], kept["qualname"]),
                {input_name: _spec(spec) for input_name, spec in kept["inputs"].items()},
                kept["options"],
                kept["doc"],
            )
            for name, kept in self._record["endpoints"].items()
        }
        leaves = jax.device_put(arrays, self.device)
        return KeptModel(leaves, endpoints, lambda weights: merge()(weights))

    def keep_model(self, model: Any) -> None:
        """Keeps weights and endpoints of the model that was restored from the export.

        Args:
            model: An NNX module; weights that are not plain arrays or take more than `MAX_WEIGHT_BYTES`
                are left out.
        """
        leaves = jax.tree.leaves(_nnx().state(model))
        plain = all(not jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in leaves)
        if not plain or sum(leaf.nbytes for leaf in leaves) > MAX_WEIGHT_BYTES:
            return
        endpoints = {name: _described(endpoint) for name, endpoint in model.endpoints().items()}
        if None in endpoints.values() or fingerprint.stats_under(self._dir) != self._stats:
            return
        data = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)
        arrays = [[leaf.shape, leaf.dtype.name] for leaf in leaves]
        weights = {"part": _write_part(data), "arrays": arrays}
        self.keep(lambda: self._record.update(weights=weights, endpoints=endpoints))

    def program(
        self, endpoint: str, options: Mapping[str, Hashable], settings: Any, uint8: Sequence[str]
    ) -> KeptProgram | None:
        """What is kept of one endpoint; None where its options have no form in JSON.

        Args:
            endpoint: The endpoint's name.
            options: The options that differ from their defaults.
            settings: How its batch sizes are compiled.
            uint8: Names of the pictures that come as uint8.
        """
        try:
            name = json.dumps([endpoint, sorted(options.items()), repr(settings), *uint8])
        except TypeError:
            return None
        return KeptProgram(self, name)

    def _stored(self) -> dict[str, Any] | None:
        """What the cache holds, if it is whole and fits what is there now."""
        content = cache.try_read(self._name)
        if content is None or self._stats is None or content[:64].decode("latin-1") != _digest(content[64:]):
            return None
        record = json.loads(content[64:])
        files = record["files"]
        fits = record["export"] == self._stats and all(
            fingerprint.stat_of(path) == stat for path, stat in files.items()
        )
        return record if fits else None

    @property
    def programs(self) -> dict[str, Any]:
        """The part of the record that tells of programs, by name."""
        return self._record["programs"]

    def keep_programs_of(self, other: Snapshot) -> None:
        """Keeps what another snapshot holds of the same endpoints, for other values of the weights."""
        self.keep(lambda: self.programs.update(other.programs))

    def keep(self, change: Callable[[], None]) -> None:
        """Changes the record and writes it, unless a source changed after it was loaded."""
        with self._lock:
            change()
            self._save()

    def _save(self) -> None:
        files = self._record["files"]
        new = {path: fingerprint.stat_of(path) for path in fingerprint.loaded_files() - files.keys()}
        if self._stats is None or not fingerprint.unchanged_since_start(new.values()):
            return
        files.update(new)
        self._record["export"] = self._stats
        content = json.dumps(self._record).encode()
        cache.try_write(self._name, _digest(content).encode() + content)


class KeptProgram:
    """What a snapshot holds of one endpoint with one choice of options.

    Args:
        snapshot: The snapshot.
        name: The program's name within it.
    """

    def __init__(self, snapshot: Snapshot, name: str):
        self._snapshot = snapshot
        self._name = name

    def trace(self) -> Trace | None:
        """What tracing found out."""
        kept = self._snapshot.programs.get(self._name)
        if kept is None:
            return None
        outputs = {name: _spec(spec) for name, spec in kept["outputs"].items()}
        return Trace(tuple(kept["weights"]), kept["needs_keys"], outputs, kept["strided"])

    def keep_trace(self, trace: Trace) -> None:
        """Keeps what tracing found out."""
        outputs = {name: _described_spec(spec) for name, spec in trace.outputs.items()}
        kept = {**asdict(trace), "outputs": outputs, "executables": {}}
        self._snapshot.keep(lambda: self._snapshot.programs.update({self._name: kept}))

    def executable(self, size: int) -> jax.stages.Compiled | None:
        """The executable of a batch size."""
        part = self._snapshot.programs[self._name]["executables"].get(str(size))
        data = None if part is None else _read_part(part)
        if data is None:
            return None
        device = self._snapshot.device
        try:
            serialized, in_tree, out_tree = pickle.loads(data)
            return serialize_executable.deserialize_and_load(
                serialized, in_tree, out_tree, device.client, [device]
            )
        except jax.errors.JaxRuntimeError as error:
            _log.debug("%s is compiled anew: %s", self._name, error)
            return None

    def keep_executable(self, size: int, executable: jax.stages.Compiled) -> None:
        """Keeps the executable of a batch size, where the backend can serialise it."""
        try:
            data = pickle.dumps(serialize_executable.serialize(executable))
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            # How JAX and its backends say that they cannot serialise this one; it runs all the same.
            _log.debug("%s cannot be kept: %s", self._name, error)
            return
        executables = self._snapshot.programs[self._name]["executables"]
        self._snapshot.keep(lambda: executables.update({str(size): _write_part(data)}))


def _merge(model_type: str, config: Mapping[str, Any]) -> Callable[[list[Any]], Any]:
    """Puts flat weights together to a model of a config."""
    graphdef, state = _nnx().split(abstract_model(model_type, config))
    treedef = jax.tree.structure(state)
    return lambda leaves: _nnx().merge(graphdef, jax.tree.unflatten(treedef, leaves))


def _rebuilding(
    merge: Callable[[], Callable[[list[Any]], Any]], name: str, module: str, qualname: str
) -> Callable[..., dict[str, Any]]:
    """The function of an endpoint, of flat weights instead of the model; it goes by the same name."""

    def fn(leaves: list[Any], keys: Any, inputs: Any, **options: Any) -> dict[str, Any]:
        model = merge()(leaves)
        return model.endpoints()[name].fn(model, keys, inputs, **options)

    fn.__module__, fn.__qualname__ = module, qualname
    return fn


def _described(endpoint: Endpoint) -> dict[str, Any] | None:
    """An endpoint as JSON; None where an option has no form there."""
    if not all(value is None or isinstance(value, str | int | float) for value in endpoint.options.values()):
        return None
    function: Any = endpoint.fn
    return {
        "module": function.__module__,
        "qualname": getattr(function, "__qualname__", type(function).__qualname__),
        "inputs": {name: _described_spec(spec) for name, spec in endpoint.inputs.items()},
        "options": dict(endpoint.options),
        "doc": endpoint.doc,
    }


def _described_spec(spec: TensorSpec) -> list[Any]:
    return [spec.shape, jnp.dtype(spec.dtype).name, spec.default, spec.doc]


def _spec(described: list[Any]) -> TensorSpec:
    shape, dtype, default, doc = described
    return TensorSpec(tuple(shape), dtype, default, doc)


def _read_part(name: str) -> bytes | None:
    data = cache.try_read(f"starts/{name}")
    return data if data is not None and _digest(data) == name else None


def _write_part(data: bytes) -> str:
    name = _digest(data)
    cache.try_write(f"starts/{name}", data)
    return name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _nnx() -> Any:
    from flax import nnx  # the part of a start that this file is there to spare

    return nnx
