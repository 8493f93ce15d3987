"""The generate extension, for people: plain JSON, picture files and PNGs, samples as they are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson
from starlette.datastructures import UploadFile
from starlette.requests import Request

from artifex.generative_models.core.endpoint import TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.inference.batching.queue import Outputs
from artifex.generative_models.inference.images import is_picture
from artifex.serving.http.codec import parameter_values, parse_object
from artifex.serving.plane.dataplane import Call, DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.pictures import decode_pictures
from artifex.serving.plane.requests import InferRequest
from artifex.serving.plane.statuses import explain
from artifex.serving.plane.tensors import nested_array

_STREAM_ROWS = 16  # computed together, after the first
_SEED = TensorSpec((), np.int64)


async def read_generate(request: Request, body: bytes, plane: DataPlane) -> Call:
    """The call that a generate request asks for.

    The body is a JSON object whose properties are inputs and parameters, a picture file, or a form with both;
    a query string may hold more parameters. The path names the model.

    Raises:
        ArtifexError: As for `DataPlane.prepare`, and where the body is something else.
    """
    model, version = request.path_params["model"], request.path_params.get("version", "")
    _, endpoint = plane.find(model, version)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        content = await _from_form(endpoint, request, body)
    elif kind.startswith("image/"):
        content = {_picture_input(endpoint): body}
    else:
        content = parse_object(body) if body.strip() else {}
    for name, value in request.query_params.multi_items():
        _add(content, name, _plain(value))
    return await plane.prepare(await _infer_request(endpoint, content, model, version))


def generate_response(call: Call, outputs: Mapping[str, np.ndarray]) -> bytes:
    """The outputs of a call as a JSON object, nested."""
    return _dumps({**_origin(call), **outputs})


async def generate_events(
    call: Call, first_rows: Callable[[asyncio.Future[Outputs]], Awaitable[Outputs]]
) -> AsyncIterator[bytes]:
    """The rows of a call as server-sent events, one each, as they are computed.

    An error of the first rows, for which `first_rows` waits, is raised; a later one is the last event.
    """
    with call.loaded.in_use():
        num_rows = call.job.num_rows
        bounds = [0, *range(1, num_rows, _STREAM_ROWS), num_rows]
        ahead = call.submit(bounds[0], bounds[1])
        try:
            for i, start in enumerate(bounds[:-1]):
                outputs = await (ahead if i else first_rows(ahead))
                if i + 2 < len(bounds):
                    ahead = call.submit(bounds[i + 1], bounds[i + 2])
                for row in range(bounds[i + 1] - start):
                    values = {name: rows[row] for name, rows in outputs.items()}
                    yield b"data: %b\n\n" % _dumps({**_origin(call), "index": start + row, **values})
        except Exception as error:  # whatever it is, it is the stream's last event
            if not start:
                raise
            _, _, message = explain(error)
            yield b"data: %b\n\n" % orjson.dumps({"error": message})
        finally:
            ahead.cancel()


def _origin(call: Call) -> dict[str, Any]:
    origin: dict[str, Any] = {"model_name": call.request.model, "model_version": call.loaded.version}
    if call.request.id:
        origin["id"] = call.request.id
    if isinstance(call.seed, int):
        origin["seed"] = call.seed
    return origin


def _dumps(content: dict[str, Any]) -> bytes:
    # What NumPy does not count among its own dtypes is bfloat16.
    return orjson.dumps(content, lambda array: array.astype(np.float32), orjson.OPT_SERIALIZE_NUMPY)


async def _infer_request(
    endpoint: ServedEndpoint, content: dict[str, Any], model: str, version: str
) -> InferRequest:
    request_id, wanted = content.pop("id", ""), content.pop("outputs", None)
    if not isinstance(request_id, str):
        raise InputError("id: expected a string")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(w, str) for w in wanted)):
        raise InputError("outputs: expected a list of names")
    resize = content.pop("resize", False)
    if not isinstance(resize, bool):
        raise InputError("resize: expected true or false")
    given = dict(content)
    for name, value in parameter_values("request", given.pop("parameters", {})).items():
        _add(given, name, value)
    inputs = {}
    for name in endpoint.inputs.keys() & given.keys():
        inputs[name] = await _tensor(name, endpoint.inputs[name], given.pop(name), resize)
    if isinstance(given.get("seed"), list):
        inputs["seed"] = nested_array("seed", given.pop("seed"), np.dtype(np.int64))
    return InferRequest(
        model, version, request_id, inputs, parameter_values("request", given), wanted or None
    )


async def _tensor(name: str, spec: TensorSpec, value: Any, resize: bool) -> np.ndarray:
    """An input; one row may come without the axis of rows."""
    files = value if isinstance(value, list) else [value]
    if is_picture(spec) and files and all(isinstance(file, bytes | str) for file in files):
        contents = [file.encode() if isinstance(file, str) else file for file in files]
        return await asyncio.to_thread(decode_pictures, name, contents, spec, resize=resize)
    array = nested_array(name, value, np.dtype(spec.dtype))
    return array[None] if array.ndim == len(spec.shape) else array


async def _from_form(endpoint: ServedEndpoint, request: Request, body: bytes) -> dict[str, Any]:
    """The values of a form, read from a body that is there already."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    content: dict[str, Any] = {}
    async with Request(request.scope, receive).form(max_part_size=max(len(body), 1)) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                picture = name if name in endpoint.inputs else _picture_input(endpoint)
                _add(content, picture, await value.read())
            else:
                _add(content, name, _plain(value))
    return content


def _add(content: dict[str, Any], name: str, value: Any) -> None:
    """Adds a value; files of the same name are rows."""
    there = content.get(name)
    if there is None:
        content[name] = value
    elif isinstance(value, bytes) and isinstance(there, bytes | list):
        content[name] = [*(there if isinstance(there, list) else [there]), value]
    else:
        raise InputError(f"{name[:100]!r} is there twice")


def _plain(text: str) -> Any:
    """A value of a form or a query string: JSON where it is some, else the text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _picture_input(endpoint: ServedEndpoint) -> str:
    names = endpoint.picture_inputs
    if len(names) != 1:
        raise InputError(f"{endpoint.name} takes no picture; send JSON")
    return names[0]
