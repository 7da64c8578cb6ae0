"""Who is there: the workers' own rows."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, delete, insert, literal, select, update
from sqlalchemy.orm import Session

from storage import tables
from storage.database import now
from storage.lifecycle import Status
from storage.tables import Job, Worker


def serves(device: str) -> tuple[str, ...]:
    """Which jobs' devices a worker with `device` takes: one with a GPU takes the jobs for a CPU as well."""
    return ("auto", "cpu", "cuda") if device == "cuda" else ("auto", "cpu")


@dataclass(frozen=True)
class WorkerCard:
    """What a worker says of itself. `device` is `cpu` or `cuda`; `memory_bytes` that device's memory."""

    id: str
    hostname: str
    pid: int
    device: str
    device_name: str
    memory_bytes: int
    version: str
    spec_version: int
    """Newest version of a spec that it reads."""

    @property
    def serves(self) -> tuple[str, ...]:
        """Which jobs' devices it takes."""
        return serves(self.device)


def register(session: Session, card: WorkerCard) -> None:
    row = vars(card) | {"status": "idle", "started_at": now(), "heartbeat_at": now(), "clock_offset": _clock_offset()}
    session.execute(insert(Worker).values(row))


def _clock_offset() -> ColumnElement[float]:
    return literal(time.time()) - now()


def beat(session: Session, card: WorkerCard) -> None:
    """Say that the worker is alive; a row that was swept meanwhile comes back.

    What it does is read from the jobs: a status that could not be written, or was its dead child's, is mended.
    """
    held = select(Job.id).where(Job.worker_id == card.id, Job.status == Status.RUNNING).limit(1).scalar_subquery()
    status = case((Worker.status == "draining", "draining"), (held.is_not(None), "busy"), else_="idle")
    values = {"heartbeat_at": now(), "status": status, "job_id": held, "clock_offset": _clock_offset()}
    statement = update(Worker).where(Worker.id == card.id).values(values).returning(Worker.id)
    if session.scalar(statement.execution_options(synchronize_session=False)) is None:
        register(session, card)


def set_status(session: Session, worker_id: str, status: str, job_id: str | None = None) -> None:
    """`idle`, `busy` (with its job) or `draining`."""
    values = {"status": status, "job_id": job_id, "heartbeat_at": now()}
    session.execute(update(Worker).where(Worker.id == worker_id).values(values))


def leave(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))


def present(session: Session, within_seconds: float) -> list[Worker]:
    """Workers whose last heartbeat is at most that old, oldest worker first."""
    query = select(Worker).where(Worker.heartbeat_at >= now() - within_seconds).order_by(Worker.started_at)
    return list(session.scalars(query))


def needed_bytes(plan: Mapping[str, Any], device: str) -> int:
    """What a job needs of the memory of a worker with this device, says its plan: an estimate from above."""
    memory = plan.get("memory", {})
    return int(memory.get("total", 0)) - int(memory.get("copies", 0) if device == "cuda" else 0)


def takes(session: Session, card: WorkerCard, within_seconds: float) -> ColumnElement[bool] | None:
    """Which jobs a worker takes: all but those that need more memory than it has and less than another one there.

    A job that none there has the memory for is taken by any: the plan may ask for too much, and it must not wait for
    ever. None where the worker is the largest itself: the usual case, which costs the queue's query nothing.
    """
    others = [worker for worker in present(session, within_seconds) if worker.status != "draining"]
    largest = max((other.memory_bytes for other in others if other.device == card.device), default=0)
    if largest <= card.memory_bytes:
        return None
    need = tables.needed_bytes(card.device)
    return (need <= card.memory_bytes) | (need > largest)


def forget_silent(session: Session, after_seconds: float) -> None:
    """Drop the rows of workers that died without a word."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < now() - after_seconds))
