"""What a running attempt writes down: progress, metrics, checkpoints, artifacts. Every write is fenced."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import and_, delete, func, insert, not_, or_, select, update
from sqlalchemy.orm import Session

from storage.database import now
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence, add_event
from storage.queries import list_checkpoints
from storage.tables import Artifact, Checkpoint, Event, Job, Metric

KEPT_CHECKPOINTS = 2


class Point(NamedTuple):
    """One value of one series."""

    stage: str
    name: str
    step: int
    value: float


@dataclass(frozen=True)
class NewArtifact:
    """A file that lies in the store and is to be published."""

    name: str
    digest: str
    size: int
    media_type: str


def report(
    session: Session,
    fence: Fence,
    *,
    stage: str | None = None,
    progress: dict[str, Any] | None = None,
    points: Iterable[Point] = (),
    moved: bool = True,
) -> None:
    """One report of a running attempt: where it is, and the points since the last report.

    Args:
        moved: whether training moved on since the last report; a hang is told by its absence.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    values: dict[str, Any] = {"version": Job.version + 1, "updated_at": now()}
    if stage is not None:
        values["stage"] = stage
    if progress is not None:
        values["progress"] = progress
    if moved:
        values["stepped_at"] = now()
    _fenced_update(session, fence, values)
    # Neither SQLite nor JSON has a NaN: a gap in the series. PostgreSQL takes no row twice in one statement: the last.
    finite = {point[:3]: point for point in points if math.isfinite(point.value)}
    if finite:
        _insert_points(session, fence, list(finite.values()))


def add_events(
    session: Session, fence: Fence, events: Sequence[tuple[str, dict[str, Any]]], tried: int | None = None
) -> int | None:
    """Lines of history of a running attempt, once, though nobody knows whether the last try was committed.

    Args:
        events: type and data of each; another event of the same attempt and type comes from no one else.
        tried: what this returned to the last try with the same events.

    Returns:
        Id of the first of them; None where there is none.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    if not events:
        return None
    _fenced_update(session, fence, {"version": Job.version + 1})  # waits for a try whose commit is still being made
    ours = Event.job_id == fence.job_id, Event.attempt == fence.attempt
    if tried is not None and session.scalar(select(Event.type).where(*ours, Event.id == tried)) == events[0][0]:
        return tried
    first = session.scalars(select(Job.last_event).where(Job.id == fence.job_id)).one() + 1
    for type, data in events:
        add_event(session, fence, type, data)
    return first


# A checkpoint may lie between a step and what was reported of it: then the point comes again.
_AGAIN = "ON CONFLICT (job_id, stage, name, step) DO UPDATE SET value = excluded.value, attempt = excluded.attempt"
_POINTS_SQLITE = f"INSERT INTO metrics (job_id, attempt, stage, name, step, value) VALUES (?, ?, ?, ?, ?, ?) {_AGAIN}"
_POINTS_POSTGRESQL = f"""INSERT INTO metrics (job_id, attempt, stage, name, step, value)
    SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::double precision[]) {_AGAIN}"""


def _insert_points(session: Session, fence: Fence, points: list[Point]) -> None:
    """Thousands of rows in one statement, by the driver itself: this runs beside the training loop, in its process."""
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        columns = zip(*points, strict=True)
        connection.exec_driver_sql(_POINTS_POSTGRESQL, (fence.job_id, fence.attempt, *map(list, columns)))
    else:
        rows = [(fence.job_id, fence.attempt, *point) for point in points]
        connection.exec_driver_sql(_POINTS_SQLITE, rows)


def store_choices(session: Session, fence: Fence, choices: dict[str, Any]) -> dict[str, Any]:
    """Store what the first attempt chose; later attempts get what is stored.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _fenced_update(session, fence, {"version": Job.version + 1})
    stored: dict[str, Any] | None = session.scalar(select(Job.choices).where(Job.id == fence.job_id))
    if stored is not None:
        return stored
    _fenced_update(session, fence, {"choices": choices, "device": choices["device"]})
    return choices


def rewind(session: Session, fence: Fence, done: Mapping[str, int | None]) -> None:
    """Drop the points that this attempt will report again.

    Args:
        done: the stages that the checkpoint has seen, each with its last step, or None for all of it.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _fenced_update(session, fence, {"version": Job.version + 1})
    kept = [
        Metric.stage == stage if step is None else and_(Metric.stage == stage, Metric.step <= step)
        for stage, step in done.items()
    ]
    mine = Metric.job_id == fence.job_id
    session.execute(delete(Metric).where(mine, not_(or_(*kept))) if kept else delete(Metric).where(mine))


def record_checkpoint(
    session: Session, fence: Fence, *, stage: str, epoch: int, step: int, path: str, digest: str, size: int
) -> list[str]:
    """Make a complete checkpoint file the one to resume from; once, though it be said again.

    Returns:
        Paths of older checkpoints that no row names any more: once this is committed, the caller may delete
        the files.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _fenced_update(session, fence, {"failures": 0, "stepped_at": now(), "version": Job.version + 1})
    there = Checkpoint.job_id == fence.job_id, Checkpoint.attempt == fence.attempt, Checkpoint.path == path
    if session.scalar(select(Checkpoint.id).where(*there)) is not None:
        return []
    newest = session.scalar(select(func.max(Checkpoint.id)).where(Checkpoint.job_id == fence.job_id)) or 0
    session.execute(
        insert(Checkpoint).values(
            job_id=fence.job_id, id=newest + 1, attempt=fence.attempt, stage=stage, epoch=epoch, step=step,
            path=path, digest=digest, size=size, created_at=now(),
        )
    )  # fmt: skip
    add_event(session, fence, "checkpoint", {"id": newest + 1, "stage": stage, "epoch": epoch, "step": step})
    old = Checkpoint.job_id == fence.job_id, Checkpoint.id <= newest + 1 - KEPT_CHECKPOINTS
    dropped = set(session.scalars(delete(Checkpoint).where(*old).returning(Checkpoint.path)))
    # In the first release a report that was sent again, its first answer lost, named the same file twice.
    return sorted(dropped - {kept.path for kept in list_checkpoints(session, fence.job_id)})


def set_aside_checkpoint(session: Session, fence: Fence, id: int, reason: str) -> None:
    """Forget a checkpoint that turned out bad, and say so in the history; nothing where it is forgotten already.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _fenced_update(session, fence, {"version": Job.version + 1})
    forgotten = delete(Checkpoint).where(Checkpoint.job_id == fence.job_id, Checkpoint.id == id)
    if session.scalar(forgotten.returning(Checkpoint.id)) is not None:
        add_event(session, fence, "checkpoint_rejected", {"id": id, "reason": reason})


def publish(session: Session, fence: Fence, artifacts: Iterable[NewArtifact]) -> None:
    """Give a job its files; in the same transaction as its final status.

    Raises:
        StaleAttemptError: the attempt is no longer the job's.
    """
    _fenced_update(session, fence, {"version": Job.version + 1})
    session.execute(delete(Artifact).where(Artifact.job_id == fence.job_id))
    rows = [{"job_id": fence.job_id, **vars(artifact)} for artifact in artifacts]
    if rows:
        # Several rows at once take SQL expressions from the statement only.
        session.connection().execute(insert(Artifact).values(created_at=now()), rows)


def _fenced_update(session: Session, fence: Fence, values: dict[str, Any]) -> None:
    statement = update(Job).where(fence.holds()).values(values).returning(Job.id)
    if session.scalar(statement.execution_options(synchronize_session=False)) is None:
        raise StaleAttemptError(f"attempt {fence.attempt} of {fence.job_id} is no longer the job's")
