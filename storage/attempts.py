"""What workers do with jobs: claim, renew the lease, and end an attempt in one of five ways."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, insert, select, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence, Status, move
from storage.tables import SPEC_VERSION, Attempt, Event, Job


def claim(
    session: Session,
    worker_id: str,
    devices: tuple[str, ...],
    lease_seconds: float,
    *,
    spec_version: int | None = None,
    takes: ColumnElement[bool] | None = None,
) -> Job | None:
    """Take the best queued job for one of `devices`: priority, then the owner with least running, then age.

    Args:
        devices: what this worker serves, such as `("auto", "cpu")`.
        spec_version: newest version of a spec that it reads; left out: any.
        takes: what else a job must be (`storage.workers.takes`); left out: anything.

    Returns:
        The job, now running under a new attempt, or None.
    """
    running = (
        select(Job.owner, func.count().label("n")).where(Job.status == Status.RUNNING).group_by(Job.owner).subquery()
    )
    candidates = (
        select(Job.id)
        .outerjoin(running, running.c.owner == Job.owner)
        .where(Job.status == Status.QUEUED, Job.device.in_(devices), Job.available_at <= now())
        .order_by(Job.priority.desc(), func.coalesce(running.c.n, 0), Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    fits = [] if takes is None else [takes]
    if spec_version is not None:
        fits.append(func.coalesce(SPEC_VERSION, 1) <= spec_version)
    if not fits:
        return _take(session, candidates, None, worker_id, lease_seconds)
    # Of a whole queue this takes as long to read as all the rest: it is read once the best job does not fit.
    where = and_(*fits)
    best = _take(session, candidates, where, worker_id, lease_seconds)
    return best or _take(session, candidates.where(where), where, worker_id, lease_seconds)


def _take(
    session: Session,
    candidates: Select[str],
    where: ColumnElement[bool] | None,
    worker_id: str,
    lease_seconds: float,
) -> Job | None:
    """Claim the first of the candidates."""
    job_id = session.scalar(candidates)
    if job_id is None:
        return None
    values = {
        "attempt": Job.attempt + 1,
        "worker_id": worker_id,
        "lease_expires_at": now() + lease_seconds,
        "started_at": func.coalesce(Job.started_at, now()),
        "stepped_at": now(),
    }
    if not move(session, job_id, "claimed", where=where, values=values, data={"worker": worker_id}):
        return None
    job = session.get_one(Job, job_id, populate_existing=True)
    session.execute(insert(Attempt).values(job_id=job_id, number=job.attempt, worker_id=worker_id, started_at=now()))
    return job


@dataclass(frozen=True)
class Pulse:
    """What a heartbeat learns: the pending request, and seconds since training last moved on."""

    request: str | None
    idle_seconds: float


def heartbeat(session: Session, fence: Fence, lease_seconds: float) -> Pulse:
    """Renew the lease.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    row = session.execute(
        update(Job)
        .where(fence.holds())
        .values(lease_expires_at=now() + lease_seconds)
        .returning(Job.request, (now() - func.coalesce(Job.stepped_at, now())).label("idle"))
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    return Pulse(row.request, row.idle)


def has_begun(session: Session, job_id: str, attempt: int) -> bool:
    """Whether an attempt trains or has trained: until then it reads its data, and has nothing to lose."""
    mine = (Event.job_id == job_id) & (Event.attempt == attempt)
    return session.scalar(select(Event.id).where(mine, Event.type == "stage_started").limit(1)) is not None


def succeed(session: Session, fence: Fence, result: dict[str, Any]) -> None:
    """Publish: the caller adds the artifacts' rows in the same transaction, before this.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    values = {"result": result, "error": None, "stage": None}
    _end(session, fence, "succeeded", values=values, data=_headline(result))


def fail(session: Session, fence: Fence, error: dict[str, Any]) -> None:
    """End a job with an error that trying again would not mend.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _end(session, fence, "failed", values={"error": error}, data={"error": error})


def yield_job(session: Session, fence: Fence, reason: str) -> None:
    """Give a job up on purpose: `pause`, `cancel`, or `drain` (back to the queue, costing nothing).

    A request that came meanwhile and outranks the reason is granted instead: it was acknowledged.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    pending, _ = _lock(session, fence)
    reason = max(reason, pending or reason, key=("drain", "pause", "cancel").index)
    change = {"pause": "paused", "cancel": "cancelled", "drain": "requeued"}[reason]
    _end(session, fence, change, data={"reason": reason})


def release(
    session: Session,
    fence: Fence,
    error: dict[str, Any],
    *,
    max_failures: int,
    backoff_seconds: float,
    longest_backoff_seconds: float = 300.0,
    counts: bool = True,
) -> None:
    """End an attempt that a `system` failure ended: a pending request is granted, otherwise the job is
    queued again, or failed once `max_failures` attempts in a row brought no newer checkpoint.

    Args:
        counts: whether it is one of these; not where the worker could not have run any job.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    pending, failures = _lock(session, fence)
    if pending is not None:
        change = {"pause": "paused", "cancel": "cancelled"}[pending]
        return _end(session, fence, change, data={"reason": pending, "error": error})
    failures += counts
    if counts and failures >= max_failures:
        error = error | {"message": f"{error['message']} (attempt {failures} in a row without progress)"}
        return _end(session, fence, "failed", values={"error": error, "failures": failures}, data={"error": error})
    wait = min(backoff_seconds * 2 ** (failures - 2), longest_backoff_seconds) if counts and failures > 1 else 0.0
    values = {"failures": failures, "available_at": now() + wait}
    _end(session, fence, "requeued", values=values, data={"reason": "failure", "error": error, "wait_seconds": wait})


def _lock(session: Session, fence: Fence) -> tuple[str | None, int]:
    """The job's request and failures, its row locked so that no request slips in before the transaction ends."""
    locked = select(Job.request, Job.failures).where(fence.holds()).with_for_update()
    row = session.execute(locked).one_or_none()
    if row is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    return row.request, row.failures


def _end(
    session: Session,
    fence: Fence,
    change: str,
    *,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    began = (
        select(Attempt.started_at)
        .where(Attempt.job_id == fence.job_id, Attempt.number == fence.attempt)
        .scalar_subquery()
    )
    # An attempt that was lost is charged until its lease ran out: the host may have been off since.
    until = case((Job.lease_expires_at < now(), Job.lease_expires_at), else_=now())
    spent = {"spent_seconds": Job.spent_seconds + func.coalesce(until - began, 0.0)}
    if not move(session, fence.job_id, change, fence=fence, values=spent | (values or {}), data=data):
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == fence.job_id, Attempt.number == fence.attempt)
        .values(finished_at=now(), outcome=change)
    )


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    return {"summary": result["summary"]} if "summary" in result else {}
