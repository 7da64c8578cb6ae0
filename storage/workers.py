"""Who is there: the workers' own rows."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, false, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.lifecycle import Status
from storage.tables import SPEC_VERSION, Job, Worker, needed_bytes

UNWILLING = ("draining", "resting")
"""What a worker that is there says while it claims nothing."""
IS_PRESENT = Worker.heartbeat_at >= now() - bindparam("within_seconds")
_PRESENT = select(Worker).where(IS_PRESENT).order_by(Worker.started_at)


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
    Only that it drains or rests no job tells.
    """
    held = select(Job.id).where(Job.worker_id == card.id, Job.status == Status.RUNNING).limit(1).scalar_subquery()
    status = case(
        (Worker.status == "draining", "draining"),
        (held.is_not(None), "busy"),
        (Worker.status == "resting", "resting"),
        else_="idle",
    )
    values = {"heartbeat_at": now(), "status": status, "job_id": held, "clock_offset": _clock_offset()}
    statement = update(Worker).where(Worker.id == card.id).values(values).returning(Worker.id)
    if session.scalar(statement.execution_options(synchronize_session=False)) is None:
        register(session, card)


def set_status(session: Session, worker_id: str, status: str, job_id: str | None = None) -> None:
    """`idle`, `busy` (with its job), `resting` (after it failed itself) or `draining`."""
    values = {"status": status, "job_id": job_id, "heartbeat_at": now()}
    session.execute(update(Worker).where(Worker.id == worker_id).values(values))


def leave(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))


def present(session: Session, within_seconds: float) -> list[Worker]:
    """Workers whose last heartbeat is at most that old, oldest worker first."""
    return list(session.scalars(_PRESENT, {"within_seconds": within_seconds}))


def takes(session: Session, card: WorkerCard, within_seconds: float) -> ColumnElement[bool] | None:
    """Which jobs a worker takes: all but those that need more memory than it has and less than another one there.

    A job that none there has the memory for is taken by any: the plan may ask for too much, and it must not wait for
    ever. None where the worker is the largest itself: the usual case, which costs the queue's query nothing.
    """
    return _has_memory(card, present(session, within_seconds))


def _has_memory(worker: WorkerCard | Worker, there: Iterable[Worker]) -> ColumnElement[bool] | None:
    others = [other for other in there if other.status not in UNWILLING and other.device == worker.device]
    largest = max((other.memory_bytes for other in others), default=0)
    if largest <= worker.memory_bytes:
        return None
    need = needed_bytes(worker.device)
    return (need <= worker.memory_bytes) | (need > largest)


def suits(workers: Iterable[WorkerCard | Worker], there: list[Worker]) -> ColumnElement[bool]:
    """Which jobs one of these workers would claim if it looked.

    Args:
        there: all that are present.
    """
    kinds = {(worker.device, worker.memory_bytes, worker.spec_version): worker for worker in workers}
    each: list[ColumnElement[bool]] = [false()]
    for worker in kinds.values():
        reads = func.coalesce(SPEC_VERSION, 1) <= (worker.spec_version or 1)
        memory = _has_memory(worker, there)
        each.append(and_(Job.device.in_(serves(worker.device)), reads, *([] if memory is None else [memory])))
    return or_(*each)


def left_to_idle(session: Session, card: WorkerCard, within_seconds: float) -> str | None:
    """The device of the best queued job that a worker leaves to others, and that an idle one would take; or None."""
    there = present(session, within_seconds)
    idle = [worker for worker in there if worker.status == "idle" and worker.id != card.id]
    if not idle:
        return None
    waits = (Job.status == Status.QUEUED) & (Job.available_at <= now())
    query = select(Job.device).where(waits, suits(idle, there), ~suits([card], there))
    return session.scalar(query.order_by(Job.priority.desc(), Job.id).limit(1))


def forget_silent(session: Session, after_seconds: float) -> None:
    """Drop the rows of workers that died without a word."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < now() - after_seconds))
