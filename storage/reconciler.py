"""What mends the rest: takes back jobs whose lease ran out, and rings for queued jobs nobody claimed.

Safe in any number of processes at once: every change is a compare-and-set.
"""

from dataclasses import dataclass, field

from sqlalchemy import func, select, update

from storage import workers
from storage.attempts import release
from storage.database import Database, now
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence, Status
from storage.queue import Doorbell
from storage.settings import Settings
from storage.tables import Job

LOST = {"code": "worker_lost", "kind": "system", "message": "the worker stopped renewing its lease"}
MOST_RINGS = 8
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
    for device in _ring_for(database, settings):
        done.rung += doorbell.ring(device)
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
            with database.write() as session:
                # A lease renewed between the look and now is not expired any more.
                late = select(Job.id).where(fence.holds(), Job.lease_expires_at < now()).with_for_update()
                if session.scalar(late) is None:
                    continue
                release(
                    session, fence, LOST,
                    max_failures=settings.max_failures, backoff_seconds=settings.retry_backoff_seconds,
                )  # fmt: skip
            taken.append(fence)
        except StaleAttemptError:
            continue  # another reconciler, or the attempt itself, was faster
    return taken


def _ring_for(database: Database, settings: Settings) -> list[str]:
    """Devices to ring for: one entry for each queued job whose last ring was long enough ago.

    Only while a worker is idle: a busy one looks for the next job itself when it is done.
    """
    silence = func.coalesce(now() - Job.rung_at, LONGEST_SILENCE * 2)
    backoff = settings.reconcile_seconds * (1 + Job.rings * Job.rings)
    due = (
        select(Job.id, Job.device, Job.rings)
        .where(Job.status == Status.QUEUED, Job.available_at <= now())
        .where((silence > backoff) | (silence > LONGEST_SILENCE))
        .order_by(Job.priority.desc(), Job.id)
        .limit(MOST_RINGS)
    )
    with database.read() as session:
        if not any(w.status == "idle" for w in workers.present(session, settings.lease_seconds)):
            return []
        jobs = session.execute(due).all()
    devices = []
    for job in jobs:
        with database.write() as session:
            rung = session.scalar(
                update(Job)
                .where(Job.id == job.id, Job.status == Status.QUEUED, Job.rings == job.rings)
                .values(rung_at=now(), rings=min(job.rings + 1, MOST_RINGS_COUNTED))
                .returning(Job.id)
            )
        if rung is not None:
            devices.append(job.device)
    return devices
