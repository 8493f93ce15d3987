"""Safetensors files: what is read from them, and those that are damaged or lie."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from artifex.generative_models.core.errors import CheckpointCorruptError, CheckpointNotFoundError
from artifex.generative_models.inference.formats.safetensors import stored_arrays, write_arrays


def file_of(path: Path, header: Any, content: bytes) -> Path:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def described(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "a.weight": random.normal(size=(3, 5)).astype(np.float32),
        "b": random.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "c": np.arange(7, dtype=np.int64),
        "none": np.zeros((0, 4), np.float16),
    }


def test_what_was_written_is_read(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_arrays(tmp_path / "x.safetensors", arrays)
    stored = stored_arrays(tmp_path / "x.safetensors")
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        found = stored[name].read()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert found.ctypes.data % 64 == 0 or not found.size  # JAX takes it over as it is


def test_shards_are_one(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    names = list(arrays)
    shards = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
    for shard, held in shards.items():
        write_arrays(tmp_path / shard, {name: arrays[name] for name in held})
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: shard for shard, held in shards.items() for n in held}}))
    assert stored_arrays(index).keys() == arrays.keys()
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"lacks two\.safetensors of 2 shards"):
        stored_arrays(index)


@pytest.mark.parametrize(
    ("header", "content", "message"),
    [
        ({"a": described("F32", [2], 0, 8)}, b"1234", "damaged"),  # truncated
        ({"a": described("F32", [3], 0, 8)}, b"12345678", "damaged"),  # lies about its shape
        ({"a": described("F32", [2], 8, 16)}, b"12345678", "damaged"),  # beyond the end
        ({"a": described("F32", [2], 0, 8), "b": described("F32", [2], 4, 12)}, bytes(12), "damaged"),
        ({"a": described("F32", [1], 0, 4)}, bytes(8), "damaged"),  # bytes that are nobody's
        ({"a": described("F32", [2**62, 4], 0, 8)}, bytes(8), "damaged"),  # overflows
        (b"{", b"", "damaged"),
        (b"[]", b"", "damaged"),
        (
            b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
            "'w' is there twice",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, header: Any, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointCorruptError, match=message):
        stored_arrays(file_of(tmp_path / "x.safetensors", header, content))


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 1 << 40), struct.pack("<Q", 2**64 - 1)])
def test_headers_that_are_not_there(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        stored_arrays(path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map: expected"),
        ({"weight_map": ["a"]}, "weight_map: expected"),
        ({"weight_map": {"a": "../x.safetensors"}}, "a shard is a file beside it"),
        ({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}, "the shards lack b"),
        ({"weight_map": {"a": "x.safetensors", "c": "y.safetensors"}}, "a is in y.safetensors and"),
    ],
)
def test_damaged_indices(tmp_path: Path, index: Any, message: str) -> None:
    one = {"a": described("F32", [1], 0, 4)}
    file_of(tmp_path / "x.safetensors", one, bytes(4))
    file_of(tmp_path / "y.safetensors", one | {"c": described("F32", [1], 4, 8)}, bytes(8))
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises((CheckpointCorruptError, CheckpointNotFoundError), match=message):
        stored_arrays(path)
