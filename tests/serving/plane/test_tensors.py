"""Arrays from and to their wire forms: bit for bit, or refused with the tensor's name."""

import json
import struct
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from artifex.generative_models.core.errors import InputError
from artifex.serving.plane.tensors import (
    as_dtype,
    checked_shape,
    datatype_of,
    dtype_of,
    nested_array,
    tensor_from_bytes,
    tensor_from_json,
    tensor_to_bytes,
)

NUMERIC = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}
IN_JSON = [datatype for datatype in NUMERIC if datatype != "BF16"]
INTEGERS = [datatype for datatype in NUMERIC if "INT" in datatype]


def hard_values(datatype: str) -> np.ndarray:
    """The values of a datatype that are lost first."""
    dtype = np.dtype(NUMERIC[datatype])
    if dtype.kind == "b":
        return np.array([True, False, False, True])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.min + 1, 0, 1, limits.max - 1, limits.max], dtype)
    limits = ml_dtypes.finfo(dtype)
    third = np.array(1 / 3).astype(dtype)
    values = [limits.smallest_subnormal, limits.tiny, limits.max, limits.min, -0.0, 0.0, third, limits.eps]
    return np.array([np.array(value).astype(dtype) for value in values], dtype)


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


def from_bytes(datatype: Any, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    return tensor_from_bytes("x", datatype, shape, memoryview(data))


@pytest.mark.parametrize("datatype", NUMERIC)
def test_binary_round_trips_bit_for_bit(datatype: str) -> None:
    array = hard_values(datatype).reshape(2, -1)
    data = tensor_to_bytes(array)
    assert bytes(data) == array.tobytes()
    assert_same_bits(from_bytes(datatype, array.shape, bytes(data)), array)
    assert bytes(tensor_to_bytes(array.T)) == array.T.tobytes()


@pytest.mark.parametrize("datatype", NUMERIC)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_tensors_have_a_binary_form(datatype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, NUMERIC[datatype])
    assert_same_bits(from_bytes(datatype, shape, bytes(tensor_to_bytes(array))), array)


@pytest.mark.parametrize("datatype", NUMERIC)
def test_datatypes_are_those_of_the_stock_client(datatype: str) -> None:
    assert datatype_of(NUMERIC[datatype]) == datatype
    assert dtype_of("x", datatype) == NUMERIC[datatype]
    if datatype != "BF16":  # which NumPy, and so the client, does not have
        assert np_to_triton_dtype(np.dtype(NUMERIC[datatype])) == datatype


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize("write", [json.dumps, orjson.dumps], ids=["json", "orjson"])
def test_json_round_trips_bit_for_bit_nested_or_flat(datatype: str, write: Any) -> None:
    array = hard_values(datatype).reshape(2, -1)
    for data in (array.tolist(), array.reshape(-1).tolist()):
        parsed = orjson.loads(write(data))
        assert_same_bits(tensor_from_json("x", datatype, array.shape, parsed), array)


def test_numbers_without_a_point_are_floats_too() -> None:
    array = tensor_from_json("x", "FP32", (3,), [1, -2, 2**63])
    assert_same_bits(array, np.array([1, -2, 2**63], np.float32))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4), elements={"allow_nan": False}))
def test_any_finite_float32_round_trips_through_json(array: np.ndarray) -> None:
    array = np.nan_to_num(array)
    parsed = orjson.loads(orjson.dumps(array.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY))
    assert_same_bits(tensor_from_json("x", "FP32", array.shape, parsed), array)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_bytes_are_as_the_stock_client_writes_them(shape: tuple[int, ...]) -> None:
    elements = [b"", b"\x00\xff" * 300, "ä".encode()]
    array = np.array(elements, object).reshape(shape)
    found = from_bytes("BYTES", shape, serialize_byte_tensor(array).item())
    assert found.shape == shape
    assert found.reshape(-1).tolist() == elements


def test_bytes_from_json_are_utf_8() -> None:
    for data in (["a", "ä", "", "\x00"], [["a", "ä"], ["", "\x00"]]):
        found = tensor_from_json("x", "BYTES", (2, 2), data)
        assert found.tolist() == [[b"a", "ä".encode()], [b"", b"\x00"]]


def nested(depth: int, leaf: Any = 1) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", (2,), ["1", "2"], "expected numbers"),
        ("FP32", (2,), [1.0, None], "expected numbers"),
        ("FP32", (2,), [1.0, {}], "expected numbers"),
        ("BOOL", (2,), [True, 1], "expected true and false"),
        ("BOOL", (1,), ["true"], "expected true and false"),
        ("INT32", (2,), [1, 2.0], "expected integers"),
        ("INT64", (1,), orjson.loads(b"[18446744073709551616]"), "expected integers"),
        ("INT64", (1,), [2**64], "out of the range of INT64"),
        ("FP32", (1,), [10**400], "out of the range of FP32"),
        ("BYTES", (1,), [1], "expected strings"),
        ("BYTES", (1,), [None], "expected strings"),
        ("FP32", (3,), [[1, 2], [3]], "lists of equal lengths"),
        ("FP32", (2,), [[1], 2], "lists of equal lengths"),
        ("FP32", (2,), [1, [2]], "expected numbers"),
        ("FP32", (1,), nested(40), "lists of at most 32 levels"),
        ("FP32", (3,), [1, 2], "2 elements do not fill"),
        ("FP32", (2, 2), [], "0 elements do not fill"),
        ("FP32", (), [], "0 elements do not fill"),
        ("FP32", (2**62, 2**62), [1], "1 elements do not fill"),
        ("FP32", (1,), 1.0, "expected a list"),
        ("FP32", (1,), None, "expected a list"),
        ("FP32", (1,), "1", "expected a list"),
        ("FP32", (1,), {"0": 1}, "expected a list"),
        ("BF16", (1,), [1.0], "BF16 has no form in JSON"),
    ],
)
def test_bad_json_is_refused_with_the_name(
    datatype: str, shape: tuple[int, ...], data: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^some: .*{message}"):
        tensor_from_json("some", datatype, shape, data)


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("beyond", [-1, 1])
def test_integers_out_of_range_are_refused(datatype: str, beyond: int) -> None:
    limits = np.iinfo(NUMERIC[datatype])
    value = int(limits.max) + 1 if beyond > 0 else int(limits.min) - 1
    with pytest.raises(InputError, match=f"^some: .*out of the range of {datatype}"):
        tensor_from_json("some", datatype, (2,), [0, value])
    if abs(value) < 2**63:
        with pytest.raises(InputError, match=f"^some: .*out of the range of {datatype}"):
            as_dtype("some", np.array([0, value]), np.dtype(NUMERIC[datatype]))


@pytest.mark.parametrize("datatype", INTEGERS)
def test_as_dtype_keeps_what_fits(datatype: str) -> None:
    array = np.array([0, 1, 127])
    assert_same_bits(as_dtype("x", array, dtype_of("x", datatype)), array.astype(NUMERIC[datatype]))
    empty = np.zeros((0, 2), np.int64)
    assert as_dtype("x", empty, dtype_of("x", datatype)).shape == (0, 2)


@pytest.mark.parametrize("datatype", ["FP16", "FP32"])
def test_floats_too_large_become_infinite_without_a_warning(datatype: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        array = tensor_from_json("x", datatype, (2,), [1e300, -1e300])
        cast = as_dtype("x", np.array([1e300, -1e300]), np.dtype(NUMERIC[datatype]))
    assert array.tolist() == cast.tolist() == [np.inf, -np.inf]
    assert not seen


@pytest.mark.parametrize("datatype", ["FLOAT", "fp32", "", None, 1, ["FP32"], {"FP32": 1}, "F" * 10_000])
def test_unknown_datatypes_are_refused(datatype: Any) -> None:
    for read in (
        lambda: dtype_of("some", datatype),
        lambda: tensor_from_json("some", datatype, (1,), [1]),
        lambda: tensor_from_bytes("some", datatype, (1,), memoryview(b"1234")),
    ):
        with pytest.raises(InputError, match=r"^some: unknown datatype") as caught:
            read()
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "shape", [[-1], [1.0], [True], ["1"], [None], [2**63], [[1]], [1] * 33, None, 3, "3", (), {"0": 1}]
)
def test_bad_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(InputError, match=r"^some: shape: expected"):
        checked_shape("some", shape)


@pytest.mark.parametrize("shape", [[], [0], [2**63 - 1], [1] * 32])
def test_good_shapes(shape: list[int]) -> None:
    assert checked_shape("x", shape) == tuple(shape)


@pytest.mark.parametrize("depth", [500, 1000])
def test_values_of_any_depth_are_refused_like_others(depth: int) -> None:
    deep = orjson.loads(b"[" * depth + b"]" * depth)
    for read in (
        lambda: checked_shape("some", deep * 40),
        lambda: checked_shape("some", deep),
        lambda: dtype_of("some", deep),
        lambda: tensor_from_json("some", "FP32", (1,), deep),
    ):
        with pytest.raises(InputError, match=r"^some: "):
            read()


@pytest.mark.parametrize("shape", [(0, 2**62), (0, 2**63 - 1), (2**40, 2**40, 0)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_no_elements_of_a_huge_shape_are_refused(datatype: str, shape: tuple[int, ...]) -> None:
    for read in (
        lambda: tensor_from_bytes("some", datatype, shape, memoryview(b"")),
        lambda: tensor_from_json("some", datatype, shape, []),
    ):
        with pytest.raises(InputError, match=r"^some: "):
            read()


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", (2,), b"1234567", "takes 8 bytes, got 7"),
        ("FP32", (2,), b"123456789", "takes 8 bytes, got 9"),
        ("FP32", (), b"", "takes 4 bytes, got 0"),
        ("FP32", (2**62, 2**62), b"1234", "bytes, got 4"),
        ("FP64", (2**61,), b"", "takes 18446744073709551616 bytes, got 0"),
        ("BOOL", (2,), b"\x01\x02", "byte of 0 or 1"),
        ("BYTES", (1,), b"\x01\x00", "2 bytes are left where a length"),
        ("BYTES", (1,), struct.pack("<I", 3) + b"ab", "an element of 3 bytes where 2 are left"),
        ("BYTES", (1,), struct.pack("<I", 2**32 - 1), "an element of 4294967295 bytes"),
        ("BYTES", (1,), struct.pack("<I", 1) + b"abc", "2 bytes are left"),
        ("BYTES", (2,), struct.pack("<I", 1) + b"a", "1 elements do not fill"),
        ("BYTES", (1,), b"\0" * 8, "4 bytes are left"),
        ("BYTES", (2**16 + 1,), b"\0" * 4 * (2**16 + 1), "at most 65536 elements of BYTES"),
        ("BYTES", (1,), b"", "0 elements do not fill"),
    ],
)
def test_bad_bytes_are_refused_with_the_name(
    datatype: str, shape: tuple[int, ...], data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^some: .*{message}"):
        tensor_from_bytes("some", datatype, shape, memoryview(data))


@given(st.binary(max_size=64), st.sampled_from([*NUMERIC, "BYTES"]), st.integers(0, 5))
def test_any_bytes_are_a_tensor_or_refused(data: bytes, datatype: str, size: int) -> None:
    try:
        array = from_bytes(datatype, (size,), data)
    except InputError:
        return
    if datatype == "BYTES":
        assert b"".join(struct.pack("<I", len(element)) + element for element in array) == data
    else:
        assert bytes(tensor_to_bytes(array)) == data


def test_nested_arrays_have_the_shape_that_they_are_written_in() -> None:
    assert nested_array("x", 2, np.dtype(np.float32)).shape == ()
    assert nested_array("x", [[1, 2, 3]], np.dtype(np.float32)).shape == (1, 3)
    assert nested_array("x", [[], []], np.dtype(np.float32)).shape == (2, 0)
    assert nested_array("x", "a", np.dtype(object)).item() == b"a"
