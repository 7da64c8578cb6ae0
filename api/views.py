"""From rows to answers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from api import schemas
from storage import tables

BULKY = frozenset({"confusion_matrix", "per_class_accuracy"})
MODELS = ("teacher", "baseline", "student")


def summarise(job: tables.Job | SimpleNamespace) -> dict[str, Any]:
    """What a list shows of a job."""
    return {
        "id": job.id,
        "name": job.name,
        "status": job.status,
        "request": job.request,
        "stage": job.stage,
        "attempt": job.attempt,
        "progress": job.progress,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "result": _headline(job.result) if job.result is not None else None,
        "error": job.error,
        "labels": job.spec.get("labels", {}),
    }


def _headline(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {name: number for name, number in value.items() if name not in BULKY}
        if key in MODELS and isinstance(value, Mapping)
        else value
        for key, value in result.items()
        if key not in ("choices", "validation")
    }


@dataclass(frozen=True)
class Document:
    """The bytes of an answer. Its ETag is strong: the same bytes, the same tag, whichever process answers."""

    body: bytes
    etag: str

    @classmethod
    def of(cls, shown: schemas.Answer) -> "Document":
        body = shown.model_dump_json().encode()
        return cls(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a client that sent this `If-None-Match` has what `etag` stands for."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def answer(
    document: Document,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> Response:
    """A document as a response."""
    tagged = {"ETag": document.etag, **(headers or {})}
    return Response(document.body, status, tagged, media_type="application/json", background=background)


def address(request: Request, job_id: str, *parts: str) -> str:
    """The path of a job, or of something below it, as this service is reached."""
    return "/".join([f"{request.scope.get('root_path', '')}/jobs", job_id, *map(quote, parts)])
