"""What is swept: checkpoints and artifacts past their time or over the quota, and files that no row names."""

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from storage.actions import needed_teachers
from storage.blobs import BlobStore
from storage.database import Database, now
from storage.lifecycle import TERMINAL, Status
from storage.settings import Settings
from storage.tables import Artifact, Checkpoint, Job

DAY = 86_400.0
Table = type[Checkpoint] | type[Artifact]


@dataclass
class Swept:
    """What one sweep removed: rows by kind, and bytes that came free on disk."""

    checkpoints: int = 0
    artifacts: int = 0
    bytes: int = 0


def sweep(database: Database, settings: Settings) -> Swept:
    """Apply retention once. Rows go first and files after: what a row names is always there."""
    done = Swept()
    giving: dict[Table, Select[Any]] = {
        Checkpoint: _ended(),
        Artifact: _ended().where(Job.id.not_in(needed_teachers())),
    }
    with database.write() as session:
        done.checkpoints = _expire(session, Checkpoint, giving[Checkpoint], settings.keep_checkpoints_days)
        if settings.keep_artifacts_days is not None:
            done.artifacts = _expire(session, Artifact, giving[Artifact], settings.keep_artifacts_days)
    if settings.disk_quota_bytes is not None:
        _enforce_quota(database, giving, settings.disk_quota_bytes, done)
    done.bytes = _sweep_blobs(database, settings) + _sweep_folders(database, settings)
    return done


def _ended() -> Select[Any]:
    return select(Job.id).where(Job.status.in_(TERMINAL))


def _expire(session: Session, table: Table, giving: Select[Any], days: float) -> int:
    old = giving.where(Job.finished_at < now() - days * DAY)
    return len(session.scalars(delete(table).where(table.job_id.in_(old)).returning(table.job_id)).all())


def used_bytes(session: Session) -> int:
    """What checkpoints and artifacts take; bytes that several jobs share count once."""
    checkpoints = session.scalar(select(func.coalesce(func.sum(Checkpoint.size), 0))) or 0
    unique = select(Artifact.digest, func.max(Artifact.size).label("size")).group_by(Artifact.digest).subquery()
    return int(checkpoints) + int(session.scalar(select(func.coalesce(func.sum(unique.c.size), 0))) or 0)


def _enforce_quota(database: Database, giving: dict[Table, Select[Any]], quota: int, done: Swept) -> None:
    """Finished jobs give up their checkpoints, oldest first, then their artifacts, until it fits.

    One short transaction per job: submissions and heartbeats come between.
    """
    for table, ended in giving.items():
        while True:
            with database.write() as session:
                if used_bytes(session) <= quota:
                    return
                holders = ended.where(select(table.job_id).where(table.job_id == Job.id).exists())
                oldest = session.scalar(holders.order_by(Job.finished_at, Job.id).limit(1))
                if oldest is None:
                    break
                gone = len(session.scalars(delete(table).where(table.job_id == oldest).returning(table.job_id)).all())
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

    A running or coming attempt's folder is left alone: its files come before their rows.
    """
    freed = 0
    for folder in sorted(path for path in settings.jobs.glob("*") if path.is_dir()):
        with database.read() as session:
            job = session.execute(select(Job.status, Job.attempt).where(Job.id == folder.name)).one_or_none()
            named = set(session.scalars(select(Checkpoint.path).where(Checkpoint.job_id == folder.name)))
        if job is None:
            freed += _remove_folder(folder, settings)
            continue
        ended = job.attempt - (job.status == Status.RUNNING)
        for number in range(1, ended + 1):
            attempt = folder / f"attempt-{number}"
            for path in [*attempt.glob("checkpoints/*"), *attempt.glob("out/*")]:
                if str(path.relative_to(settings.home)) not in named:
                    freed += _remove_file(path, settings)
    return freed


def _remove_folder(folder: Path, settings: Settings) -> int:
    with contextlib.suppress(FileNotFoundError):  # another sweep may be at it
        if not _is_young(folder, settings):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
            return size
    return 0


def _remove_file(path: Path, settings: Settings) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.is_file() and not _is_young(path, settings):
            size = path.stat().st_size
            path.unlink()
            return size
    return 0


def _is_young(path: Path, settings: Settings) -> bool:
    return time.time() - path.stat().st_mtime < settings.sweep_grace_seconds
