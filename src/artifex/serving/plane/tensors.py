"""Tensors of the Open Inference Protocol: datatypes, and arrays from and to their wire forms."""

from __future__ import annotations

import itertools
import math
import struct
from array import array as packed_array
from typing import Any

import ml_dtypes
import numpy as np

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.fields import Field

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_TYPES: dict[str, type] = {"b": bool, "O": str}  # in JSON, by kind of dtype
# Of the array module: what holds the numbers of a dtype exactly.
_CODES = {
    dtype: "f" if dtype == np.float32 else {"f": "d", "i": "q", "u": "Q"}[dtype.kind]
    for dtype in _DATATYPES
    if dtype.kind in "fiu"
}
_NOUNS = {"b": "true and false", "u": "integers", "i": "integers", "f": "numbers", "O": "strings"}
_MAX_AXES = 32
_MAX_STRINGS = 1 << 16  # of BYTES in binary form, which are taken apart one by one
_COPIED_BYTES = 1 << 16


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype."""
    return _DATATYPES[np.dtype(dtype)]


def field_datatype(field: Field) -> str:
    """The protocol's name of what a field's values are; others that hold the same are taken too."""
    return {int: "INT64", float: "FP32", str: "BYTES", bool: "BOOL"}[field.kind]


def dtype_of(name: str, datatype: Any) -> np.dtype[Any]:
    """The dtype of a tensor, from the protocol's name of it in a request.

    Raises:
        InputError: There is no such datatype.
    """
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InputError(f"{name}: unknown datatype {short(datatype)}; there are {', '.join(DTYPES)}")
    return dtype


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A tensor's shape, from a request.

    Raises:
        InputError: It is no list of sizes from 0.
    """
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        raise InputError(f"{name}: shape: expected a list of at most {_MAX_AXES} sizes, got {short(shape)}")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**63:
            raise InputError(f"{name}: shape: expected sizes from 0, got {short(size)}")
    return tuple(shape)


def tensor_from_json(name: str, datatype: Any, shape: tuple[int, ...], data: Any) -> np.ndarray:
    """A tensor from parsed JSON: its elements, row-major, nested or flat; strings for BYTES.

    Raises:
        InputError: The elements are of another kind or number, or out of range; BF16, which has no JSON form.
    """
    dtype = dtype_of(name, datatype)
    if datatype == "BF16":
        raise InputError(f"{name}: BF16 has no form in JSON; send it as binary data")
    if not isinstance(data, list | np.ndarray):
        raise InputError(f"{name}: data: expected a list, got {short(data)}")
    array = nested_array(name, data, dtype)
    if array.size != math.prod(shape):
        raise InputError(f"{name}: {array.size} elements do not fill shape {list(shape)}")
    return reshaped(name, array, shape)


def nested_array(name: str, data: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """An array from parsed JSON, of the shape that it has there; bytes, as an object array, from strings.

    Args:
        data: An element, or lists of them, to any depth; or an array of what was parsed before.

    Raises:
        InputError: Lists of unequal lengths, elements of another kind, or numbers out of the dtype's range.
    """
    if isinstance(data, np.ndarray):
        expected = {"b": "b", "O": "", "i": "biu", "u": "biu"}.get(dtype.kind, "biuf")
        if data.dtype.kind not in expected:
            raise InputError(f"{name}: data: expected {_NOUNS[dtype.kind]}")
        return as_dtype(name, data, dtype)
    elements, shape = _flat(name, data)
    if dtype.kind == "V":  # bfloat16, which NumPy does not count among the floats
        return nested_array(name, data, np.dtype(np.float32)).astype(dtype)
    if dtype.kind in _TYPES:
        if not set(map(type, elements)) <= {_TYPES[dtype.kind]}:
            raise InputError(f"{name}: data: expected {_NOUNS[dtype.kind]}")
        if dtype.kind == "O":
            elements = [element.encode() for element in elements]
        flat = np.empty(len(elements), dtype)
        flat[:] = elements
        return flat.reshape(shape)
    try:
        # Unlike NumPy it takes nothing but numbers; true and false are 1 and 0.
        exact = packed_array(_CODES[dtype], elements)
    except TypeError as error:
        raise InputError(f"{name}: data: expected {_NOUNS[dtype.kind]}") from error
    except OverflowError as error:
        raise InputError(f"{name}: data: a number is out of the range of {datatype_of(dtype)}") from error
    return as_dtype(name, np.frombuffer(exact, exact.typecode), dtype).reshape(shape)


def as_dtype(name: str, numbers: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers in another dtype that can hold them.

    Raises:
        InputError: An integer is out of the dtype's range.
    """
    if numbers.dtype == dtype:
        return numbers
    if dtype.kind in "iu" and numbers.size:
        limits = np.iinfo(dtype)
        if int(numbers.min()) < limits.min or int(numbers.max()) > limits.max:
            raise InputError(f"{name}: a number is out of the range of {datatype_of(dtype)}")
    with np.errstate(over="ignore"):  # what overflows is then refused as infinite
        return numbers.astype(dtype)


def tensor_from_bytes(name: str, datatype: Any, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    """A tensor from its binary form, little-endian and row-major, of which it is a view.

    Raises:
        InputError: The number of bytes does not fit the shape.
    """
    dtype = dtype_of(name, datatype)
    if datatype == "BYTES":
        return _unpack_bytes(name, shape, data)
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise InputError(f"{name}: {datatype} of shape {list(shape)} takes {size} bytes, got {len(data)}")
    if datatype == "BOOL" and np.any(np.frombuffer(data, np.uint8) > 1):
        raise InputError(f"{name}: a BOOL is a byte of 0 or 1")
    return reshaped(name, np.frombuffer(data, dtype), shape)


def tensor_to_bytes(array: np.ndarray) -> bytes | memoryview:
    """A tensor's binary form; without a copy where that would take longer than to arrange for none.

    A string is its length, a little-endian uint32, and its UTF-8.
    """
    if array.dtype == object:
        texts = [text.encode() for text in array.reshape(-1)]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
    if array.nbytes < _COPIED_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _flat(name: str, data: Any) -> tuple[list[Any], list[int]]:
    """The elements of nested lists, and their shape."""
    elements: list[Any] = [data]
    shape: list[int] = []
    while elements and type(elements[0]) is list:
        shape.append(len(elements[0]))
        if len(shape) > _MAX_AXES:
            raise InputError(f"{name}: data: expected lists of at most {_MAX_AXES} levels")
        if len(elements) == 1:
            elements = elements[0]
        elif set(map(type, elements)) == {list} and len(set(map(len, elements))) == 1:
            elements = list(itertools.chain.from_iterable(elements))
        else:
            raise InputError(f"{name}: data: expected lists of equal lengths")
    return elements, shape


def _unpack_bytes(name: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    count = math.prod(shape)
    if count > _MAX_STRINGS:
        raise InputError(f"{name}: expected at most {_MAX_STRINGS} elements of BYTES, got {count}")
    elements: list[bytes] = []
    start = 0
    while start < len(data) and len(elements) < count:
        if start + 4 > len(data):
            raise InputError(f"{name}: {len(data) - start} bytes are left where a length of 4 should be")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if start + length > len(data):
            raise InputError(f"{name}: an element of {length} bytes where {len(data) - start} are left")
        elements.append(bytes(data[start : start + length]))
        start += length
    if len(elements) < count:
        raise InputError(f"{name}: {len(elements)} elements do not fill shape {list(shape)}")
    if start < len(data):
        raise InputError(f"{name}: {len(data) - start} bytes are left after the last element")
    array = np.empty(count, object)
    array[:] = elements
    return reshaped(name, array, shape)


def reshaped(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in the shape that a request gives it; the number of elements fits.

    Raises:
        InputError: There are none, of a shape that NumPy cannot have.
    """
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InputError(f"{name}: shape {list(shape)} is too large") from error


def short(value: Any) -> str:
    """What a client sent, for an error: never long."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 100 else f"{text[:100]}…"
