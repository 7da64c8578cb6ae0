"""Who is there: the workers' own rows."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.tables import Worker


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

    @property
    def serves(self) -> tuple[str, ...]:
        """Which jobs' devices it takes: a worker with a GPU takes the jobs for a CPU as well."""
        return ("auto", "cpu", "cuda") if self.device == "cuda" else ("auto", "cpu")


def register(session: Session, card: WorkerCard) -> None:
    session.execute(insert(Worker).values(**vars(card), status="idle", started_at=now(), heartbeat_at=now()))


def beat(session: Session, card: WorkerCard) -> None:
    """Say that the worker is alive; a row that was swept meanwhile comes back."""
    statement = update(Worker).where(Worker.id == card.id).values(heartbeat_at=now()).returning(Worker.id)
    if session.scalar(statement) is None:
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


def forget_silent(session: Session, after_seconds: float) -> None:
    """Drop the rows of workers that died without a word."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < now() - after_seconds))
