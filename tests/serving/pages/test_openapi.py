"""It is valid, has every route and tells the truth: schemathesis asks what it says can be asked."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema
from served import Live, live

from artifex.generative_models.inference import Executor, InferencePipeline
from artifex.serving import create_app

ON_PURPOSE = {501, 503, 504}  # of the server's errors
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
CHANGES = ["load", "unload"]  # the server, for other requests too


def check(case: Case) -> int:
    """Sends a request; the answer must be as documented."""
    response = case.call()
    on_purpose = response.status_code in ON_PURPOSE or "came out NaN or infinite" in response.text
    assert response.status_code < 500 or on_purpose, case.as_curl_command()
    case.validate_response(response, checks=CHECKS)
    return response.status_code


def check_all(schema: OpenApiSchema, num_requests: int) -> None:
    """Sends requests that the document allows, and others."""
    failures = []
    for result in schema.get_all_operations():
        operation: APIOperation = result.ok()
        allowed, others = map(operation.as_strategy, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE))

        @hypothesis.settings(
            max_examples=num_requests,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(allowed | others)
        def ask(case: Case) -> None:
            check(case)

        try:
            ask()
        except Exception as failure:
            failure.add_note(operation.label)
            failures.append(failure)
    if failures:
        raise ExceptionGroup("some answers are not as documented", failures)


def described(server: Live, **headers: str) -> OpenApiSchema:
    response = server.client.get("/openapi.json", headers=headers)
    schema = schemathesis.openapi.from_dict(response.raise_for_status().json())
    schema.config.update(base_url=server.url)
    return schema


@pytest.fixture(scope="module")
def server(pipeline: InferencePipeline, compiled_plain: Executor) -> Iterator[Live]:
    with live(create_app({"tiny": pipeline, "plain": compiled_plain}, max_rows=16)) as server:
        yield server


@pytest.fixture
def schema(server: Live) -> OpenApiSchema:
    return described(server)


@pytest.fixture
def document(server: Live) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_valid(schema: OpenApiSchema, document: dict[str, Any]):
    schema.validate()
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len({*names}) == len(names)


def test_the_document_has_every_route_and_no_other(server: Live, document: dict[str, Any]):
    routes = {
        (route.path_format, method.lower())
        for route in server.app._routes.router.routes
        for method in route.methods - {"HEAD"}
    }
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes.add((f"{base}/infer", "post"))  # which is not routed, to be fast
    general = {(path, method) for path, method, o in operations(document) if o["tags"] != ["Generate"]}
    assert general == routes


def test_each_endpoint_has_a_path_with_its_inputs(document: dict[str, Any]):
    single = {path: o for path, _, o in operations(document) if o["tags"] == ["Generate"]}
    models = ["tiny", *(f"tiny.{name}" for name in ("encode", "decode", "reconstruct", "elbo"))]
    models += [f"plain.{name}" for name in ("double", "scaled", "noise")]
    assert {*single} == {f"/v2/models/{name}/generate" for name in models}

    def body(model: str) -> dict[str, Any]:
        operation = single[f"/v2/models/{model}/generate"]
        return operation["requestBody"]["content"]["application/json"]["schema"]

    assert body("tiny")["required"] == []
    assert body("tiny")["properties"]["temperature"]["default"] == 1
    assert body("tiny.decode")["required"] == ["z"]
    assert body("plain.double")["properties"]["power"] == {"type": "integer", "default": 1}
    assert "seed" not in body("plain.double")["properties"]
    (model,) = document["paths"]["/v2/models/{model}/ready"]["get"]["parameters"]
    assert {*models, "plain", "tiny.generate"} == {*model["schema"]["enum"]}


def test_every_example_works(schema: OpenApiSchema, document: dict[str, Any]):
    num_examples = 0
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        examples = {name: example["value"] for name, example in content.get("examples", {}).items()}
        if "example" in content:
            examples[""] = content["example"]
        for name, body in examples.items():
            case = schema[path][method.upper()].Case(
                path_parameters={"model": name, "version": "3" if name.startswith("tiny") else "1"},
                body=body,
                media_type="application/json",
            )
            assert check(case) == 200
            num_examples += 1
    assert num_examples == 3 * 8  # generate, and infer with and without a version


def test_answers_are_as_documented(schema: OpenApiSchema):
    check_all(schema.exclude(operation_id=CHANGES), num_requests=12)


def test_answers_to_changes_are_as_documented(pipeline: InferencePipeline):
    with live(create_app({"tiny": pipeline})) as server:
        check_all(described(server).include(operation_id=CHANGES), num_requests=12)


def test_models_that_are_not_loaded_are_known(pipeline: InferencePipeline):
    with live(create_app({"tiny": pipeline})) as server:
        server.client.post("/v2/repository/models/tiny/unload").raise_for_status()
        schema = described(server)
        schema.validate()
        check_all(schema.include(path_regex="{model}").exclude(operation_id=CHANGES), num_requests=3)


def test_refusals_for_want_of_a_key_are_as_documented(pipeline: InferencePipeline):
    with live(create_app({"tiny": pipeline}, api_key="secret")) as server:
        assert server.client.get("/docs").status_code == 401
        check_all(described(server, authorization="Bearer secret"), num_requests=2)
