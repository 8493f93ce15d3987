"""The generate extension, for people: plain JSON, picture files and PNGs, samples as they are drawn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from starlette.datastructures import UploadFile
from starlette.requests import Request

from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.specs import TensorSpec
from artifex.generative_models.inference.images import is_picture
from artifex.serving.http.codec import Loads, dump_json, parameter_values, parse_object
from artifex.serving.http.json_process import LARGE_BYTES, JsonProcess
from artifex.serving.plane.dataplane import Call, DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint
from artifex.serving.plane.pictures import decode_pictures, picture_urls
from artifex.serving.plane.requests import InferRequest, present
from artifex.serving.plane.statuses import UnsupportedMediaError, explain
from artifex.serving.plane.streams import rows_and_previews
from artifex.serving.plane.tensors import nested_array, short

_STREAM_ROWS = 16  # computed together, after the first,
_STREAM_BYTES = 64 << 20  # where they are not larger than this
_FORM_BYTES = 1 << 18  # of a form, taken apart at a time
_SEED = TensorSpec((), np.int64)
_PICTURES = ("numbers", "png")
# What JSON comes as: also from curl and from a browser's fetch, where nobody says what it is.
_JSON_KINDS = ("", "application/json", "application/x-www-form-urlencoded", "text/plain")


@dataclass(frozen=True)
class Generate:
    """A generate request.

    Args:
        call: What it asks for.
        pictures: The form of pictures in JSON: "numbers", or "png", which is a data URL each.
    """

    call: Call
    pictures: str


async def read_generate(
    request: Request, body: bytes, plane: DataPlane, json: JsonProcess, *, is_stream: bool = False
) -> Generate:
    """What a generate request asks for.

    The body is a JSON object whose properties are inputs and parameters, a picture file, or a form with both;
    a query string may hold more parameters. The path names the model.

    Raises:
        ArtifexError: As for `DataPlane.prepare`, and where the body is something else.
    """
    model, version = request.path_params["model"], request.path_params.get("version", "")
    _, endpoint = plane.find(model, version)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        content = await _from_form(endpoint, request, body, json)
    elif kind.startswith("image/"):
        content = {_picture_input(endpoint): body}
    elif kind in _JSON_KINDS or kind.endswith("+json"):
        content = await read_object(body, json) if body.strip() else {}
    else:
        raise UnsupportedMediaError(
            f"Content-Type: expected application/json, multipart/form-data or a picture's, got {short(kind)}"
        )
    for name, value in request.query_params.multi_items():
        _add(content, name, _plain(value))
    is_input = "pictures" in {*endpoint.inputs, *endpoint.fields}
    pictures = "numbers" if is_input else content.pop("pictures", None) or "numbers"
    if pictures not in _PICTURES:
        raise InputError(f"pictures: expected one of {', '.join(_PICTURES)}, got {short(pictures)}")
    asked = await _infer_request(endpoint, content, model, version)
    return Generate(await plane.prepare(asked, is_stream=is_stream), pictures)


async def generate_response(asked: Generate, outputs: Mapping[str, np.ndarray], json: JsonProcess) -> bytes:
    """The outputs of a request as a JSON object, nested."""
    return await _dumped(_origin(asked.call), await _shown(asked, outputs), json)


async def read_object(body: bytes, json: JsonProcess) -> dict[str, Any]:
    """The JSON object of a body, in which large arrays may be NumPy arrays.

    Raises:
        InputError: It is something else.
    """
    if len(body) < LARGE_BYTES:
        return parse_object(body)
    return await json.run(parse_object, body, json.loads)


async def _shown(asked: Generate, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Outputs with pictures in the form that was asked for."""
    outputs = asked.call.given(outputs)
    if asked.pictures == "numbers":
        return dict(outputs)
    names = [name for name in asked.call.endpoint.picture_outputs if name in outputs]
    pipeline = asked.call.loaded.pipeline
    urls = {name: await asyncio.to_thread(picture_urls, pipeline, outputs[name]) for name in names}
    return {**outputs, **urls}


async def _dumped(facts: dict[str, Any], outputs: Mapping[str, Any], json: JsonProcess) -> bytes:
    arrays = {name: _named(array) for name, array in outputs.items() if isinstance(array, np.ndarray)}
    texts = {name: array.tolist() for name, array in arrays.items() if array.dtype == object}
    content = {**facts, **outputs, **arrays, **texts}
    size = sum(array.nbytes for array in arrays.values())
    urls = [one for one in (*outputs.values(), *texts.values()) if isinstance(one, str | list)]
    size += sum(len(one) if isinstance(one, str) else sum(map(len, one)) for one in urls)
    if size < LARGE_BYTES:
        return dump_json(content)
    return await json.run(json.dumps, content)


async def generate_events(asked: Generate, json: JsonProcess) -> AsyncGenerator[bytes]:
    """Server-sent events: one for each row as it is computed, before it those of its previews.

    An error before the first of them is raised; a later one is the last event.
    """
    call, begun = asked.call, False
    at_once = min(_STREAM_ROWS, max(1, _STREAM_BYTES // call.job.bytes_per_row))
    bounds = [0, *range(1, call.job.num_rows, at_once), call.job.num_rows]
    try:
        async with contextlib.aclosing(rows_and_previews(call, bounds)) as found:
            async for part in found:
                shown = await _shown(asked, part.outputs)
                for i, index in enumerate(part.rows):
                    which = {"index": index}
                    if part.steps is not None:
                        which |= {"step": part.steps[i], "preview": True}
                    row = {name: rows[i] for name, rows in shown.items()}
                    event = await _dumped(_origin(call) | which, row, json)
                    begun = True
                    yield b"data: %b\n\n" % event
        call.finished()
    except Exception as error:  # whatever it is, it is the stream's last event
        if not begun:
            raise
        _, _, message = explain(error)
        yield b"data: %b\n\n" % orjson.dumps({"error": message})


def _origin(call: Call) -> dict[str, Any]:
    origin: dict[str, Any] = {"model_name": call.request.model, "model_version": call.loaded.version}
    if call.request.id:
        origin["id"] = call.request.id
    if isinstance(call.seed, int):
        origin["seed"] = call.seed
    return origin


def _named(array: np.ndarray) -> np.ndarray:
    """An array of a dtype that JSON is made of; NumPy does not count bfloat16 among its own."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array


async def _infer_request(
    endpoint: ServedEndpoint, content: dict[str, Any], model: str, version: str
) -> InferRequest:
    content = present(content)
    request_id, wanted = content.pop("id", ""), content.pop("outputs", None)
    if not isinstance(request_id, str):
        raise InputError("id: expected a string")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(w, str) for w in wanted)):
        raise InputError("outputs: expected a list of names")
    resize = content.pop("resize", False)
    if not isinstance(resize, bool):
        raise InputError("resize: expected true or false")
    for name, value in parameter_values("request", content.pop("parameters", {})).items():
        _add(content, name, value)
    inputs = {}
    for name in endpoint.inputs.keys() & content.keys():
        inputs[name] = await _tensor(name, endpoint.inputs[name], content.pop(name), resize)
    for name in endpoint.fields.keys() & content.keys():
        if isinstance(content[name], list | np.ndarray):  # one a row; one for all is a parameter
            value = content.pop(name)
            inputs[name] = value if isinstance(value, np.ndarray) else np.array(value, object)
    if isinstance(content.get("seed"), list | np.ndarray):
        inputs["seed"] = nested_array("seed", content.pop("seed"), np.dtype(np.int64))
    parameters = parameter_values("request", content)
    return InferRequest(model, version, request_id, inputs, parameters, wanted or None)


async def _tensor(name: str, spec: TensorSpec, value: Any, resize: bool) -> np.ndarray:
    """An input; one row may come without the axis of rows."""
    files = value if isinstance(value, list) else [value]
    if is_picture(spec) and files and all(isinstance(file, bytes | str) for file in files):
        return await asyncio.to_thread(_pictures, name, files, spec, resize)
    if isinstance(value, np.ndarray):  # which are long
        array = await asyncio.to_thread(nested_array, name, value, np.dtype(spec.dtype))
    else:
        array = nested_array(name, value, np.dtype(spec.dtype))
    return array[None] if array.ndim == len(spec.shape) else array


def _pictures(name: str, files: list[bytes | str], spec: TensorSpec, resize: bool) -> np.ndarray:
    contents = [file.encode() if isinstance(file, str) else file for file in files]
    return decode_pictures(name, contents, spec, resize=resize)


async def _from_form(
    endpoint: ServedEndpoint, request: Request, body: bytes, json: JsonProcess
) -> dict[str, Any]:
    """The values of a form, read from a body that is there already."""
    starts = iter(range(0, len(body) + 1, _FORM_BYTES))

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)  # others come in between
        start = next(starts)
        stop = start + _FORM_BYTES
        return {"type": "http.request", "body": body[start:stop], "more_body": stop <= len(body)}

    content: dict[str, Any] = {}
    async with Request(request.scope, receive).form(max_part_size=max(len(body), 1)) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                picture = name if name in endpoint.inputs else _picture_input(endpoint)
                _add(content, picture, await value.read())
            else:
                large = len(value) >= LARGE_BYTES
                _add(content, name, await json.run(_plain, value, json.loads) if large else _plain(value))
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


def _plain(text: str, loads: Loads = orjson.loads) -> Any:
    """A value of a form or a query string: JSON where it is some, else the text."""
    try:
        return loads(text.encode())
    except (orjson.JSONDecodeError, InputError):
        return text


def _picture_input(endpoint: ServedEndpoint) -> str:
    names = endpoint.picture_inputs
    if len(names) != 1:
        raise InputError(f"{endpoint.name} takes no picture; send JSON")
    return names[0]
