"""Accepting a spec: read, planned and checked before anything is stored."""

import shutil

from sqlalchemy.orm import Session

from api import schemas, views
from api.bodies import Body
from api.problems import DiskFullError
from api.service import Service
from kdcore.config import Loc, SpecError
from kdcore.plan import Plan, make_plan
from kdcore.spec import JobSpec, JobWeights, TeacherConfig, parse_spec, spec_digest, spec_document
from storage.errors import NotFoundError
from storage.lifecycle import Status
from storage.queries import get_job, list_artifacts
from storage.submissions import find_key, submit


def prepare(body: Body) -> tuple[JobSpec, Plan]:
    """Read a spec and plan it. Computes for a while: not for the event loop.

    Raises:
        DocumentError: it is neither JSON nor YAML.
        SpecError: it cannot be run; says why, and where.
    """
    spec = parse_spec(body.parse())
    return spec, make_plan(spec)


def accept(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> schemas.Job:
    """Store a job as queued, or find the one that this Idempotency-Key stored; the job as it is now.

    Raises:
        SpecError: its teacher's weights are not to be had.
        DiskFullError: there is too little room for what it would write.
        KeyReusedError, QueueFullError: see `storage.submissions.submit`.
    """
    settings, digest = service.settings, spec_digest(spec)
    with service.database.read() as session:
        job_id = find_key(session, owner, key, digest) if key is not None else None
    if job_id is None:
        _check_disk(service)
        with service.database.write() as session:
            _check_weights(session, owner, spec)  # in the job's own transaction: nobody deletes them in between
            job_id = submit(
                session,
                owner=owner,
                spec=spec_document(spec),
                spec_digest=digest,
                plan=plan.model_dump(mode="json"),
                idempotency_key=key,
                max_queued=settings.max_queued,
            )
    with service.database.read() as session:
        return views.show(session, job_id, owner, settings.lease_seconds)


def _check_disk(service: Service) -> None:
    free = shutil.disk_usage(service.settings.home).free
    if free < service.settings.min_free_bytes:
        raise DiskFullError(
            f"only {free} bytes are free on the service's disk, and it needs {service.settings.min_free_bytes}; "
            "delete jobs that are no longer needed"
        )


def _check_weights(session: Session, owner: str, spec: JobSpec) -> None:
    errors: list[tuple[Loc, str]] = []
    for index, teacher in enumerate(spec.teachers):
        if isinstance(teacher.weights, JobWeights):
            fault = _fault(session, owner, spec, teacher, teacher.weights.job)
            if fault is not None:
                errors.append((("teachers", index, "weights", "job"), fault))
    if errors:
        raise SpecError(errors)


def _fault(session: Session, owner: str, spec: JobSpec, teacher: TeacherConfig, job_id: str) -> str | None:
    """Why that job's teacher cannot be this one's; None where it can."""
    try:
        job = get_job(session, job_id, owner, keep=True)
    except NotFoundError as error:
        return str(error)
    if job.status != Status.SUCCEEDED:
        return f"{job_id} is {job.status}; only a succeeded job has a teacher to give"
    if job.spec["data"]["type"] != spec.data.type:
        return f"{job_id} was trained on {job.spec['data']['type']}, this spec is about {spec.data.type}"
    if job.spec["teachers"][0]["model"] != teacher.model.model_dump(mode="json"):
        return f"the teacher of {job_id} has another model; copy `teachers[0].model` from its spec"
    if all(artifact.name != "teacher-1.safetensors" for artifact in list_artifacts(session, job_id)):
        return f"{job_id} no longer has its artifact teacher-1.safetensors"
    return None
