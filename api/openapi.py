"""The OpenAPI document: problems with their content type, and the spec's own schema."""

from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from api.new_uploads import NewDataset, NewModel
from api.problems import MEDIA_TYPE
from api.schemas import Problem
from kdcore.spec import JobSpec

REFERENCE = "#/components/schemas/{model}"
PROBLEM = {"$ref": REFERENCE.format(model="Problem")}
SPEC = {"$ref": REFERENCE.format(model="JobSpec")}

WHEN = {
    400: "The body or a header cannot be read.",
    401: "No API key, or none of this service's.",
    403: "Without API keys: a request from a web page of another origin, or to another host name.",
    404: "There is no such thing, or it is another owner's.",
    409: "The status does not allow it, or something that has not ended needs it.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or your uploads would be together.",
    415: "The body is of another type than those that are read here.",
    416: "The range begins behind the end of the file.",
    422: "A parameter or the spec is not valid; `errors` leads to each fault.",
    500: "A fault of the service; its log has the details under `request_id`.",
    503: "Not now: the queue is full, too many streams are open, the database is away or of another version. See "
    "`Retry-After`.",
    507: "Too little disk is free.",
}
CODES = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    408: "body_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "invalid_parameter",
    500: "internal",
    503: "database_unavailable",
    507: "insufficient_storage",
}

JSON_EXAMPLE = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [256, 256]}, "train": {"epochs": 20}}],
    "student": {"model": {"type": "mlp", "hidden": [16]}},
}
YAML_EXAMPLE = """\
name: mnist-mlp
data: {type: mnist}
teachers:
  - model: {type: mlp, hidden: [1200, 1200], dropout: 0.5}
    train: {epochs: 6, batch_size: 32, optimizer: {type: adam, lr: 1e-4}}
student:
  model: {type: mlp, hidden: [20, 20]}
stages:
  - epochs: 5
    batch_size: 32
    optimizer: {type: adam, lr: 1e-4}
    losses:
      - {type: cross_entropy, weight: 0.3}
      - {type: kd, weight: 0.7, temperature: 7}
"""
SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The spec.",
        "content": {
            "application/json": {"schema": SPEC, "examples": {"digits": {"value": JSON_EXAMPLE}}},
            "application/yaml": {"schema": SPEC, "examples": {"mnist": {"value": YAML_EXAMPLE}}},
        },
    }
}


def new_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The body that says what is to be uploaded."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    content = {kind: {"schema": schema} for kind in ("application/json", "application/yaml")}
    content["application/json"] |= {"example": example}
    return {"openapi_extra": {"requestBody": {"required": True, "description": model.__doc__, "content": content}}}


def bytes_body(description: str) -> dict[str, Any]:
    """A body that is a file."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"openapi_extra": {"requestBody": {"required": True, "description": description, "content": content}}}


ETAG = {"ETag": {"schema": {"type": "string"}, "description": "Send it back as `If-None-Match`."}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these error responses."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    example = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": CODES[status],
        "detail": WHEN[status],
        "request_id": "req_01k2v9h3m4n5p6q7r8s9t0v1w2",
    }
    documented: dict[str, Any] = {
        "description": WHEN[status],
        "content": {MEDIA_TYPE: {"schema": PROBLEM, "example": example}},
    }
    if status == 503:
        documented["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return documented


COMMON = problems(401, 403, 422, 500, 503)
"""What every route behind a key may answer."""


def operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call the operation."""
    return route.name


def build(title: str, version: str, description: str, routes: list[BaseRoute]) -> dict[str, Any]:
    """The whole document."""
    document = get_openapi(title=title, version=version, description=description, routes=routes)
    schemas = document["components"]["schemas"]
    for model in (Problem, JobSpec, NewDataset, NewModel):
        schema = model.model_json_schema(ref_template=REFERENCE, mode="validation")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for name in ("Job", "PlanAnswer"):
        field = schemas[name]["properties"]["spec"]
        schemas[name]["properties"]["spec"] = SPEC | {"description": field["description"]}
    return document
