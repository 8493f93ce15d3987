"""Whatever comes is decoded or refused, and what the stock client writes and reads comes through whole."""

import random
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype

from artifex.generative_models.core.errors import InputError
from artifex.serving.http.codec import OutputForm, decode_request, encode_response
from artifex.serving.plane.requests import InferRequest, InferResponse
from artifex.serving.plane.statuses import UnsupportedError

DTYPES = [*"?bBhHiIqQefd"]
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = IDS.filter(bool)
PARAMETERS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), IDS
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=3)
SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_decodes_or_refuses(body: bytes, length: int | None) -> InferRequest | None:
    try:
        request, form = decode_request("m", "", body, length)
    except (InputError, UnsupportedError) as error:
        event(type(error).__name__)
        return None
    event("decoded")
    assert request.outputs is None or len(set(request.outputs)) == len(request.outputs)
    assert all(isinstance(array, np.ndarray) for array in request.inputs.values())
    assert isinstance(form.is_binary("y"), bool)
    return request


def same_bits(found: np.ndarray, wanted: np.ndarray) -> bool:
    same = (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    return same and (found.tolist() if wanted.dtype == object else found.tobytes()) == (
        wanted.tolist() if wanted.dtype == object else wanted.tobytes()
    )


@SETTINGS
@given(st.binary(max_size=200), st.none() | st.integers(-10, 300))
def test_any_bytes(body: bytes, length: int | None) -> None:
    assert_decodes_or_refuses(body, length)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def or_anything(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value as the protocol has it, 39 times of 40, or any JSON."""
    return st.integers(0, 39).flatmap(lambda n: JSON if n == 39 else strategy)


DATATYPES = st.sampled_from(["BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"])
NUMBERS = st.lists(st.sampled_from([0, 1, -1, 255, 2**31, 0.5, 1e39, -0.0, True, "a"]), max_size=4)
ENTRY_PARAMETERS = or_anything(
    st.dictionaries(
        st.sampled_from(["binary_data_size", "binary_data", "classification", "shared_memory_region", "a"]),
        or_anything(st.sampled_from([0, 1, 2, 4, 8, True, False])),
        max_size=2,
    )
)
INPUTS = st.fixed_dictionaries(
    {
        "name": or_anything(st.sampled_from("xyz")),
        "shape": or_anything(st.lists(st.sampled_from([0, 1, 2, 2**62, 2**63 - 1]), max_size=3)),
        "datatype": or_anything(DATATYPES),
    },
    optional={"data": or_anything(NUMBERS | st.lists(NUMBERS, max_size=2)), "parameters": ENTRY_PARAMETERS},
)
OUTPUTS = st.fixed_dictionaries(
    {"name": or_anything(st.sampled_from("xyz"))}, optional={"parameters": ENTRY_PARAMETERS}
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": or_anything(IDS),
        "parameters": or_anything(st.dictionaries(NAMES, or_anything(PARAMETERS), max_size=2)),
        "inputs": or_anything(st.lists(or_anything(INPUTS), max_size=3)),
        "outputs": or_anything(st.lists(or_anything(OUTPUTS), max_size=2)),
    },
)


@SETTINGS
@given(REQUESTS, st.binary(max_size=16), st.booleans(), st.sampled_from([0, 0, 0, 0, -1, 1, -100, 100]))
def test_any_bodies_of_about_the_right_structure(
    content: dict[str, Any], tail: bytes, has_header: bool, off: int
) -> None:
    header = orjson.dumps(content)
    assert_decodes_or_refuses(header + tail, len(header) + off if has_header else None)


@st.composite
def client_requests(draw: st.DrawFn) -> tuple[InferRequest, bytes, int | None]:
    """A request, and its body as the stock client writes it."""
    request = InferRequest(
        "m",
        id=draw(IDS),
        inputs=draw(TENSORS),
        parameters=draw(st.dictionaries(NAMES.map("p{}".format), PARAMETERS, max_size=3)),
        outputs=draw(st.none() | st.lists(NAMES, min_size=1, max_size=3, unique=True)),
    )
    entries = []
    for name, array in request.inputs.items():
        entries.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        binary = draw(st.booleans()) or array.dtype == np.float16 or not np.isfinite(array).all()
        entries[-1].set_data_from_numpy(array, binary_data=binary)
    body, length = InferenceServerClient.generate_request_body(
        entries,
        outputs=[InferRequestedOutput(name) for name in request.outputs] if request.outputs else None,
        request_id=request.id,
        parameters=request.parameters,
    )
    return request, body, length


@SETTINGS
@given(client_requests())
def test_what_the_stock_client_sends_arrives_whole(sent: tuple[InferRequest, bytes, int | None]) -> None:
    wanted, body, length = sent
    found, form = decode_request("m", "", body, length)
    assert (found.id, found.parameters, found.outputs) == (wanted.id, wanted.parameters, wanted.outputs)
    assert list(found.inputs) == list(wanted.inputs)
    assert all(same_bits(found.inputs[name], array) for name, array in wanted.inputs.items())
    assert all(form.is_binary(name) for name in found.outputs or ["any"])


@SETTINGS
@given(client_requests(), st.randoms(use_true_random=False))
def test_damaged_requests_are_decoded_or_refused(
    sent: tuple[InferRequest, bytes, int | None], chance: random.Random
) -> None:
    _, body, length = sent
    damaged = bytearray(body)
    for _ in range(chance.randint(1, 3)):
        at = chance.randint(0, len(damaged))
        kind = chance.choice(["cut", "replace", "insert", "double", "length"])
        if kind == "cut":
            del damaged[at : at + chance.randint(1, 8)]
        elif kind == "replace":
            damaged[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == "insert":
            damaged[at:at] = chance.choice([b"0", b"-", b"[", b"]", b"{}", b"null,", b"1e9", b'"', b"\0"])
        elif kind == "double":
            damaged[at:at] = damaged[max(0, at - 20) : at]
        else:
            length = None if length is None else length + chance.choice([-8, -1, 1, 8])
    assert_decodes_or_refuses(bytes(damaged), length)


@SETTINGS
@given(TENSORS, IDS, st.dictionaries(NAMES, PARAMETERS, max_size=2), st.booleans(), st.data())
def test_what_the_stock_client_receives_arrives_whole(
    outputs: dict[str, np.ndarray], request_id: str, parameters: Any, default: bool, data: st.DataObject
) -> None:
    form = OutputForm(default, data.draw(st.dictionaries(st.sampled_from(sorted(outputs)), st.booleans())
                                         if outputs else st.just({})))  # fmt: skip
    outputs = {
        name: array if form.is_binary(name) else np.where(np.isfinite(array), array, 0).astype(array.dtype)
        for name, array in outputs.items()
    }
    parts, length = encode_response(InferResponse("m", "3", request_id, parameters, outputs), form)
    result = InferResult.from_response_body(b"".join(parts), header_length=length)
    content = result.get_response()
    assert content.get("id", "") == request_id
    assert content.get("parameters", {}) == parameters
    assert [output["name"] for output in content["outputs"]] == list(outputs)
    assert all(same_bits(result.as_numpy(name), array) for name, array in outputs.items())


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
def test_bf16_comes_through_as_the_stock_client_reads_it(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 1 / 3).astype(ml_dtypes.bfloat16)
    parts, length = encode_response(InferResponse("m", "3", "", {}, {"y": array}), OutputForm(True))
    assert length == len(parts[0])
    assert b"".join(parts[1:]) == array.tobytes()
