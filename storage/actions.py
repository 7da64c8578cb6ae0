"""What users ask of their jobs: cancel, pause, resume, retry, delete."""

from sqlalchemy import CompoundSelect, delete, or_, select, union_all, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.errors import ConflictError, NotFoundError
from storage.lifecycle import LIVE, TERMINAL, Status, insert_event, move
from storage.tables import NEEDED_JOBS, Job


def request(session: Session, job_id: str, owner: str, action: str) -> None:
    """Carry out `cancel`, `pause`, `resume` or `retry`, or leave a request for the running attempt.

    Asking again for what is pending or already so changes nothing.

    Raises:
        NotFoundError: no such job of this owner.
        ConflictError: the job's status does not allow it.
    """
    for _ in range(5):  # a job may move between the look and the compare-and-set
        job = session.execute(select(Job.status, Job.request).where(Job.id == job_id, Job.owner == owner)).one_or_none()
        if job is None:
            raise NotFoundError(f"there is no job {job_id}")
        if _ACTIONS[action](session, job_id, Status(job.status), job.request):
            return
    raise ConflictError(f"{job_id} keeps changing; try again")


def _cancel(session: Session, job_id: str, status: Status, pending: str | None) -> bool:
    if status == Status.CANCELLED or pending == "cancel":
        return True
    if status == Status.RUNNING:
        return _ask(session, job_id, "cancel")
    _allow("cancel", status, {Status.QUEUED, Status.RUNNING, Status.PAUSED})
    return move(session, job_id, "cancelled", where=Job.status != Status.RUNNING)


def _pause(session: Session, job_id: str, status: Status, pending: str | None) -> bool:
    if status == Status.PAUSED or pending == "pause":
        return True
    if pending == "cancel":
        raise ConflictError("the job is being cancelled, which outranks pause")
    if status == Status.RUNNING:
        return _ask(session, job_id, "pause")
    _allow("pause", status, {Status.QUEUED, Status.RUNNING})
    return move(session, job_id, "paused", where=Job.status != Status.RUNNING)


def _resume(session: Session, job_id: str, status: Status, pending: str | None) -> bool:
    if status == Status.QUEUED:
        return True
    _allow("resume", status, {Status.PAUSED})
    return move(session, job_id, "resumed")


def _retry(session: Session, job_id: str, status: Status, pending: str | None) -> bool:
    if status == Status.QUEUED:
        return True
    _allow("retry", status, {Status.FAILED, Status.CANCELLED})
    fresh = {"error": None, "failures": 0, "spent_seconds": 0.0}
    return move(session, job_id, "retried", values=fresh)


_ACTIONS = {"cancel": _cancel, "pause": _pause, "resume": _resume, "retry": _retry}


def _allow(action: str, status: Status, allowed: set[Status]) -> None:
    if status not in allowed:
        raise ConflictError(f"cannot {action} a {status} job; only {' or '.join(sorted(allowed))} ones")


def _ask(session: Session, job_id: str, wish: str) -> bool:
    """Leave a request for the running attempt; cancel replaces pause."""
    may = Job.request.is_(None) if wish == "pause" else or_(Job.request.is_(None), Job.request == "pause")
    row = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status == Status.RUNNING, may)
        .values(request=wish, version=Job.version + 1, last_event=Job.last_event + 1, updated_at=now())
        .returning(Job.last_event, Job.attempt)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is not None:
        insert_event(session, job_id, row.last_event, row.attempt, f"{wish}_requested", {})
    return row is not None


def remove(session: Session, job_id: str, owner: str) -> None:
    """Delete a terminal job and all that belongs to it; its files are left to the sweep.

    Raises:
        NotFoundError: no such job of this owner.
        ConflictError: the job has not ended.
    """
    status = session.scalar(select(Job.status).where(Job.id == job_id, Job.owner == owner).with_for_update())
    if status is None:
        raise NotFoundError(f"there is no job {job_id}")
    if status not in TERMINAL:
        raise ConflictError(f"a {status} job cannot be deleted; cancel it first")
    learning = select(Job.id).where(Job.status.in_(LIVE), or_(*(job_id == needed for needed in NEEDED_JOBS)))
    if session.scalar(learning.limit(1)) is not None:
        message = "a job that has not ended is to learn from this job's teacher or to begin with its student"
        raise ConflictError(f"{message}; wait for it or cancel it")
    session.execute(delete(Job).where(Job.id == job_id))


def needed_jobs() -> CompoundSelect[tuple[str]]:
    """The jobs whose teacher a job that has not ended is to be distilled from, or whose student its own begins from."""
    live = (select(each).where(each.is_not(None), Job.status.in_(LIVE)) for each in NEEDED_JOBS)
    return union_all(*live)
