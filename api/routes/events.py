"""A job's history: a page of it, or as it happens."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api import schemas
from api.auth import OwnerDep
from api.openapi import problems
from api.problems import MalformedError
from api.service import JobIdDep, Service, ServiceDep
from api.streams import EventStream
from storage.lifecycle import TERMINAL
from storage.queries import Glance, get_job, glance, list_events

router = APIRouter(prefix="/jobs/{job_id}/events", tags=["jobs"], responses=problems(400, 404))

MOST = 2**31 - 1
STREAM_EXAMPLE = """\
retry: 1000

event: stage_started
data: {"stage":"teacher-1","at":"2026-01-01T00:00:00.000Z","attempt":1}
id: 3

event: progress
data: {"stage":"teacher-1","fraction":0.1,"step":40,"at":"2026-01-01T00:00:01.000Z","attempt":1}
"""
STREAMED: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "description": "The event's type, or `progress`."},
        "id": {"type": "string", "pattern": "^[0-9]+$", "description": "Of a stored event: its number."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"type": "object", "required": ["at", "attempt"]},
        },
    },
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page, or a stream where `Accept` is `text/event-stream`.",
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "itemSchema": STREAMED, "example": STREAM_EXAMPLE}
        },
    },
    204: {"description": "A stream was asked for past the end of a finished job: do not reconnect."},
}


@router.get("", summary="The history of a job", response_model=schemas.EventPage, responses=RESPONSES)
async def get_events(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    job_id: JobIdDep,
    after: Annotated[int, Query(ge=0, le=MOST, description="Only events with ids above this one.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Of a page; a stream has none.")] = 100,
    last_event_id: Annotated[
        str,
        Header(
            alias="Last-Event-ID",
            description="Of a stream: the last id that arrived.",
            json_schema_extra={"pattern": "^[0-9]{0,9}$"},  # said only: what is none is malformed, which is 400
        ),
    ] = "",
) -> Response:
    """With `Accept: text/event-stream`, Server-Sent Events: each stored event has its type as `event`, its number as
    `id` and JSON as `data`; `progress` events between them carry no id. A comment every 15 seconds shows that the
    connection lives. The stream closes after the terminal event."""
    seen = _parse_id(last_event_id) if last_event_id else after
    if not _wants_stream(request):
        page = await run_in_threadpool(_page, service, owner, job_id, after, limit)
        return JSONResponse(page.model_dump(mode="json"), headers={"Vary": "Accept"})
    watch = service.watcher.open(job_id)
    try:
        now = await run_in_threadpool(_glance, service, owner, job_id)
        if now.status in TERMINAL and seen >= now.last_event:
            service.watcher.close(watch)
            return Response(status_code=204, headers={"Vary": "Accept"})
        return EventStream(service, watch, now, min(seen, now.last_event))
    except BaseException:
        service.watcher.close(watch)
        raise


def _wants_stream(request: Request) -> bool:
    ranges = request.headers.get("accept", "").lower().split(",")
    return any(range.split(";")[0].strip() == "text/event-stream" for range in ranges)


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) and int(text) <= MOST):
        raise MalformedError(f"Last-Event-ID must be a number from 0 to {MOST}")
    return int(text)


def _page(service: Service, owner: str, job_id: str, after: int, limit: int) -> schemas.EventPage:
    with service.database.read() as session:
        get_job(session, job_id, owner)
        found = list_events(session, job_id, after=after, limit=limit + 1)
    data = [schemas.Event.model_validate(event) for event in found[:limit]]
    has_more = len(found) > limit
    return schemas.EventPage(data=data, has_more=has_more, next=data[-1].id if has_more else None)


def _glance(service: Service, owner: str, job_id: str) -> Glance:
    with service.database.read() as session:
        get_job(session, job_id, owner)
        return glance(session, [job_id])[job_id]
