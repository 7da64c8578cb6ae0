"""Jobs: submit, plan, list, show, and what their users ask of them."""

import re
import shutil
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from api import schemas, submission, views
from api.auth import OwnerDep
from api.bodies import BodyDep
from api.cursors import make_cursor, read_cursor
from api.openapi import ETAG, SPEC_BODY, problems
from api.service import JobIdDep, Service, ServiceDep
from api.streams import wait_for_change
from kdcore.spec import spec_document
from storage import actions
from storage.lifecycle import TERMINAL, Status
from storage.queries import page_jobs

router = APIRouter(prefix="/jobs", tags=["jobs"])

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="Visible characters. The same key and spec give the same job; a key lives as long as its job.",
    ),
]
LABEL = re.compile(r"([^:=]+)[:=](.*)", re.DOTALL)
LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the job is."}}


@router.post(
    "",
    summary="Submit a job",
    status_code=201,
    response_model=schemas.Job,
    response_description="The job; with an Idempotency-Key that was used before, the earlier job as it is now.",
    responses={201: {"headers": LOCATION | ETAG}, **problems(400, 408, 413, 415, 507)},
    openapi_extra=SPEC_BODY,
)
async def submit_job(
    request: Request, service: ServiceDep, owner: OwnerDep, body: BodyDep, idempotency_key: Key = None
) -> Response:
    """The body is the spec, as JSON or YAML. What is wrong with it is said here, not when it runs."""
    spec, plan = await anyio.to_thread.run_sync(
        submission.prepare, service, owner, body, idempotency_key, limiter=service.planning
    )
    job = await run_in_threadpool(submission.accept, service, owner, spec, plan, idempotency_key)
    headers = {"Location": views.address(request, job.id)}
    return views.answer(views.Document.of(job), status=201, headers=headers, background=_ring(service, job))


@router.post(
    "/plan",
    summary="What a job would be",
    response_model=schemas.PlanAnswer,
    responses=problems(400, 408, 413, 415),
    openapi_extra=SPEC_BODY,
)
async def plan_job(service: ServiceDep, owner: OwnerDep, body: BodyDep) -> schemas.PlanAnswer:
    """Parameters, FLOPs, steps, memory, compression, warnings, and the complete spec. Stores nothing."""
    spec, plan = await anyio.to_thread.run_sync(submission.prepare, service, owner, body, limiter=service.planning)
    return schemas.PlanAnswer(**dict(plan), spec=spec_document(spec))


def _check_label(text: str) -> str:
    if LABEL.fullmatch(text) is None:
        raise ValueError("must be key:value")
    return text


@router.get("", summary="List jobs, newest first")
def list_jobs(
    service: ServiceDep,
    owner: OwnerDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(description="The `next` of the page before.")] = None,
    status: Annotated[Status | None, Query(description="Only of this status.")] = None,
    name: Annotated[str | None, Query(description="Only of this name.")] = None,
    label: Annotated[
        list[Annotated[str, AfterValidator(_check_label)]],
        Query(
            description="`key:value` (or `key=value`); repeat it for jobs that carry all of them.",
            max_length=32,  # a job carries no more, and each is a subquery
            examples=[["team:vision"]],
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> schemas.JobPage:
    """Jobs in a list leave out `spec`, `plan`, `choices` and `queue`."""
    labels = [(found[1], found[2]) for text in label if (found := LABEL.fullmatch(text))]
    question = (owner, status, name, *sorted(labels))
    with service.database.read() as session:
        jobs, has_more = page_jobs(
            session,
            owner,
            limit=limit,
            after=read_cursor(after, question) if after is not None else None,
            status=status,
            name=name,
            labels=labels,
        )
        data = [schemas.JobSummary(**views.summarise(job)) for job in jobs]
    return schemas.JobPage(data=data, has_more=has_more, next=make_cursor(data[-1].id, question) if has_more else None)


@router.get(
    "/{job_id}",
    summary="Show a job",
    response_model=schemas.Job,
    responses={200: {"headers": ETAG}, 304: {"description": "It is as you have it."}, **problems(404)},
)
async def get_job(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    job_id: JobIdDep,
    wait: Annotated[
        float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for a change.", examples=[30])
    ] = 0,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="An ETag: 304 where the job is as it was.")
    ] = None,
) -> Response:
    """With `wait`, answers when status, stage or request change, or when the time is over; at once where the job has
    ended, or where `If-None-Match` shows that you have not seen its present state."""
    shown = await service.jobs.get(owner, job_id)
    seen = if_none_match is None or views.matches(if_none_match, shown.document.etag)
    if wait > 0 and shown.state[0] not in TERMINAL and seen:
        with service.watcher.watching(job_id) as watch:
            await wait_for_change(request, watch, shown.state, wait)
        shown = await service.jobs.get(owner, job_id)
    if views.matches(if_none_match, shown.document.etag):
        return Response(status_code=304, headers={"ETag": shown.document.etag})
    return views.answer(shown.document)


@router.delete("/{job_id}", summary="Delete a job that has ended", status_code=204, responses=problems(404, 409))
def delete_job(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """With its history, metrics, checkpoints and artifacts. Not while a job that has not ended needs its models."""
    with service.database.write() as session:
        actions.remove(session, job_id, owner)
    folder = service.settings.jobs / job_id
    return Response(status_code=204, background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True))


@router.post("/{job_id}/cancel", summary="Cancel a job", response_model=schemas.Job, responses=problems(404, 409))
def cancel_job(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """A queued or paused one at once, a running one within a step: `request` says `cancel` until then."""
    return _act(service, owner, job_id, "cancel")


@router.post("/{job_id}/pause", summary="Pause a job", response_model=schemas.Job, responses=problems(404, 409))
def pause_job(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """A running one writes a checkpoint and frees its worker: `request` says `pause` until then."""
    return _act(service, owner, job_id, "pause")


@router.post("/{job_id}/resume", summary="Queue a paused job", response_model=schemas.Job, responses=problems(404, 409))
def resume_job(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """It goes on from its checkpoint."""
    return _act(service, owner, job_id, "resume")


@router.post(
    "/{job_id}/retry",
    summary="Queue a failed or cancelled job again",
    response_model=schemas.Job,
    responses=problems(404, 409),
)
def retry_job(service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """It goes on from its last good checkpoint."""
    return _act(service, owner, job_id, "retry")


def _act(service: Service, owner: str, job_id: str, action: str) -> Response:
    with service.database.write() as session:
        actions.request(session, job_id, owner, action)
    job = service.jobs.read(owner, job_id).job
    return views.answer(views.Document.of(job), background=_ring(service, job))


def _ring(service: Service, job: schemas.Job) -> BackgroundTask | None:
    """Ring for a queued job once the answer is out; the broker may be slow, and need not be there."""
    if job.status != Status.QUEUED:
        return None
    return BackgroundTask(service.doorbell.ring, str(job.spec["device"]))
