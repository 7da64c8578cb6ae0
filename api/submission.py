"""Accepting a spec: read, planned and checked before anything is stored."""

import shutil

from sqlalchemy.orm import Session

from api import schemas, views
from api.bodies import Body
from api.problems import DiskFullError, OtherVersionError
from api.service import Service
from kdcore.config import Loc, SpecError
from kdcore.plan import Plan, make_plan
from kdcore.spec import JobSpec, JobWeights, TeacherConfig, parse_spec, spec_digest, spec_document
from storage.errors import KeyReusedError, NotFoundError
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
        OtherVersionError: the key's job has a spec that only a later version reads.
        SchemaError: the database was migrated under this process.
    """
    try:
        return _accept(service, owner, spec, plan, key)
    except NotFoundError:
        if key is None:
            raise
        return _accept(service, owner, spec, plan, key)  # the key's job was deleted this moment, and the key with it


def _accept(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> schemas.Job:
    try:
        job_id = _store(service, owner, spec, plan, key)
    except KeyReusedError as error:
        if not _is_spec_of(service, error.job_id, owner, spec):
            raise
        job_id = error.job_id
    with service.database.read() as session:
        return views.show(session, job_id, owner, service.settings.lease_seconds)


def _store(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> str:
    digest = spec_digest(spec)
    with service.database.read() as session:
        earlier = find_key(session, owner, key, digest) if key is not None else None
    if earlier is not None:
        return earlier
    _check_disk(service)
    with service.database.write() as session:
        _check_weights(session, owner, spec)  # in the job's own transaction: nobody deletes them in between
        return submit(
            session,
            owner=owner,
            spec=spec_document(spec),
            spec_digest=digest,
            plan=plan.model_dump(mode="json"),
            idempotency_key=key,
            max_queued=service.settings.max_queued,
        )


def _is_spec_of(service: Service, job_id: str, owner: str, spec: JobSpec) -> bool:
    """Whether a job has this spec, though another version completed it to another document, of another digest."""
    try:
        with service.database.read() as session:
            return parse_spec(get_job(session, job_id, owner).spec) == spec
    except SpecError as error:
        detail = f"the Idempotency-Key is that of {job_id}, which a later version accepted; ask that version ({error})"
        raise OtherVersionError(detail, headers={"Retry-After": "5"}) from None


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
    try:
        theirs = parse_spec(job.spec)  # perhaps of an older version
    except SpecError as error:
        return f"this version cannot read the spec of {job_id}: {error}"
    if theirs.data.type != spec.data.type:
        return f"{job_id} was trained on {theirs.data.type}, this spec is about {spec.data.type}"
    if theirs.data.facts().classes != spec.data.facts().classes:
        return f"{job_id} was trained on other classes, or on these in another order; name the data as its spec does"
    if not theirs.teachers:
        return f"{job_id} had no teacher"
    if theirs.teachers[0].model != teacher.model:
        return f"the teacher of {job_id} has another model; copy `teachers[0].model` from its spec"
    if theirs.teachers[0].view != teacher.view:
        return f"the teacher of {job_id} reads another view; copy `teachers[0].view` from its spec"
    if all(artifact.name != "teacher-1.safetensors" for artifact in list_artifacts(session, job_id)):
        return f"{job_id} no longer has its artifact teacher-1.safetensors"
    return None
