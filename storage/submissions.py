"""Accepting a job: the row, its labels, its idempotency key and its first event, in one transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from storage.database import insert_into, now
from storage.errors import KeyReusedError, QueueFullError
from storage.ids import new_id
from storage.lifecycle import Status, insert_event
from storage.tables import IdempotencyKey, Job, JobLabel
from storage.upload_tables import JobUpload


def submit(
    session: Session,
    *,
    owner: str,
    spec: dict[str, Any],
    spec_digest: str,
    plan: dict[str, Any],
    idempotency_key: str | None = None,
    max_queued: int,
    uploads: Sequence[str] = (),
) -> str:
    """Store a job as queued; the id of the job, which is the earlier one where the key was used before.

    Args:
        spec: complete, as plain JSON values.
        spec_digest: of that spec; an idempotency key belongs to one digest.
        uploads: those that the job reads: they cannot be deleted before it has ended.

    Raises:
        KeyReusedError: the key was used for another spec.
        QueueFullError: `max_queued` jobs wait already.
    """
    job_id = new_id("job")
    if idempotency_key is not None:
        earlier = find_key(session, owner, idempotency_key, spec_digest)
        if earlier is not None:
            return earlier
    refuse_full_queue(session, max_queued)
    with session.begin_nested() as savepoint:
        insert_job(session, job_id, owner, spec, spec_digest, plan)
        if uploads:
            session.execute(insert(JobUpload), [{"job_id": job_id, "upload_id": each} for each in uploads])
        if idempotency_key is None or _take_key(session, owner, idempotency_key, job_id, spec_digest):
            return job_id
        savepoint.rollback()  # another request with this key committed meanwhile: its job is the one
    earlier = find_key(session, owner, idempotency_key, spec_digest)
    if earlier is None:
        raise QueueFullError("the job of this Idempotency-Key was just deleted; try again")
    return earlier


def find_key(session: Session, owner: str, key: str, spec_digest: str) -> str | None:
    """The job that was submitted with this key, or None.

    Raises:
        KeyReusedError: the key was used for another spec.
    """
    found = session.get(IdempotencyKey, (owner, key))
    if found is not None and found.spec_digest != spec_digest:
        raise KeyReusedError(found.job_id)
    return found.job_id if found is not None else None


def find_job(session: Session, owner: str, key: str) -> Job | None:
    """The job that was submitted with this key, whatever its spec."""
    found = session.get(IdempotencyKey, (owner, key))
    return session.get(Job, found.job_id) if found is not None else None


def _take_key(session: Session, owner: str, key: str, job_id: str, spec_digest: str) -> bool:
    """Insert the key unless it is there; on PostgreSQL this waits for a concurrent insert to end."""
    values = {"owner": owner, "key": key, "job_id": job_id, "spec_digest": spec_digest}
    taken = insert_into(session, IdempotencyKey).values(values).on_conflict_do_nothing()
    return session.scalar(taken.returning(IdempotencyKey.key)) is not None


def refuse_full_queue(session: Session, max_queued: int) -> None:
    """Raise `QueueFullError` where so many jobs wait already."""
    queued = session.scalar(select(func.count()).select_from(Job).where(Job.status == Status.QUEUED)) or 0
    if queued >= max_queued:
        raise QueueFullError(f"{queued} jobs are queued already")


def insert_job(
    session: Session, job_id: str, owner: str, spec: dict[str, Any], spec_digest: str, plan: dict[str, Any]
) -> None:
    """A queued job's row, its labels and its first event."""
    session.execute(
        insert(Job).values(
            id=job_id,
            owner=owner,
            name=spec["name"],
            status=Status.QUEUED,
            priority=spec["priority"],
            device=spec["device"],
            spec=spec,
            spec_digest=spec_digest,
            plan=plan,
            created_at=now(),
            updated_at=now(),
            available_at=now(),
            rung_at=now(),  # the submitter rings after its commit
            last_event=1,
        )
    )
    labels = [{"job_id": job_id, "key": key, "value": value} for key, value in spec["labels"].items()]
    if labels:
        session.execute(insert(JobLabel), labels)
    insert_event(session, job_id, 1, 0, "submitted", {})
