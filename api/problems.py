"""Errors as RFC 9457 problem documents: one tree, one table, one form."""

import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kdcore.config import SpecError
from kdcore.document import DocumentError
from storage.errors import (
    BlobError,
    ConflictError,
    KeyReusedError,
    NotFoundError,
    QueueFullError,
    QuotaError,
    SchemaError,
)

MEDIA_TYPE = "application/problem+json"
CLIENT_GONE = 499
"""For log and figures: nobody is there to read it."""
Loc = tuple[str | int, ...]
DISK_FULL = ("disk is full", "no space left", "could not extend file")


class ProblemError(Exception):
    """What the API refuses by itself.

    ProblemError
    ├── MalformedError        400 the body or a header cannot be read
    ├── UnauthorizedError     401 no key, or none of ours
    ├── ForbiddenError        403 a browser's page of another origin
    ├── BodyTimeoutError      408 the body did not arrive in time
    ├── BodyTooLargeError     413
    ├── ContentTypeError      415 neither JSON nor YAML
    ├── RangeError            416 no such bytes
    ├── InvalidError          422 a parameter means nothing here
    ├── InvalidUploadError    422 what is said of an upload cannot be, or a part has another size
    ├── DigestMismatchError   422 other bytes arrived than were sent
    ├── TooManyStreamsError   503 too many open streams and waits
    ├── TooManyBodiesError    503 too many bodies arrive at once
    ├── NotReadyError         503 a part of the service is away
    ├── OtherVersionError     503 it takes another version of this process
    └── DiskFullError         507 too little free disk
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(
        self, detail: str, *, headers: Mapping[str, str] | None = None, errors: Iterable[tuple[Loc, str]] = ()
    ) -> None:
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = list(errors)
        super().__init__(detail)


class MalformedError(ProblemError):
    status, code = 400, "malformed"


class UnauthorizedError(ProblemError):
    status, code = 401, "unauthorized"


class ForbiddenError(ProblemError):
    status, code = 403, "forbidden"


class BodyTimeoutError(ProblemError):
    status, code = 408, "body_timeout"


class BodyTooLargeError(ProblemError):
    status, code = 413, "body_too_large"


class ContentTypeError(ProblemError):
    status, code = 415, "unsupported_media_type"


class RangeError(ProblemError):
    status, code = 416, "range_not_satisfiable"


class InvalidError(ProblemError):
    status, code = 422, "invalid_parameter"


class InvalidUploadError(ProblemError):
    status, code = 422, "invalid_upload"


class DigestMismatchError(ProblemError):
    status, code = 422, "digest_mismatch"


class TooManyStreamsError(ProblemError):
    status, code = 503, "too_many_streams"


class TooManyBodiesError(ProblemError):
    status, code = 503, "too_many_bodies"


class NotReadyError(ProblemError):
    status, code = 503, "not_ready"


class OtherVersionError(ProblemError):
    status, code = 503, "other_version"


class DiskFullError(ProblemError):
    status, code = 507, "insufficient_storage"


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Iterable[tuple[Loc, str]] = (),
) -> Response:
    """The response that says what went wrong."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request.scope.get("request_id"),
    }
    listed = [{"loc": list(loc), "message": message} for loc, message in errors]
    if listed:
        content["errors"] = listed
    # ASCII: a detail may quote what the client sent, and not all of that is valid Unicode.
    return Response(json.dumps(content), status, headers=headers, media_type=MEDIA_TYPE)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def internal_problem(request: Request) -> Response:
    """A 500 that says nothing but where to look."""
    return problem(request, 500, "internal", "something went wrong here; the log has it under this request_id")


def stopping_problem(request: Request) -> Response:
    """To a request that is not answered when the server ends."""
    detail = "this server is stopping; send the request again"
    if request.method not in ("GET", "HEAD") and "Idempotency-Key" not in request.headers:
        detail = "this server is stopping; the request may have been carried out: look before you send it again"
    return problem(request, 503, "stopping", detail, headers={"Retry-After": "1"})


async def _on_problem(request: Request, error: ProblemError) -> Response:
    return problem(request, error.status, error.code, error.detail, headers=error.headers, errors=error.errors)


async def _on_http(request: Request, error: HTTPException) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed", 400: "malformed"}
    details = {404: "there is nothing at this address", 405: f"{request.method} is not allowed here"}
    detail = details.get(error.status_code, error.detail)
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
    return problem(request, error.status_code, codes.get(error.status_code, "error"), detail, headers=headers)


def _allowed(request: Request) -> str:
    """The methods of every route at this address; Starlette names those of the first alone."""
    path = request.scope["path"]
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    exact = [route for route in routes if route.path == path]  # /jobs/plan is no job's id
    return ", ".join(sorted({method for route in exact or routes for method in route.methods or ()}))


async def _on_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    errors = [(tuple(fault["loc"]), re.sub(r"^\w+ should", "must", fault["msg"])) for fault in error.errors()]
    detail = "; ".join(f"{loc[-1]}: {message}" for loc, message in errors)
    return problem(request, 422, "invalid_parameter", detail, errors=errors)


async def _on_spec(request: Request, error: SpecError) -> Response:
    return problem(request, 422, "invalid_spec", str(error), errors=error.errors)


async def _on_document(request: Request, error: DocumentError) -> Response:
    return problem(request, 400, "malformed", f"the body cannot be read: {error}")


async def _on_not_found(request: Request, error: NotFoundError) -> Response:
    return problem(request, 404, "not_found", str(error))


async def _on_conflict(request: Request, error: ConflictError) -> Response:
    return problem(request, 409, "conflict", str(error))


async def _on_reused_key(request: Request, error: KeyReusedError) -> Response:
    return problem(request, 422, "idempotency_key_reused", str(error))


async def _on_full_queue(request: Request, error: QueueFullError) -> Response:
    return problem(request, 503, "queue_full", f"{error}; try again later", headers={"Retry-After": "30"})


async def _on_quota(request: Request, error: QuotaError) -> Response:
    return problem(request, 413, "upload_quota", str(error))


async def _on_schema(request: Request, error: SchemaError) -> Response:
    return problem(request, 503, "other_version", f"nothing was stored: {error}", headers={"Retry-After": "5"})


async def _on_lost_blob(request: Request, error: BlobError) -> Response:
    return problem(request, 500, "artifact_damaged", str(error))


async def _on_database(request: Request, error: DBAPIError | PoolTimeoutError) -> Response:
    reason = str(getattr(error, "orig", None) or "").lower()
    if any(words in reason for words in DISK_FULL):
        return problem(request, 507, "insufficient_storage", "the database's disk is full; nothing was stored")
    away = isinstance(error, (OperationalError, InterfaceError, PoolTimeoutError)) or error.connection_invalidated
    if not away:
        raise error
    detail = "the database does not answer; nothing was lost, try again"
    return problem(request, 503, "database_unavailable", detail, headers={"Retry-After": "5"})


HANDLERS: dict[type[Exception], Any] = {
    ProblemError: _on_problem,
    HTTPException: _on_http,
    ClientDisconnect: _on_disconnect,
    RequestValidationError: _on_validation,
    SpecError: _on_spec,
    DocumentError: _on_document,
    NotFoundError: _on_not_found,
    ConflictError: _on_conflict,
    KeyReusedError: _on_reused_key,
    QueueFullError: _on_full_queue,
    QuotaError: _on_quota,
    SchemaError: _on_schema,
    BlobError: _on_lost_blob,
    DBAPIError: _on_database,
    PoolTimeoutError: _on_database,
}
"""exception: how it is said. What is not here is a bug, and becomes a 500 that says nothing."""


def install(app: FastAPI) -> None:
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
