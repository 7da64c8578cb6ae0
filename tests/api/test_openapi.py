"""The OpenAPI document: every route, every answer, and schemas that real answers satisfy."""

import json
import re

import httpx
import jsonschema
import pytest
import yaml
from jsonschema import Draft202012Validator

from api import openapi
from api.app import create_app
from kdcore.plan import make_plan
from kdcore.spec import parse_spec
from tests.api.conftest import SPEC, Api, submit
from tests.conftest import embedded

TABLE = {
    ("post", "/jobs"), ("post", "/jobs/plan"), ("get", "/jobs"), ("get", "/jobs/{job_id}"),
    ("delete", "/jobs/{job_id}"),
    ("post", "/jobs/{job_id}/cancel"), ("post", "/jobs/{job_id}/pause"), ("post", "/jobs/{job_id}/resume"),
    ("post", "/jobs/{job_id}/retry"), ("get", "/jobs/{job_id}/metrics"), ("get", "/jobs/{job_id}/events"),
    ("get", "/jobs/{job_id}/logs"), ("get", "/jobs/{job_id}/checkpoints"), ("get", "/jobs/{job_id}/artifacts"),
    ("get", "/jobs/{job_id}/artifacts.zip"), ("head", "/jobs/{job_id}/artifacts.zip"),
    ("get", "/jobs/{job_id}/artifacts/{name}"), ("head", "/jobs/{job_id}/artifacts/{name}"), ("get", "/catalog/losses"),
    ("get", "/catalog/models"), ("get", "/catalog/data"), ("get", "/catalog/spec"), ("get", "/workers"),
    ("get", "/metrics"), ("get", "/healthz"), ("get", "/readyz"),
} | {
    (method, f"/{many}{path}")
    for many in ("datasets", "models")
    for method, path in (
        ("post", ""), ("post", "/file"), ("get", ""), ("get", "/{upload_id}"), ("delete", "/{upload_id}"),
        ("put", "/{upload_id}/parts/{number}"), ("post", "/{upload_id}/complete"),
        ("get", "/{upload_id}/files/{name}"),
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return create_app(embedded(tmp_path_factory.mktemp("document"))).openapi()


def operations(document: dict):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_route_is_there_with_a_summary_and_a_name_of_its_own(document: dict):
    assert {(method, path) for method, path, _ in operations(document)} == TABLE
    assert all(operation["summary"] for _, _, operation in operations(document))
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))


def test_every_error_is_a_problem_with_an_example(document: dict):
    for method, path, operation in operations(document):
        errors = {status: body for status, body in operation["responses"].items() if int(status) >= 400}
        assert "500" in errors, (method, path)
        if path not in ("/healthz", "/readyz", "/metrics"):
            assert {"401", "403", "422", "503"} <= set(errors), (method, path)
        for body in errors.values():
            (media,) = body["content"]
            assert media == "application/problem+json"
            jsonschema.validate(body["content"][media]["example"], standalone(document, "Problem"))


def standalone(document: dict, name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_names_of_components_are_as_the_standard_wants_them(document: dict):
    names = [name for parts in document["components"].values() for name in parts]
    assert [name for name in names if not re.fullmatch(r"[a-zA-Z0-9._-]+", name)] == []


def examples(node: object, components: dict):
    """Every JSON example of the document with the schema that it is an example of."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from examples(child, components)
    if not isinstance(node, dict):
        return
    for kind, media in node.get("content", {}).items() if isinstance(node.get("content"), dict) else ():
        for found in [{"value": media["example"]}] if "example" in media else media.get("examples", {}).values():
            if kind.endswith("json"):
                yield found["value"], media["schema"] | {"components": components}
    if isinstance(node.get("examples"), list):
        for example in node["examples"]:
            yield example, {key: part for key, part in node.items() if key != "examples"} | {"components": components}


def test_every_example_satisfies_its_schema(document: dict):
    found = list(examples(document, document["components"]))
    assert len(found) > 100
    for example, schema in found:
        jsonschema.validate(example, schema)


def test_every_reference_leads_somewhere(document: dict):
    names = set(re.findall(r"#/components/schemas/([A-Za-z0-9_-]+)", str(document)))
    assert names <= set(document["components"]["schemas"])
    assert "JobSpec" in names
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_spec_is_documented_and_its_examples_are_good_jobs(document: dict):
    for path in ("/jobs", "/jobs/plan"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "application/yaml"}
        for media in content.values():
            assert media["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    schema = standalone(document, "JobSpec")
    jsonschema.validate(openapi.JSON_EXAMPLE, schema)
    for example in (openapi.JSON_EXAMPLE, openapi.YAML_EXAMPLE):
        assert make_plan(parse_spec(example)).total_steps > 0
    assert yaml.safe_load(openapi.YAML_EXAMPLE)["name"] == "mnist-mlp"


def test_answers_are_as_documented(api: Api, client: httpx.Client, document: dict):
    job_id = submit(client)["id"]
    api.succeed(api.claim(job_id), {"student.onnx": b"x"})
    upload_id = client.post("/models", json={"name": "teacher", "size": 9}).json()["id"]
    paths = {
        "/datasets": "/datasets",
        "/models": "/models",
        "/models/{upload_id}": f"/models/{upload_id}",
        "/jobs": "/jobs",
        "/jobs/{job_id}": f"/jobs/{job_id}",
        "/jobs/{job_id}/events": f"/jobs/{job_id}/events",
        "/jobs/{job_id}/metrics": f"/jobs/{job_id}/metrics",
        "/jobs/{job_id}/checkpoints": f"/jobs/{job_id}/checkpoints",
        "/jobs/{job_id}/artifacts": f"/jobs/{job_id}/artifacts",
        "/catalog/losses": "/catalog/losses",
        "/catalog/data": "/catalog/data",
        "/workers": "/workers",
        "/healthz": "/healthz",
    }
    for template, path in paths.items():
        schema = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(client.get(path).json(), schema | {"components": document["components"]})
    plan = client.post("/jobs/plan", json=SPEC).json()
    jsonschema.validate(plan, standalone(document, "PlanAnswer"))


def test_an_event_of_a_stream_is_as_documented(files_api: Api, files_client: httpx.Client, document: dict):
    """The document called each event a string, though it has a type, an id and data."""
    job_id = submit(files_client)["id"]
    files_client.post(f"/jobs/{job_id}/cancel")
    operation = document["paths"]["/jobs/{job_id}/events"]["get"]
    schema = operation["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    blocks = files_client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).text.split("\n\n")
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks if "data: " in block]
    assert [event["event"] for event in events] == ["submitted", "cancelled"]
    for event in events:
        jsonschema.validate(event, schema)
        jsonschema.validate(json.loads(event["data"]), schema["properties"]["data"]["contentSchema"])


def test_what_no_parameter_may_hold_is_in_the_document(document: dict):
    def parameter(path: str, name: str) -> dict:
        found = document["paths"][path]["get"]["parameters"]
        (schema,) = [one["schema"] for one in found if one["name"] == name]
        return schema

    for name in ("stage", "name"):
        schema = parameter("/jobs/{job_id}/metrics", name)
        assert Draft202012Validator(schema).is_valid("train/loss")
        assert not Draft202012Validator(schema).is_valid("a\x00")
    id = Draft202012Validator(parameter("/jobs/{job_id}/events", "Last-Event-ID"))
    assert [id.is_valid(text) for text in ("12", "", "x", "0" * 5_000)] == [True, True, False, False]


def test_the_document_is_served(files_client: httpx.Client, document: dict):
    assert files_client.get("/openapi.json").json() == document
    assert "/openapi.json" in files_client.get("/docs").text
