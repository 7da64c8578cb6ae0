"""What is swept: checkpoints and artifacts past their time or over the quota, and files that no row names."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from storage.blobs import BlobStore
from storage.database import Database, now
from storage.lifecycle import TERMINAL, Status
from storage.settings import Settings
from storage.tables import Artifact, Checkpoint, Job

DAY = 86_400.0


@dataclass
class Swept:
    """What one sweep removed: rows by kind, and bytes that came free on disk."""

    checkpoints: int = 0
    artifacts: int = 0
    bytes: int = 0


def sweep(database: Database, settings: Settings) -> Swept:
    """Apply retention once. Rows go first and files after: what a row names is always there."""
    done = Swept()
    with database.write() as session:
        done.checkpoints += _expire(session, Checkpoint, settings.keep_checkpoints_days)
        if settings.keep_artifacts_days is not None:
            done.artifacts += _expire(session, Artifact, settings.keep_artifacts_days)
        if settings.disk_quota_bytes is not None:
            _enforce_quota(session, settings.disk_quota_bytes, done)
    done.bytes += _sweep_blobs(database, settings) + _sweep_folders(database, settings)
    return done


def _expire(session: Session, table: type[Checkpoint] | type[Artifact], days: float) -> int:
    old = select(Job.id).where(Job.status.in_(TERMINAL), Job.finished_at < now() - days * DAY)
    return len(session.scalars(delete(table).where(table.job_id.in_(old)).returning(table.job_id)).all())


def used_bytes(session: Session) -> int:
    """What checkpoints and artifacts take; bytes that several jobs share count once."""
    checkpoints = session.scalar(select(func.coalesce(func.sum(Checkpoint.size), 0))) or 0
    unique = select(Artifact.digest, func.max(Artifact.size).label("size")).group_by(Artifact.digest).subquery()
    return int(checkpoints) + int(session.scalar(select(func.coalesce(func.sum(unique.c.size), 0))) or 0)


def _enforce_quota(session: Session, quota: int, done: Swept) -> None:
    """Finished jobs give up their checkpoints, oldest first, then their artifacts, until it fits."""
    for table in (Checkpoint, Artifact):
        holders = (
            select(Job.id)
            .where(Job.status.in_(TERMINAL), select(table.job_id).where(table.job_id == Job.id).exists())
            .order_by(Job.finished_at)
        )
        for job_id in session.scalars(holders).all():
            if used_bytes(session) <= quota:
                return
            gone = len(session.scalars(delete(table).where(table.job_id == job_id).returning(table.job_id)).all())
            if table is Checkpoint:
                done.checkpoints += gone
            else:
                done.artifacts += gone


def _sweep_blobs(database: Database, settings: Settings) -> int:
    store = BlobStore(settings.blobs)
    freed = sum(store.discard(path, older_than_seconds=settings.sweep_grace_seconds) for path in store.temporary())
    found = dict(store.all())  # listed before the rows are read: what is put later is not looked at
    with database.read() as session:
        named = set(session.scalars(select(Artifact.digest).distinct()))
    for digest in found.keys() - named:
        freed += store.discard(found[digest], older_than_seconds=settings.sweep_grace_seconds)
    return freed


def _sweep_folders(database: Database, settings: Settings) -> int:
    """Folders of deleted jobs whole; of ended attempts, the files that no row names.

    A running attempt's folder is left alone: its files come before their rows.
    """
    if not settings.jobs.is_dir():
        return 0
    freed = 0
    for folder in sorted(settings.jobs.iterdir()):
        with database.read() as session:
            job = session.execute(select(Job.status, Job.attempt).where(Job.id == folder.name)).one_or_none()
            named = set(session.scalars(select(Checkpoint.path).where(Checkpoint.job_id == folder.name)))
        if job is None:
            if not _is_young(folder, settings):
                freed += _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
            continue
        for attempt in folder.glob("attempt-*"):
            if job.status != Status.RUNNING or attempt.name != f"attempt-{job.attempt}":
                freed += _sweep_attempt(attempt, named, settings)
    return freed


def _sweep_attempt(folder: Path, named: set[str], settings: Settings) -> int:
    freed = 0
    for path in [*folder.glob("checkpoints/*"), *folder.glob("out/*")]:
        if path.is_file() and str(path.relative_to(settings.home)) not in named and not _is_young(path, settings):
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
    return freed


def _is_young(path: Path, settings: Settings) -> bool:
    return time.time() - path.stat().st_mtime < settings.sweep_grace_seconds


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
