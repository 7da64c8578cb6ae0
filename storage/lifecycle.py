"""The job lifecycle: one table of transitions and the one function that makes them.

Every status change is `move`: a compare-and-set on the job's row, fenced by the attempt where an
attempt makes it, and an event in the same transaction. Nothing else writes `jobs.status`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.errors import StaleAttemptError
from storage.tables import Event, Job


class Status(StrEnum):
    """What a job is; a pending request is a separate field."""

    QUEUED = "queued"
    """Waits for a worker."""
    RUNNING = "running"
    """An attempt holds its lease."""
    PAUSED = "paused"
    """Waits for its user; its checkpoint is kept."""
    SUCCEEDED = "succeeded"
    """Its student is published."""
    FAILED = "failed"
    """It ended with an error."""
    CANCELLED = "cancelled"
    """Its user ended it."""


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
LIVE = frozenset(Status) - TERMINAL
"""Few jobs at any time, however many there have been: ask for these, not for those that are not terminal."""

TRANSITIONS: dict[str, tuple[frozenset[Status], Status]] = {
    "claimed": (frozenset({Status.QUEUED}), Status.RUNNING),
    "requeued": (frozenset({Status.RUNNING}), Status.QUEUED),
    "paused": (frozenset({Status.QUEUED, Status.RUNNING}), Status.PAUSED),
    "resumed": (frozenset({Status.PAUSED}), Status.QUEUED),
    "cancelled": (frozenset({Status.QUEUED, Status.PAUSED, Status.RUNNING}), Status.CANCELLED),
    "succeeded": (frozenset({Status.RUNNING}), Status.SUCCEEDED),
    "failed": (frozenset({Status.RUNNING}), Status.FAILED),
    "retried": (frozenset({Status.FAILED, Status.CANCELLED}), Status.QUEUED),
}
"""change: (from any of, to). The change is also the type of the event it leaves."""


@dataclass(frozen=True)
class Fence:
    """Which attempt writes. A write whose fence is not the running attempt's changes nothing."""

    job_id: str
    attempt: int

    def holds(self) -> ColumnElement[bool]:
        return (Job.id == self.job_id) & (Job.attempt == self.attempt) & (Job.status == Status.RUNNING)


def move(
    session: Session,
    job_id: str,
    change: str,
    *,
    fence: Fence | None = None,
    where: ColumnElement[bool] | None = None,
    values: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> bool:
    """Make one transition by compare-and-set; False where the job is not (or no longer) as required."""
    sources, target = TRANSITIONS[change]
    statement = update(Job).where(Job.id == job_id, Job.status.in_(sources))
    if fence is not None:
        statement = statement.where(fence.holds())
    if where is not None:
        statement = statement.where(where)
    sets: dict[str, Any] = {
        "status": target,
        "request": None,
        "version": Job.version + 1,
        "last_event": Job.last_event + 1,
        "updated_at": now(),
        "worker_id": None,
        "lease_expires_at": None,
        "finished_at": now() if target in TERMINAL else None,
    }
    if target == Status.QUEUED:
        sets |= {"rung_at": None, "rings": 0, "available_at": now()}
    statement = statement.values(sets | (values or {})).returning(Job.last_event, Job.attempt)
    row = session.execute(statement.execution_options(synchronize_session=False)).one_or_none()
    if row is None:
        return False
    insert_event(session, job_id, row.last_event, row.attempt, change, data or {})
    return True


def hold(session: Session, fence: Fence) -> None:
    """Keep an attempt the job's own until this transaction ends: what else is written in it is fenced, too.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    if session.scalar(select(Job.id).where(fence.holds()).with_for_update()) is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")


def add_event(session: Session, fence: Fence, type: str, data: dict[str, Any]) -> None:
    """A line of history of a running attempt.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    row = session.execute(
        update(Job)
        .where(fence.holds())
        .values(last_event=Job.last_event + 1, version=Job.version + 1, updated_at=now())
        .returning(Job.last_event)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
    insert_event(session, fence.job_id, row.last_event, fence.attempt, type, data)


def insert_event(session: Session, job_id: str, id: int, attempt: int, type: str, data: dict[str, Any]) -> None:
    """Write the event whose id the caller just took from `jobs.last_event`, in the same transaction."""
    session.execute(insert(Event).values(job_id=job_id, id=id, at=now(), attempt=attempt, type=type, data=data))
