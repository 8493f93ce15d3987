"""The server's OpenAPI document: what it answers, with the models that are loaded now."""

from __future__ import annotations

from collections.abc import Iterable

from artifex import __version__
from artifex.serving.pages.examples import (
    all_endpoints,
    generate_example,
    infer_example,
)
from artifex.serving.pages.schemas import (
    SCHEMAS,
    Json,
    generate_options,
    generate_request,
    generate_response,
    object_of,
    ref,
)
from artifex.serving.plane.dataplane import DataPlane
from artifex.serving.plane.loaded_model import ServedEndpoint

_ERRORS = {
    400: ("BadRequest", "The request is wrong."),
    401: ("Unauthorized", "The server has an API key, and the request has none or another."),
    404: ("NotFound", "There is no such model, endpoint or version."),
    408: ("TooSlow", "The body did not arrive in time."),
    413: ("TooLarge", "The body or the number of rows is over the server's limit."),
    429: ("Overloaded", "The queue is full; try again later."),
    500: ("Internal", "Something broke; the server's log tells what."),
    501: ("Unsupported", "The protocol has it, this server does not."),
    503: ("NotReady", "The model is not loaded, or the server is about to end."),
    504: ("Expired", "The request waited too long."),
}
_READ = {401, 500}
_MODEL = {401, 404, 500, 503}
_BODY = {400, 401, 408, 413, 500, 501}
_RUN = _MODEL | _BODY | {429, 504}

_FILE: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_HEADER_LENGTH: Json = {
    "description": "Bytes of the JSON, where binary tensors follow it; 0 is a body of one raw input.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
}
_PICTURES: Json = {f"image/{kind}": {"schema": _FILE} for kind in ("png", "jpeg", "webp", "bmp")}
_ABOUT = (
    "Generative models behind the Open Inference Protocol V2. Each endpoint of a model is a model of the "
    "protocol, such as mnist-vae.encode; the model's own name is its generate."
)


def openapi(plane: DataPlane) -> Json:
    """The document, in OpenAPI 3.1.

    Args:
        plane: Whose models it describes.
    """
    endpoints = all_endpoints(plane)
    served = {name.removesuffix(".generate"): endpoint for name, endpoint in endpoints.items()}
    names = [*plane.repository.entries, *endpoints]
    model = _parameter("path", "model", {"type": "string", "enum": names}, "A model or an endpoint of one.")
    versions = {entry.loaded.version for entry in plane.repository.entries.values() if entry.loaded}
    version = _parameter("path", "version", {"type": "string", "minLength": 1}, "The version that is loaded.")
    version["examples"] = {f"loaded-{i}": {"value": v} for i, v in enumerate(sorted(versions))}
    examples = {name: infer_example(endpoint) for name, endpoint in served.items()}
    paths = {**_pages(), **_server(), **_repository([*plane.repository.entries])}
    for name, endpoint in served.items():
        paths[f"/v2/models/{name}/generate"] = {"post": _generate_of(name, endpoint, plane.max_rows)}
    paths |= _model("/v2/models/{model}", "", [model], examples)
    paths |= _model("/v2/models/{model}/versions/{version}", "OfVersion", [model, version], examples)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Artifex", "version": __version__, "description": _ABOUT},
        "paths": paths | _unsupported(),
        "components": {
            "schemas": SCHEMAS,
            "responses": {name: _error(status, about) for status, (name, about) in _ERRORS.items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],  # a server may have an API key
    }


def _pages() -> Json:
    html: Json = {"text/html": {}}
    any_object = _json({"type": "object"})
    return {
        "/": {"get": _operation("Pages", "index", "The models, with commands to try.", html, _READ)},
        "/docs": {"get": _operation("Pages", "docs", "A table of the operations.", html, _READ)},
        "/openapi.json": {
            "get": _operation("Pages", "openapi", "This API as an OpenAPI document.", any_object, _READ)
        },
    }


def _server() -> Json:
    text: Json = {"text/plain": {}}
    live = _json(object_of({"live": {"const": True}}))
    ready = _operation("Server", "ready", "Whether every model is loaded.", _json(ref("Ready")), set())
    ready["responses"]["503"] = _response("Not yet, or not any more.", _json(ref("Ready")))
    server, statistics = _json(ref("Server")), _json(ref("Statistics"))
    operations = {
        "/metrics": _operation("Server", "metrics", "Counters for Prometheus.", text, _READ),
        "/v2": _operation("Server", "server", "The server's name and extensions.", server, _READ),
        "/v2/health/live": _operation("Server", "live", "Whether the server runs.", live, set()),
        "/v2/health/ready": ready,
        "/v2/models/stats": _operation("Server", "allStatistics", "Counters of all.", statistics, _READ),
    }
    return {path: {"get": operation} for path, operation in operations.items()}


def _repository(names: list[str]) -> Json:
    model = [_parameter("path", "model", {"type": "string", "enum": names}, "A model.")]
    wants_ready = object_of({"ready": {"type": "boolean", "default": False}}, [])
    no_parameters = object_of({"parameters": object_of({}, [])}, [], about="Parameters must be empty.")
    nothing, base = _json({"type": "object"}), "/v2/repository/models/{model}"
    index = _operation("Repository", "models", "The models and their states.", _json(ref("Index")), _BODY)
    load = _operation(
        "Repository", "load", "Loads a model, or its newest checkpoint.", nothing, _MODEL | _BODY
    )
    unload = _operation("Repository", "unload", "Takes a model away.", nothing, (_MODEL | _BODY) - {503})
    index["requestBody"] = {"content": _json(wants_ready)}
    load |= {"parameters": model, "requestBody": {"content": _json(no_parameters)}}
    unload |= {"parameters": model, "requestBody": {"content": _json({"type": "object"})}}
    operations = {"/v2/repository/index": index, f"{base}/load": load, f"{base}/unload": unload}
    return {path: {"post": operation} for path, operation in operations.items()}


def _model(base: str, suffix: str, named: list[Json], examples: dict[str, Json | None]) -> Json:
    """The paths of a model, or of a version of one."""

    def get(name: str, about: str, schema: str) -> Json:
        operation = _operation("Models", name + suffix, about, _json(ref(schema)), _MODEL)
        return {"get": {**operation, "parameters": named}}

    ready = get("modelReady", "Whether a model is loaded.", "ModelReady")
    ready["get"]["responses"]["503"] = _response("It is not.", _json(ref("ModelReady")))
    infer = _operation("Models", "infer" + suffix, "Runs a model.", _json(ref("InferResponse")), _RUN)
    binary = {"application/octet-stream": {"schema": _FILE}}
    infer["responses"]["200"]["content"] |= binary
    infer["responses"]["200"]["headers"] = {"Inference-Header-Content-Length": _HEADER_LENGTH}
    bodies = {name: {"value": body} for name, body in examples.items() if body is not None}
    content = {"application/json": {"schema": ref("InferRequest"), "examples": bodies}, **binary}
    infer["requestBody"] = {"required": True, "content": content}
    header = {"name": "Inference-Header-Content-Length", "in": "header", **_HEADER_LENGTH}
    infer["parameters"] = [*named, header]
    generate = _operation("Models", "generate" + suffix, "Runs a model, in plain JSON.", {}, _RUN)
    generate["responses"]["200"] = _generated(_json(ref("GenerateResponse")), pictures=True)
    events: Json = {"text/event-stream": {"example": 'data: {"index": 0, "x": [[0.0]]}\n\n'}}
    about = "Runs a model and sends each row as an event, a JSON object, once it is there."
    stream = _operation("Models", "generateStream" + suffix, about, events, _RUN)
    for operation in (generate, stream):
        operation["parameters"] = named
        form = {"multipart/form-data": {"schema": {"type": "object"}}}
        operation["requestBody"] = {"content": {**_json(ref("GenerateRequest")), **form, **_PICTURES}}
    return {
        base: get("model", "A model's inputs and outputs.", "Model"),
        f"{base}/ready": ready,
        f"{base}/config": get(
            "modelConfig", "A model's inputs and outputs, as Triton has it.", "ModelConfig"
        ),
        f"{base}/stats": get("statistics", "A model's counters.", "Statistics"),
        f"{base}/infer": {"post": infer},
        f"{base}/generate": {"post": generate},
        f"{base}/generate_stream": {"post": stream},
        f"{base}/trace/setting": _unsupported_operations("modelTrace" + suffix, named),
    }


def _generate_of(name: str, endpoint: ServedEndpoint, max_rows: int) -> Json:
    """Generate for one endpoint."""
    about = f"{name}: {endpoint.doc or 'runs it'}, in plain JSON."
    operation = _operation("Generate", f"generate-{name}", about, {}, _RUN)
    operation["description"] = f"/v2/models/{name}/generate_stream takes the same and sends rows one by one."
    answer = _json(generate_response(endpoint))
    operation["responses"]["200"] = _generated(answer, pictures=bool(endpoint.picture_outputs))
    options = generate_options(endpoint, max_rows)
    operation["parameters"] = [
        _parameter("query", option, schema, "", required=False) for option, schema in options.items()
    ]
    content = _json(generate_request(endpoint, max_rows))
    example = generate_example(endpoint)
    if example is not None:
        content["application/json"]["example"] = example
    if len(endpoint.picture_inputs) == 1:
        content |= _PICTURES
    if endpoint.picture_inputs:
        files: Json = {name: {"type": "array", "items": _FILE} for name in endpoint.picture_inputs}
        content["multipart/form-data"] = {"schema": object_of({**files, **options}, [])}
    operation["requestBody"] = {"content": content}
    return operation


def _generated(content: Json, *, pictures: bool) -> Json:
    seed = {"description": "What repeats the draw.", "schema": {"type": "integer"}}
    png = {"image/png": {"schema": _FILE}} if pictures else {}
    about = (
        "The outputs; a PNG of the pictures for a request that accepts image/png." if png else "The outputs."
    )
    return {**_response(about, {**content, **png}), "headers": {"artifex-seed": seed}}


def _unsupported() -> Json:
    kind = _parameter("path", "kind", {"type": "string", "enum": ["system", "cuda"]}, "Whose memory.")
    rest = _parameter("path", "rest", {"type": "string", "minLength": 1}, "What to do with it.")
    return {
        "/v2/trace/setting": _unsupported_operations("trace", []),
        "/v2/logging": _unsupported_operations("logging", []),
        "/v2/{kind}sharedmemory/{rest}": _unsupported_operations("sharedMemory", [kind, rest]),
    }


def _unsupported_operations(name: str, parameters: list[Json]) -> Json:
    """What some clients ask every server for."""
    about, path = "Not supported.", {}
    for method in ("get", "post"):
        operation = _operation("Not supported", f"{method}-{name}", about, None, {401, 500, 501})
        path[method] = {**operation, "parameters": parameters}
    return path


def _operation(tag: str, name: str, about: str, content: Json | None, errors: Iterable[int]) -> Json:
    responses: Json = {} if content is None else {"200": _response("OK.", content)}
    for status in sorted(errors):
        responses[str(status)] = {"$ref": f"#/components/responses/{_ERRORS[status][0]}"}
    return {"tags": [tag], "operationId": name, "summary": about, "responses": responses}


def _parameter(where: str, name: str, schema: Json, about: str, *, required: bool = True) -> Json:
    described = {"description": about} if about else {}
    return {"name": name, "in": where, "required": required, "schema": schema, **described}


def _error(status: int, about: str) -> Json:
    response = _response(about, _json(ref("Error")))
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response


def _response(about: str, content: Json) -> Json:
    return {"description": about, "content": content}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
