"""What a start found out about an export, kept in the user's cache for the next one.

A start restores the weights, builds the model, traces its endpoints and compiles them; this takes longer
than everything else it does. The cache keeps the weights in flattened order, the endpoints' inputs, what
callers say to them, what tracing found out, and the executables, those of loops in parts too. From these an
executor runs without the model ever being built, and without Flax and Orbax being imported.

A snapshot is used only where the export's files, the sources of all modules that were loaded when it was
made, the machine, the versions and the settings are as they were; else it is made anew. Its parts are named
after their SHA-256, so that damaged ones are not loaded.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.config import abstract_model, installed_class
from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.directories import real_path
from artifex.generative_models.core.endpoint import Endpoint, asking, names_of
from artifex.generative_models.core.fields import Preparation
from artifex.generative_models.core.sampling.loop import Loop
from artifex.generative_models.core.specs import Option
from artifex.generative_models.inference import cache
from artifex.generative_models.inference.executor.kept import (
    KeptPrograms,
    described_spec,
    digest_of,
    read_part,
    spec_of,
    write_part,
)
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
        variant: Of the weights of diffusers.
    """

    def __init__(
        self,
        export_dir: Path,
        dtype: DTypeLike | None = None,
        step: int | None = None,
        variant: str | None = None,
    ):
        self._dir = real_path(export_dir)
        self.device = DeviceManager().default_device
        self._stats = fingerprint.stats_under(self._dir)
        depends_on = [
            str(self._dir),
            None if dtype is None else str(jnp.dtype(dtype)),
            step,
            variant,
            fingerprint.environment(self.device),
        ]
        self._name = f"starts/{digest_of(json.dumps(depends_on).encode())}"
        self._lock = threading.Lock()
        self._record = self._stored() or {"files": {}, "weights": None, "endpoints": None, "programs": {}}

    @property
    def programs(self) -> KeptPrograms:
        """What it holds of the programs."""
        return KeptPrograms(self._record["programs"], self.device, self._keep)

    def model(self, model_type: str, config: Mapping[str, Any]) -> KeptModel | None:
        """The model in parts, where it is kept."""
        record = self._record["weights"]
        data = None if record is None else read_part(record["part"])
        if data is None:
            return None
        arrays, offset = [], 0
        for shape, dtype in record["arrays"]:
            array = np.frombuffer(data, jnp.dtype(dtype), int(np.prod(shape)), offset).reshape(shape)
            arrays.append(array)
            offset += array.nbytes
        abstract: Callable[[], Any] = functools.cache(lambda: abstract_model(model_type, config))
        merge = functools.cache(lambda: _merge(abstract()))
        endpoints = {}
        for name, kept in self._record["endpoints"].items():
            says = _preparation(kept["says"])
            if says is None and kept["says"] is not None:
                return None
            names = kept["module"], kept["qualname"]
            fn: Any = _rebuilding(merge, asking(name, *names))
            if kept["is_loop"]:
                fn = _RebuildingLoop(merge, functools.partial(_loop_of, abstract, name), *names)
            endpoints[name] = Endpoint(
                fn,
                {input_name: spec_of(spec) for input_name, spec in kept["inputs"].items()},
                {option: _option(facts) for option, facts in kept["options"].items()},
                kept["doc"],
                says,
                kept["ahead"],
                kept["requires"] and tuple(kept["requires"]),
            )
        leaves = jax.device_put(arrays, self.device)
        return KeptModel(leaves, endpoints, lambda weights: merge()(weights))

    def keep_model(self, model: Any) -> None:
        """Keeps weights and endpoints of the model that was restored from the export.

        One whose weights are not plain arrays or take more than `MAX_WEIGHT_BYTES` is left out.
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
        weights = {"part": write_part(data), "arrays": arrays}
        self._keep(lambda: self._record.update(weights=weights, endpoints=endpoints))

    def _stored(self) -> dict[str, Any] | None:
        """What the cache holds, if it is whole and fits what is there now."""
        content = cache.try_read(self._name)
        if (
            content is None
            or self._stats is None
            or content[:64].decode("latin-1") != digest_of(content[64:])
        ):
            return None
        record = json.loads(content[64:])
        files = record["files"]
        fits = record["export"] == self._stats and all(
            fingerprint.stat_of(path) == stat for path, stat in files.items()
        )
        return record if fits else None

    def _keep(self, change: Callable[[], None]) -> None:
        """Changes the record and writes it, unless a source changed after it was loaded."""
        with self._lock:
            change()
            files = self._record["files"]
            new = {path: fingerprint.stat_of(path) for path in fingerprint.loaded_files() - files.keys()}
            if self._stats is None or not fingerprint.unchanged_since_start(new.values()):
                return
            files.update(new)
            self._record["export"] = self._stats
            content = json.dumps(self._record).encode()
            cache.try_write(self._name, digest_of(content).encode() + content)


def _merge(abstract: Any) -> Callable[[list[Any]], Any]:
    """Puts flat weights together to a model, of one without weights."""
    graphdef, state = _nnx().split(abstract)
    treedef = jax.tree.structure(state)
    return lambda leaves: _nnx().merge(graphdef, jax.tree.unflatten(treedef, leaves))


def _rebuilding(
    merge: Callable[[], Callable[[list[Any]], Any]], ask: Callable[..., dict[str, Any]]
) -> Callable[..., dict[str, Any]]:
    """The function of an endpoint, of flat weights instead of the model; it goes by the same name."""

    def fn(leaves: list[Any], keys: Any, inputs: Any, **options: Any) -> dict[str, Any]:
        return ask(merge()(leaves), keys, inputs, **options)

    fn.__module__, fn.__qualname__ = names_of(ask)
    return fn


def _loop_of(abstract: Callable[[], Any], endpoint: str) -> Loop:
    return abstract().endpoints()[endpoint].fn


class _RebuildingLoop:
    """The loop of an endpoint, of flat weights instead of the model; it goes by the same name.

    Args:
        merge: Gives what puts weights together.
        made: Gives the loop as the model has it.
        module: Of the names that it goes by.
        qualname: The other one.
    """

    def __init__(
        self,
        merge: Callable[[], Callable[[list[Any]], Any]],
        made: Callable[[], Loop],
        module: str,
        qualname: str,
    ):
        self._merge, self._made = merge, functools.cache(made)
        vars(self).update(__module__=module, __qualname__=qualname)

    def init(self, model: list[Any], keys: Any, inputs: Any) -> Any:
        return self._made().init(self._merge()(model), keys, inputs)

    def step(self, model: list[Any], keys: Any, inputs: Any, state: Any) -> Any:
        return self._made().step(self._merge()(model), keys, inputs, state)

    def value(self, model: list[Any], inputs: Any, state: Any) -> dict[str, Any]:
        return self._made().value(self._merge()(model), inputs, state)

    def done(self, inputs: Any, state: Any) -> Any:
        return self._made().done(inputs, state)


def _preparation(kept: dict[str, Any] | None) -> Preparation | None:
    """What was described of what callers say; None where it is not installed any more."""
    made = None if kept is None else installed_class(kept["module"], kept["qualname"])
    if kept is None or not is_dataclass(made):
        return None
    says: Any = made(**kept["attributes"])
    return says if isinstance(says, Preparation) else None


def _described_preparation(says: Preparation) -> dict[str, Any] | None:
    """What makes it once more; None where JSON or the installed packages do not have all of it."""
    if not is_dataclass(says):
        return None
    attributes = {field.name: getattr(says, field.name) for field in fields(says)}
    described = {"module": type(says).__module__, "qualname": type(says).__qualname__}
    try:
        kept = {**described, "attributes": json.loads(json.dumps(attributes))}
    except TypeError:
        return None
    return kept if _preparation(kept) == says else None


def _option(facts: dict[str, Any]) -> Option:
    choices = facts["choices"]
    return Option(**{**facts, "choices": None if choices is None else tuple(choices)})


def _described(endpoint: Endpoint) -> dict[str, Any] | None:
    """An endpoint as JSON; None where an option, or what callers say, has no form there."""
    if not all(value is None or isinstance(value, str | int | float) for value in endpoint.defaults.values()):
        return None
    says = None if endpoint.says is None else _described_preparation(endpoint.says)
    if says is None and endpoint.says is not None:
        return None
    module, qualname = names_of(endpoint.fn)
    return {
        "module": module,
        "qualname": qualname,
        "inputs": {name: described_spec(spec) for name, spec in endpoint.inputs.items()},
        "options": {name: asdict(option) for name, option in endpoint.options.items()},
        "doc": endpoint.doc,
        "is_loop": isinstance(endpoint.fn, Loop),
        "says": says,
        "ahead": endpoint.ahead,
        "requires": endpoint.requires,
    }


def _nnx() -> Any:
    from flax import nnx  # the part of a start that this file is there to spare

    return nnx
