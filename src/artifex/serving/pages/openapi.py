"""The server's OpenAPI document: what it answers, with the models that are loaded now."""

from __future__ import annotations

from collections.abc import Set

from artifex import __version__
from artifex.serving.pages.examples import all_endpoints, generate_example, infer_example
from artifex.serving.pages.files import MEDIA_TYPES, studio_files
from artifex.serving.pages.schemas import (
    FLAG,
    OBJECT,
    SCHEMAS,
    TEXT,
    Json,
    array_of,
    described,
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
    415: ("UnsupportedMedia", "The body's content type is none that is taken."),
    429: ("Overloaded", "The queue is full; try again later."),
    500: ("Internal", "Something broke; the server's log tells what."),
    501: ("Unsupported", "The protocol has it, this server does not."),
    503: ("NotReady", "The model is not loaded, or the server is about to end."),
    504: ("Expired", "The request waited too long."),
}
_READ = {401, 500}
_MODEL = {401, 404, 500, 503}
_BODY = {400, 401, 408, 413, 500, 501}
_GENERATE = _MODEL | _BODY | {415, 429, 504}
_RUN = _MODEL | _BODY | {429, 504}

_FILE: Json = {**TEXT, "contentMediaType": "application/octet-stream"}
_BINARY: Json = {"application/octet-stream": {"schema": _FILE}}
_HEADER_LENGTH: Json = {
    "description": "Bytes of the JSON, where binary tensors follow it; 0 is a body of one raw input.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
}
_PICTURES: Json = {f"image/{kind}": {"schema": _FILE} for kind in ("png", "jpeg", "webp", "bmp")}
_CONTROLS = "The models for the studio: their endpoints, and a control for everything that these take."
_ABOUT = (
    "Generative models behind the Open Inference Protocol V2. Each endpoint of a model is a model of the "
    "protocol, such as mnist-vae.encode; the model's own name is its generate."
)


def openapi(plane: DataPlane) -> Json:
    """The document, in OpenAPI 3.1."""
    endpoints = all_endpoints(plane)
    served = {name.removesuffix(".generate"): endpoint for name, endpoint in endpoints.items()}
    names = [*plane.repository.entries, *endpoints]
    model = _parameter("path", "model", {**TEXT, "enum": names}, "A model or an endpoint of one.")
    versions = {entry.loaded.version for entry in plane.repository.entries.values() if entry.loaded}
    version = _parameter("path", "version", {**TEXT, "minLength": 1}, "The version that is loaded.")
    version["examples"] = {f"loaded-{i}": {"value": v} for i, v in enumerate(sorted(versions))}
    examples = {name: infer_example(endpoint) for name, endpoint in served.items()}
    generates = {
        f"/v2/models/{name}/generate": _generate_of(name, endpoint, plane.max_rows)
        for name, endpoint in served.items()
    }
    paths = _server() | _repository([*plane.repository.entries]) | _paths("Generate", "post", generates)
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


def _server() -> Json:
    html: Json = {"text/html": {}}
    text: Json = {"text/plain": {}}
    files: Json = {media_type: {} for media_type in MEDIA_TYPES.values()}
    file = _parameter("path", "file", {**TEXT, "enum": [*studio_files()]}, "Its name.")
    live, statistics = _json(object_of({"live": {"const": True}})), _json(ref("Statistics"))
    ready = _operation("ready", "Whether every model is loaded.", _json(ref("Ready")), set())
    ready["responses"]["503"] = _response("Not yet, or not any more.", _json(ref("Ready")))
    pages = {
        "/": _operation("index", "The studio, and the models with commands to try.", html, {500}),
        "/docs": _operation("docs", "A table of the operations.", html, _READ),
        "/openapi.json": _operation("openapi", "This API as an OpenAPI document.", _json(OBJECT), _READ),
        "/studio/models.json": _operation("studioModels", _CONTROLS, _json(ref("StudioModels")), _READ),
        "/studio/{file}": _operation("studioFile", "A file of the studio.", files, {401, 404, 500}, [file]),
    }
    server = {
        "/metrics": _operation("metrics", "Counters for Prometheus.", text, _READ),
        "/v2": _operation("server", "The server's name and extensions.", _json(ref("Server")), _READ),
        "/v2/health/live": _operation("live", "Whether the server runs.", live, set()),
        "/v2/health/ready": ready,
        "/v2/models/stats": _operation("allStatistics", "Counters of all.", statistics, _READ),
    }
    return _paths("Pages", "get", pages) | _paths("Server", "get", server)


def _repository(names: list[str]) -> Json:
    model = [_parameter("path", "model", {**TEXT, "enum": names}, "A model.")]
    wants_ready = _json(object_of({"ready": {**FLAG, "default": False}}, []))
    no_parameters = object_of({"parameters": object_of({}, [])}, [], about="Parameters must be empty.")
    nothing, changes, base = _json(OBJECT), _MODEL | _BODY, "/v2/repository/models/{model}"
    index = _operation(
        "models", "The models and their states.", _json(ref("Index")), _BODY, None, wants_ready
    )
    about = "Loads a model, or its newest checkpoint."
    load = _operation("load", about, nothing, changes, model, _json(no_parameters))
    unload = _operation("unload", "Takes a model away.", nothing, changes - {503}, model, nothing)
    operations = {"/v2/repository/index": index, f"{base}/load": load, f"{base}/unload": unload}
    return _paths("Repository", "post", operations)


def _model(base: str, suffix: str, named: list[Json], examples: dict[str, Json | None]) -> Json:
    """The paths of a model, or of a version of one."""

    def get(name: str, about: str, schema: str) -> Json:
        return _operation(name + suffix, about, _json(ref(schema)), _MODEL, named)

    ready = get("modelReady", "Whether a model is loaded.", "ModelReady")
    ready["responses"]["503"] = _response("It is not.", _json(ref("ModelReady")))
    metadata = {
        base: get("model", "A model's inputs and outputs.", "Model"),
        f"{base}/ready": ready,
        f"{base}/config": get(
            "modelConfig", "A model's inputs and outputs, as Triton has it.", "ModelConfig"
        ),
        f"{base}/stats": get("statistics", "A model's counters.", "Statistics"),
    }
    infer = _operation("infer" + suffix, "Runs a model.", _json(ref("InferResponse")) | _BINARY, _RUN)
    infer["responses"]["200"]["headers"] = {"Inference-Header-Content-Length": _HEADER_LENGTH}
    header = {"name": "Inference-Header-Content-Length", "in": "header", **_HEADER_LENGTH}
    infer["parameters"] = [*named, header]
    bodies = {name: {"value": body} for name, body in examples.items() if body is not None}
    content = {"application/json": {"schema": ref("InferRequest"), "examples": bodies}, **_BINARY}
    infer["requestBody"] = {"required": True, "content": content}
    body = {**_json(ref("GenerateRequest")), "multipart/form-data": {"schema": OBJECT}, **_PICTURES}
    generate = _operation("generate" + suffix, "Runs a model, in plain JSON.", {}, _GENERATE, named, body)
    generate["responses"]["200"] = _generated(_json(ref("GenerateResponse")), pictures=True)
    events: Json = {"text/event-stream": {"example": 'data: {"index": 0, "x": [[0.0]]}\n\n'}}
    about = "Runs a model and sends each row as an event, a JSON object, once it is there."
    stream = _operation("generateStream" + suffix, about, events, _GENERATE, named, body)
    stream["description"] = (
        "With every, of models that take steps: before it events with preview, the row's index and step, and "
        "what it looks like after every so many steps. Who reads slowly gets the newest."
    )
    runs = {f"{base}/infer": infer, f"{base}/generate": generate, f"{base}/generate_stream": stream}
    return {
        **_paths("Models", "get", metadata),
        **_paths("Models", "post", runs),
        f"{base}/trace/setting": _unsupported_operations("modelTrace" + suffix, named),
    }


def _generate_of(name: str, endpoint: ServedEndpoint, max_rows: int) -> Json:
    """Generate for one endpoint."""
    options = generate_options(endpoint, max_rows)
    parameters = [_parameter("query", option, schema, required=False) for option, schema in options.items()]
    content = _json(generate_request(endpoint, max_rows))
    example = generate_example(endpoint)
    if example is not None:
        content["application/json"]["example"] = example
    if len(endpoint.picture_inputs) == 1:
        content |= _PICTURES
    if endpoint.picture_inputs:
        files = dict.fromkeys(endpoint.picture_inputs, array_of(_FILE))
        content["multipart/form-data"] = {"schema": object_of({**files, **options}, [])}
    about = f"{name}: {endpoint.doc or 'runs it'}, in plain JSON."
    operation = _operation(f"generate-{name}", about, {}, _GENERATE, parameters, content)
    answer = _json(generate_response(endpoint))
    operation["responses"]["200"] = _generated(answer, pictures=bool(endpoint.picture_outputs))
    looks = ", and with every, steps, previews before them" if endpoint.takes_steps else ""
    return described(
        operation, f"/v2/models/{name}/generate_stream takes the same and sends rows one by one{looks}."
    )


def _generated(content: Json, *, pictures: bool) -> Json:
    about = "The outputs."
    if pictures:
        about = "The outputs; a PNG of the pictures for a request that accepts image/png."
        content = {**content, "image/png": {"schema": _FILE}}
    seed = {"description": "What repeats the draw.", "schema": {"type": "integer"}}
    return {**_response(about, content), "headers": {"artifex-seed": seed}}


def _unsupported() -> Json:
    kind = _parameter("path", "kind", {**TEXT, "enum": ["system", "cuda"]}, "Whose memory.")
    rest = _parameter("path", "rest", {**TEXT, "minLength": 1}, "What to do with it.")
    return {
        "/v2/trace/setting": _unsupported_operations("trace", []),
        "/v2/logging": _unsupported_operations("logging", []),
        "/v2/{kind}sharedmemory/{rest}": _unsupported_operations("sharedMemory", [kind, rest]),
    }


def _unsupported_operations(name: str, parameters: list[Json]) -> Json:
    """What some clients ask every server for."""
    path = {}
    for method in ("get", "post"):
        operation = _operation(f"{method}-{name}", "Not supported.", None, {401, 500, 501}, parameters)
        path[method] = {"tags": ["Not supported"], **operation}
    return path


def _paths(tag: str, method: str, operations: Json) -> Json:
    return {path: {method: {"tags": [tag], **operation}} for path, operation in operations.items()}


def _operation(
    name: str,
    about: str,
    content: Json | None,
    errors: Set[int],
    parameters: list[Json] | None = None,
    body: Json | None = None,
) -> Json:
    responses: Json = {} if content is None else {"200": _response("OK.", content)}
    for status in sorted(errors):
        responses[str(status)] = {"$ref": f"#/components/responses/{_ERRORS[status][0]}"}
    operation: Json = {"operationId": name, "summary": about, "responses": responses}
    if parameters is not None:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"content": body}
    return operation


def _parameter(where: str, name: str, schema: Json, about: str = "", *, required: bool = True) -> Json:
    return described({"name": name, "in": where, "required": required, "schema": schema}, about)


def _error(status: int, about: str) -> Json:
    response = _response(about, _json(ref("Error")))
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response


def _response(about: str, content: Json) -> Json:
    return {"description": about, "content": content}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
