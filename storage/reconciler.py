"""What mends the rest: takes back jobs whose lease ran out, and rings for queued jobs nobody claimed.

Safe in any number of processes at once: every change is a compare-and-set. A row that somebody holds, perhaps a
process that was frozen in the middle of a transaction, is left to the next pass; a job that cannot be helped stops
neither the others nor the rings.
"""

from dataclasses import dataclass, field

import structlog
from sqlalchemy import ColumnElement, case, func, select, update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from storage import workers
from storage.attempts import release
from storage.database import Database, now
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence, Status
from storage.queue import Doorbell
from storage.settings import Settings
from storage.tables import Job

log = structlog.get_logger(__name__)

LOST = {"code": "worker_lost", "kind": "system", "message": "the worker stopped renewing its lease"}
MOST_RINGS = 8
"""In one pass; and the messages in the broker from which on there are no more."""
MOST_RINGS_COUNTED = 10
LONGEST_SILENCE = 60.0
"""Seconds after which even a job rung for many times is rung for again."""


@dataclass
class Reconciled:
    """What one pass did."""

    taken_back: list[Fence] = field(default_factory=list)
    rung: int = 0


def reconcile(database: Database, doorbell: Doorbell, settings: Settings) -> Reconciled:
    """One pass: expired leases, then doorbells, then rows of workers long silent."""
    done = Reconciled(taken_back=_take_back(database, settings))
    done.rung = _ring(database, doorbell, settings)
    with database.write() as session:
        workers.forget_silent(session, after_seconds=20 * settings.lease_seconds)
    return done


def _take_back(database: Database, settings: Settings) -> list[Fence]:
    with database.read() as session:
        expired = session.execute(
            select(Job.id, Job.attempt).where(Job.status == Status.RUNNING, Job.lease_expires_at < now()).limit(100)
        ).all()
    taken = []
    for row in expired:
        fence = Fence(row.id, row.attempt)
        try:
            if _release_late(database, fence, settings):
                taken.append(fence)
        except StaleAttemptError:
            continue  # another reconciler, or the attempt itself, was faster
        except DBAPIError as error:
            if not _concerns_one_job(error):
                raise
            log.warning("take_back_failed", job_id=fence.job_id, attempt=fence.attempt, error=str(error.orig))
    return taken


def _release_late(database: Database, fence: Fence, settings: Settings) -> bool:
    with database.write() as session:
        # A lease renewed between the look and now is not expired any more.
        late = select(Job.id).where(fence.holds(), Job.lease_expires_at < now()).with_for_update(skip_locked=True)
        if session.scalar(late) is None:
            return False
        release(
            session, fence, LOST,
            max_failures=settings.max_failures, backoff_seconds=settings.retry_backoff_seconds,
            longest_backoff_seconds=settings.retry_backoff_max_seconds,
        )  # fmt: skip
    return True


def _concerns_one_job(error: DBAPIError) -> bool:
    """Whether the database is there and refused this one change; else the next job would only fail likewise."""
    if error.connection_invalidated or isinstance(error, (InterfaceError, ProgrammingError)):
        return False
    return not isinstance(error, OperationalError) or getattr(error.orig, "sqlstate", None) is not None


def _ring(database: Database, doorbell: Doorbell, settings: Settings) -> int:
    """Ring for queued jobs whose last ring was long enough ago; how often it rang.

    Only for what an idle worker takes (a busy one looks for the next job itself when it is done), and only
    while the broker answers and holds few messages: no flood, and an absent broker costs no job its turn.
    """
    due = select(Job.id, Job.device).where(_is_due(settings)).order_by(Job.priority.desc(), Job.id).limit(MOST_RINGS)
    with database.read() as session:
        there = workers.present(session, settings.lease_seconds)
        idle = [worker for worker in there if worker.status == "idle"]
        jobs = session.execute(due.where(workers.suits(idle, there))).all() if idle else []
    waiting = {device: doorbell.waiting(device) for device in {job.device for job in jobs}}
    rung = 0
    for job in jobs:
        before = waiting[job.device]
        if before is not None and before < MOST_RINGS and _mark(database, job.id, settings):
            rung += doorbell.ring(job.device)
    return rung


def _is_due(settings: Settings) -> ColumnElement[bool]:
    silence = func.coalesce(now() - Job.rung_at, LONGEST_SILENCE * 2)
    backoff = settings.reconcile_seconds * (1 + Job.rings * Job.rings)
    waits = (Job.status == Status.QUEUED) & (Job.available_at <= now())
    return waits & ((silence > backoff) | (silence > LONGEST_SILENCE))


def _mark(database: Database, job_id: str, settings: Settings) -> bool:
    """Note the ring before it is made, so that of several reconcilers one rings."""
    rings = case((Job.rings < MOST_RINGS_COUNTED, Job.rings + 1), else_=Job.rings)
    free = select(Job.id).where(Job.id == job_id, _is_due(settings)).with_for_update(skip_locked=True)
    statement = update(Job).where(Job.id.in_(free)).values(rung_at=now(), rings=rings)
    with database.write() as session:
        marked = session.scalar(statement.returning(Job.id).execution_options(synchronize_session=False))
    return marked is not None
