"""Figures for monitoring, over all owners."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, true
from sqlalchemy.orm import Session

from storage.database import now
from storage.lifecycle import TERMINAL, Status
from storage.tables import IS_JOB, Job


def queue_figures(session: Session) -> dict[str, Any]:
    """Jobs by status, age of the oldest queued job in seconds, training speed now."""
    by_status = select(Job.status, func.count()).where(IS_JOB).group_by(Job.status)
    counts = {row[0]: row[1] for row in session.execute(by_status)}
    oldest = session.scalar(select(now() - func.min(Job.available_at)).where(Job.status == Status.QUEUED))
    running = session.scalars(select(Job.progress).where(Job.status == Status.RUNNING))
    speed = sum(float((progress or {}).get("samples_per_second") or 0) for progress in running)
    return {"jobs": counts, "oldest_queued_seconds": max(oldest or 0.0, 0.0), "samples_per_second": speed}


@dataclass(frozen=True)
class Durations:
    """How long jobs of one final status took from their first start to their end."""

    within: list[int]
    """How many took at most each of the bounds asked for."""
    count: int
    total_seconds: float


def job_durations(session: Session, bounds: Sequence[float]) -> dict[str, Durations]:
    """Durations of the finished jobs that are still kept, by status; jobs that never started are left out."""
    found, checks = _durations(session, bounds, true()), _durations(session, bounds, ~IS_JOB)
    # Taken off again: each question is answered from an index, and the one that both would need is twice as large.
    return {status: _less(each, checks[status]) if status in checks else each for status, each in found.items()}


def _durations(session: Session, bounds: Sequence[float], which: ColumnElement[bool]) -> dict[str, Durations]:
    seconds = Job.finished_at - Job.started_at
    within = [func.sum(case((seconds <= bound, 1), else_=0)) for bound in bounds]
    rows = session.execute(
        select(Job.status, func.count(), func.sum(seconds), *within)
        .where(which, Job.status.in_(TERMINAL), Job.started_at.is_not(None), Job.finished_at.is_not(None))
        .group_by(Job.status)
    )
    return {row[0]: Durations([int(n) for n in row[3:]], int(row[1]), float(row[2])) for row in rows}


def _less(whole: Durations, part: Durations) -> Durations:
    within = [mine - theirs for mine, theirs in zip(whole.within, part.within, strict=True)]
    return Durations(within, whole.count - part.count, max(0.0, whole.total_seconds - part.total_seconds))
