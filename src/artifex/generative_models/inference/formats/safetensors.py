"""Arrays in safetensors files: what there is by the headers, and each of them read from its place.

The library checks a header: offsets that overlap, leave gaps or end beyond the file, and a length of more
than 100 MB. It takes the last of two arrays of one name, which is refused here. Reading is ours: the library
maps files, and pages of a map count as memory of the process beside the arrays that are made of them.

References:
    The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from artifex.generative_models.core.config import read_json
from artifex.generative_models.core.errors import CheckpointCorruptError, CheckpointNotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX_SUFFIX = ".index.json"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 64  # of memory that JAX takes over as it is, on the CPU


class StoredArray(NamedTuple):
    """An array in a file.

    Args:
        path: The file.
        offset: Of its first byte.
        shape: Its shape.
        dtype: Its dtype.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        """Its values, in memory that nothing else has.

        Raises:
            CheckpointCorruptError: The file ends before it.
        """
        room = np.empty(self.num_bytes + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        content = room[start : start + self.num_bytes]
        left = content.data
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise CheckpointCorruptError(f"{self.path} ends before what its header says it holds")
                left = left[count:]
        return content.view(self.dtype).reshape(self.shape)


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by name; of an index (`….safetensors.index.json`), those of all its shards.

    Raises:
        CheckpointNotFoundError: The file, or a shard, is not there; or a shard lacks an array.
        CheckpointCorruptError: A header, or the index, is damaged or lies; or a name is there twice.
    """
    return _of_shards(path) if path.name.endswith(INDEX_SUFFIX) else _of_file(path)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays to a file, as PyTorch's libraries expect them."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, {"format": "pt"})


def _of_file(path: Path) -> dict[str, StoredArray]:
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is not there")
    try:
        with safe_open(path, framework="np"):  # which checks it
            pass
    except SafetensorError as error:
        raise CheckpointCorruptError(f"{path} is damaged: {error}") from error
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header = file.read(length)
    try:
        described = json.loads(header, object_pairs_hook=_unlike)
    except ValueError as error:
        raise CheckpointCorruptError(f"{path}: {error}") from error
    described.pop("__metadata__", None)
    unknown = sorted({facts["dtype"] for facts in described.values()} - _DTYPES.keys())
    if unknown:
        raise CheckpointCorruptError(
            f"{path}: arrays of dtype {', '.join(unknown)}, which is none of {', '.join(_DTYPES)}"
        )
    first = _LENGTH.size + length
    return {
        name: StoredArray(
            path,
            first + facts["data_offsets"][0],
            tuple(facts["shape"]),
            np.dtype(_DTYPES[facts["dtype"]]),
        )
        for name, facts in described.items()
    }


def _of_shards(path: Path) -> dict[str, StoredArray]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(shard, str) for shard in index.values()):
        raise CheckpointCorruptError(f"{path}: weight_map: expected the name of a shard for each array")
    shards = sorted(set(index.values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise CheckpointCorruptError(f"{path}: a shard is a file beside it, which {outside[0]!r} is not")
    missing = [shard for shard in shards if not path.with_name(shard).is_file()]
    if missing:
        raise CheckpointNotFoundError(f"{path.parent} lacks {', '.join(missing)} of {len(shards)} shards")
    found: dict[str, StoredArray] = {}
    for shard in shards:
        held = _of_file(path.with_name(shard))
        if twice := sorted(held.keys() & found.keys()):
            raise CheckpointCorruptError(f"{path.parent}: {twice[0]} is in {shard} and in another shard")
        found |= held
    if absent := sorted(index.keys() - found.keys()):
        raise CheckpointNotFoundError(f"{path}: the shards lack {', '.join(absent)}")
    return found


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found
