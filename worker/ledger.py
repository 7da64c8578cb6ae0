"""One attempt's entries in the database, written with patience: an outage shorter than the lease is waited out."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from storage import attempts
from storage.database import Database
from storage.lifecycle import Fence, Status
from storage.settings import Settings
from storage.tables import Job

T = TypeVar("T")

AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""What SQLAlchemy raises while the database does not answer, or is too busy to."""
_LONGEST_PAUSE = 1.0


def persist(database: Database, action: Callable[[Session], T], patience: float) -> T:
    """Do `action` in one transaction; while the database is away, again and again for `patience` seconds.

    A commit whose acknowledgement was lost is repeated: `action` must bear that.
    """
    give_up = time.monotonic() + patience
    pause = 0.05
    while True:
        try:
            with database.write() as session:
                return action(session)
        except AWAY:
            if time.monotonic() + pause > give_up:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class Ledger:
    """What is written of one attempt. Every write is fenced and raises `StaleAttemptError` once it is too late."""

    def __init__(self, database: Database, settings: Settings, fence: Fence) -> None:
        self.database, self.settings, self.fence = database, settings, fence
        self.patience = settings.lease_seconds
        """Longer is no use: without a lease the job is someone else's."""

    def write(self, action: Callable[[Session], T]) -> T:
        """One transaction."""
        return persist(self.database, action, self.patience)

    def fail(self, code: str, message: str) -> None:
        """End the job with an error that trying again would not mend."""
        error = _error(code, "user", message)
        self.write(lambda session: attempts.fail(session, self.fence, error))

    def release(self, code: str, message: str, *, counts: bool = True) -> None:
        """End the attempt by a system failure: the job is tried again, within limits where it counts."""
        limits: dict[str, Any] = {
            "max_failures": self.settings.max_failures,
            "backoff_seconds": self.settings.retry_backoff_seconds,
            "longest_backoff_seconds": self.settings.retry_backoff_max_seconds,
            "counts": counts,
        }
        error = _error(code, "system", message)
        self.write(lambda session: attempts.release(session, self.fence, error, **limits))

    def give_up(self, reason: str) -> None:
        """End the attempt on purpose: `pause`, `cancel` or `drain`."""
        self.write(lambda session: attempts.yield_job(session, self.fence, reason))


def _error(code: str, kind: str, message: str) -> dict[str, Any]:
    return {"code": code, "kind": kind, "message": storable(message)}


def storable(value: Any) -> Any:
    """JSON values whose texts PostgreSQL takes: it stores neither NUL nor half a character.

    Training may have printed either before it died, and a stranger's file may name its samples so.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    return [storable(each) for each in value] if isinstance(value, list) else value


def held_by(session: Session, worker_id: str) -> list[Fence]:
    """The attempts that a worker runs, as far as the database knows."""
    held = select(Job.id, Job.attempt).where(Job.worker_id == worker_id, Job.status == Status.RUNNING)
    return [Fence(row.id, row.attempt) for row in session.execute(held)]
