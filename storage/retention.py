"""What is swept: checkpoints and artifacts past their time or over the quota, and files that no row names."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from storage import upload_removal, workers
from storage.actions import needed_jobs
from storage.blobs import BlobStore
from storage.database import Database, now
from storage.files import file_clock, is_folder
from storage.lifecycle import TERMINAL, Status
from storage.settings import DRAINING, Settings
from storage.tables import IS_JOB, LAST_CHECK, Artifact, Checkpoint, Job
from storage.upload_tables import Upload, UploadPart

DAY = 86_400.0
LOG = "log.txt"
AT_ONCE = 500
"""Jobs or blobs that are looked at together: neither memory nor a transaction grows with the number of all jobs."""
Table = type[Checkpoint] | type[Artifact]


@dataclass
class Swept:
    """What one sweep removed: rows by kind, and bytes that came free on disk."""

    checkpoints: int = 0
    artifacts: int = 0
    uploads: int = 0
    """Those that were never completed, or failed."""
    bytes: int = 0


def sweep(database: Database, settings: Settings) -> Swept:
    """Apply retention once. Rows go first and files after: what a row names is always there."""
    done = Swept()
    giving: dict[Table, Select[Any]] = {
        Checkpoint: _ended(),
        Artifact: _ended().where(Job.id.not_in(needed_jobs())),
    }
    done.checkpoints = _expire(database, Checkpoint, giving[Checkpoint], settings.keep_checkpoints_days)
    if settings.keep_artifacts_days is not None:
        done.artifacts = _expire(database, Artifact, giving[Artifact], settings.keep_artifacts_days)
    if settings.disk_quota_bytes is not None:
        _enforce_quota(database, giving, settings.disk_quota_bytes, done)
    done.uploads = _forget_unfinished(database, settings.keep_unfinished_uploads_days)
    if settings.home.is_dir():
        before = file_clock(settings.home) - settings.sweep_grace_seconds
        done.bytes = _sweep_blobs(database, settings, before) + _sweep_folders(database, settings, before)
        done.bytes += _sweep_parts(database, settings, before)
        _sweep_flags(database, settings, before)
    return done


def _ended() -> Select[Any]:
    return select(Job.id).where(Job.status.in_(TERMINAL), IS_JOB)  # what a check found stays with its upload


def _holds(table: Table) -> ColumnElement[bool]:
    return select(table.job_id).where(table.job_id == Job.id).exists()


def _expire(database: Database, table: Table, giving: Select[Any], days: float) -> int:
    """Looks for them in a transaction that only reads: on SQLite, nobody writes while another one does."""
    old = giving.where(Job.finished_at < now() - days * DAY)
    gone = 0
    while True:
        with database.read() as session:
            found = list(session.scalars(old.where(_holds(table)).limit(AT_ONCE)))
        if not found:
            return gone
        gone += _drop(database, table, old, found)


def _drop(database: Database, table: Table, giving: Select[Any], found: list[str]) -> int:
    """Delete the rows of those of the jobs that still give theirs: one may have been retried meanwhile."""
    which = table.job_id.in_(giving.where(Job.id.in_(found)))
    held = select(Job.id).where(Job.id.in_(found)).order_by(Job.id).with_for_update(key_share=True)
    with database.write() as session:
        session.execute(held)  # a submission that has seen its teacher's weights there is waited for, and counts
        return len(session.scalars(delete(table).where(which).returning(table.job_id)).all())


def _forget_unfinished(database: Database, days: float) -> int:
    old, gone = upload_removal.unfinished(days), 0
    while True:
        with database.read() as session:
            found = list(session.scalars(select(Upload.id).where(old).limit(AT_ONCE)))
        if not found:
            return gone
        with database.write() as session:
            gone += upload_removal.forget(session, found, old)


def used_bytes(session: Session) -> int:
    """What checkpoints and artifacts of jobs take; bytes that several jobs share count once. What a check found of an
    upload stays with it, and no job could give it up."""
    checkpoints = session.scalar(select(func.coalesce(func.sum(Checkpoint.size), 0))) or 0
    of_jobs = select(Artifact.digest, func.max(Artifact.size).label("size")).where(Artifact.job_id > LAST_CHECK)
    unique = of_jobs.group_by(Artifact.digest).subquery()
    return int(checkpoints) + int(session.scalar(select(func.coalesce(func.sum(unique.c.size), 0))) or 0)


def _enforce_quota(database: Database, giving: dict[Table, Select[Any]], quota: int, done: Swept) -> None:
    """Finished jobs give up their checkpoints, oldest first, then their artifacts, until it fits."""
    for table, ended in giving.items():
        while True:
            with database.read() as session:
                # In this order: what another sweep removes in between makes this one remove less, never more.
                held = _oldest(session, table, ended)
                over = used_bytes(session) - quota
            if over <= 0:
                return
            if not held:
                break
            sizes = accumulate(size for _, size in held)
            enough = 1 + sum(size < over for size in sizes)
            gone = _drop(database, table, ended, [job_id for job_id, _ in held[:enough]])
            if table is Checkpoint:
                done.checkpoints += gone
            else:
                done.artifacts += gone


def _oldest(session: Session, table: Table, ended: Select[Any]) -> list[tuple[str, int]]:
    """The oldest finished jobs that hold any, and their bytes; what they share with others counts, too."""
    jobs = list(session.scalars(ended.where(_holds(table)).order_by(Job.finished_at, Job.id).limit(AT_ONCE)))
    sizes = select(table.job_id, func.sum(table.size)).where(table.job_id.in_(jobs)).group_by(table.job_id)
    bytes = {row[0]: int(row[1]) for row in session.execute(sizes)}
    return [(job_id, bytes.get(job_id, 0)) for job_id in jobs]


def _sweep_blobs(database: Database, settings: Settings, before: float) -> int:
    """What no row names, and was put before then. Nobody puts or publishes while rows are read and files deleted."""
    store, freed = BlobStore(settings.blobs), 0
    blobs = chain(((path, None) for path in store.temporary()), ((path, digest) for digest, path in store.all()))
    old = ((path, digest) for path, digest in blobs if _is_old(path, before))
    while found := dict(islice(old, AT_ONCE)):
        with store.alone() as alone:
            if not alone:
                break
            digests = [digest for digest in found.values() if digest is not None]
            with database.read() as session:
                named = set(session.scalars(select(Artifact.digest).where(Artifact.digest.in_(digests)).distinct()))
                named |= _named_digests(session, digests)
            freed += sum(store.discard(path, before=before) for path, digest in found.items() if digest not in named)
    return freed


def _sweep_folders(database: Database, settings: Settings, before: float) -> int:
    """Folders of deleted jobs whole; of ended attempts, the files that no row names.

    A running or coming attempt's folder is left alone: its files come before their rows.
    """
    freed = 0
    names = iter(sorted(os.listdir(settings.jobs)) if settings.jobs.is_dir() else [])
    while some := list(islice(names, AT_ONCE)):
        with database.read() as session:
            rows = session.execute(select(Job.id, Job.status, Job.attempt).where(Job.id.in_(some)))
            ended = {row.id: row.attempt - (row.status == Status.RUNNING) for row in rows}
            named = set(session.scalars(select(Checkpoint.path).where(Checkpoint.job_id.in_(some))))
        for folder in [folder for name in some if is_folder(folder := settings.jobs / name)]:
            if folder.name not in ended:
                freed += _remove_folder(folder, before)
                continue
            for number in range(1, ended[folder.name] + 1):
                attempt = folder / f"attempt-{number}"
                for path in attempt.rglob("*") if is_folder(attempt) else ():
                    if path.name != LOG and str(path.relative_to(settings.home)) not in named:
                        freed += _remove_file(path, before)
    return freed


def _sweep_parts(database: Database, settings: Settings, before: float) -> int:
    """Parts of uploads that are deleted or joined, and those that never arrived whole."""
    freed = 0
    folders = (path for path in sorted(settings.uploads.glob("*")) if is_folder(path))
    while some := list(islice(folders, AT_ONCE)):
        with database.read() as session:
            waiting = _waiting_parts(session, [folder.name for folder in some])
        for folder in some:
            if folder.name not in waiting:
                freed += _remove_folder(folder, before)
                continue
            for path in folder.iterdir():
                if str(path.relative_to(settings.home)) not in waiting[folder.name]:
                    freed += _remove_file(path, before)
    return freed


def _sweep_flags(database: Database, settings: Settings, before: float) -> None:
    """What workers left that were killed while they drained."""
    with database.read() as session:
        there = {worker.id for worker in workers.present(session, settings.lease_seconds)}
    for flag in settings.drain_flags.glob(f"*{DRAINING}"):
        if flag.name.removesuffix(DRAINING) not in there:
            _remove_file(flag, before)


def _remove_folder(folder: Path, before: float) -> int:
    with contextlib.suppress(FileNotFoundError):  # another sweep may be at it
        inside = list(folder.rglob("*"))  # a file may still grow in a folder that is as old as its first byte
        if all(_is_old(path, before) for path in (folder, *inside)):
            size = sum(path.stat().st_size for path in inside if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
            return size
    return 0


def _remove_file(path: Path, before: float) -> int:
    with contextlib.suppress(FileNotFoundError):
        if path.is_file() and _is_old(path, before):
            size = path.stat().st_size
            path.unlink()
            return size
    return 0


def _is_old(path: Path, before: float) -> bool:
    """Whether it was last written before then, by the files' clock; what is gone is not."""
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_mtime <= before
    return False


def _named_digests(session: Session, digests: Sequence[str]) -> set[str]:
    """Those of the digests that are uploads'."""
    return {digest for digest in session.scalars(select(Upload.digest).where(Upload.digest.in_(digests))) if digest}


def _waiting_parts(session: Session, upload_ids: Sequence[str]) -> dict[str, set[str]]:
    """Paths of the parts of those uploads that are there and not joined."""
    found: dict[str, set[str]] = {each: set() for each in session.scalars(_not_joined(upload_ids))}
    for part in session.scalars(select(UploadPart).where(UploadPart.upload_id.in_(list(found)))):
        found[part.upload_id].add(part.path)
    return found


def _not_joined(upload_ids: Sequence[str]) -> Select[str]:
    return select(Upload.id).where(Upload.id.in_(upload_ids), Upload.digest.is_(None))
