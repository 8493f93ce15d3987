"""What earlier processes found out about programs: their traces and executables, in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import pickle
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference import cache

_log = logging.getLogger("artifex")


@dataclass(frozen=True)
class Trace:
    """What tracing finds out about an endpoint."""

    weights: tuple[int, ...]  # places, in the flattened model, of those that it reads
    needs_keys: bool
    outputs: Mapping[str, TensorSpec]
    strided: bool  # whether most of its work is strided convolutions
    captured_bytes: int = 0  # of arrays that its function has closed over


@dataclass(frozen=True)
class KeptPrograms:
    """The programs of one model."""

    record: dict[str, Any]  # what is kept of each, by name, as JSON takes it
    device: jax.Device  # where executables run
    keep: Callable[[Callable[[], None]], None]  # makes a change to the record and writes it

    def program(
        self, endpoint: str, options: Mapping[str, Hashable], settings: Any, uint8: Sequence[str]
    ) -> KeptProgram | None:
        """What is kept of one program; None where its options have no form in JSON."""
        try:
            name = json.dumps([endpoint, sorted(options.items()), repr(settings), *uint8])
        except TypeError:
            return None
        return KeptProgram(name, self)

    def take_over(self, other: KeptPrograms) -> None:
        """Keeps what is kept of the same programs for other values of the weights."""
        self.keep(lambda: self.record.update(other.record))


@dataclass(frozen=True)
class KeptProgram:
    """What earlier processes found out about one endpoint with one choice of options."""

    _name: str  # within the record
    _kept: KeptPrograms

    def trace(self) -> Trace | None:
        """What tracing found out."""
        kept = self._kept.record.get(self._name)
        if kept is None:
            return None
        outputs = {name: spec_of(spec) for name, spec in kept["outputs"].items()}
        return Trace(
            tuple(kept["weights"]), kept["needs_keys"], outputs, kept["strided"], kept["captured_bytes"]
        )

    def keep_trace(self, trace: Trace) -> None:
        """Keeps what tracing found out."""
        outputs = {name: described_spec(spec) for name, spec in trace.outputs.items()}
        kept = {**asdict(trace), "outputs": outputs, "executables": {}}
        self._kept.keep(lambda: self._kept.record.update({self._name: kept}))

    def executable(self, which: str) -> jax.stages.Compiled | None:
        """An executable by its name: the batch size, and which part of a loop it is, where it is one."""
        part = self._kept.record[self._name]["executables"].get(which)
        data = None if part is None else read_part(part)
        if data is None:
            return None
        device = self._kept.device
        if b"lapack_" in data:  # the names of what it calls
            _have_lapack()
        try:
            serialized, in_tree, out_tree = pickle.loads(data)
            return serialize_executable.deserialize_and_load(
                serialized, in_tree, out_tree, device.client, [device]
            )
        except jax.errors.JaxRuntimeError as error:
            _log.debug("%s is compiled anew: %s", self._name, error)
            return None

    def keep_executable(self, which: str, executable: jax.stages.Compiled) -> None:
        """Keeps an executable by its name, where the backend can serialise it."""
        try:
            data = pickle.dumps(serialize_executable.serialize(executable))
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            # How JAX and its backends say that they cannot serialise this one; it runs all the same.
            _log.debug("%s cannot be kept: %s", self._name, error)
            return
        executables = self._kept.record[self._name]["executables"]
        self._kept.keep(lambda: executables.update({which: write_part(data)}))


@functools.cache
def _have_lapack() -> None:
    """Has JAX look LAPACK's functions up: it does so when it lowers, and calls null pointers otherwise."""
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def described_spec(spec: TensorSpec) -> list[Any]:
    """A spec as JSON takes it."""
    dtype = jnp.dtype(spec.dtype).name
    return [spec.shape, dtype, spec.default, spec.doc, spec.image_range, spec.minimum, spec.maximum]


def spec_of(described: list[Any]) -> TensorSpec:
    """The spec that was described."""
    shape, dtype, default, doc, image_range, *limits = described
    pixels = None if image_range is None else tuple(image_range)
    return TensorSpec(tuple(shape), dtype, default, doc, pixels, *limits)


def read_part(name: str) -> bytes | None:
    """A part of what is kept, unless it is missing or damaged."""
    data = cache.try_read(f"starts/{name}")
    return data if data is not None and digest_of(data) == name else None


def write_part(data: bytes) -> str:
    """Keeps a part, and gives it the name of its digest."""
    name = digest_of(data)
    cache.try_write(f"starts/{name}", data)
    return name


def digest_of(data: bytes) -> str:
    """The SHA-256 of data."""
    return hashlib.sha256(data).hexdigest()
