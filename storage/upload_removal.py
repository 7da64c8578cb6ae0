"""Uploads that are taken away: by their owner, or because nobody completed them for too long."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from storage.database import now
from storage.errors import ConflictError
from storage.lifecycle import LIVE, Status
from storage.tables import Job
from storage.upload_tables import JobUpload, Upload


def remove(session: Session, upload: Upload) -> None:
    """Delete an upload and its check, which ends if it runs; its files are left to the sweep.

    Args:
        upload: locked by this transaction.

    Raises:
        ConflictError: a job that has not ended reads it.
    """
    users = select(Job.id).join(JobUpload, JobUpload.job_id == Job.id).where(JobUpload.upload_id == upload.id)
    user = session.scalar(users.where(Job.status.in_(LIVE)).limit(1))
    if user is not None:
        raise ConflictError(f"{user} has not ended and reads {upload.id}; wait for it or cancel it")
    _delete(session, Upload.id == upload.id)


def unfinished(days: float) -> ColumnElement[bool]:
    """Uploads that nobody completed, or that failed, and to which nothing was done for so long."""
    failed = select(Job.id).where(Job.id == Upload.check_id, Job.status == Status.FAILED).exists()
    return and_(or_(Upload.check_id.is_(None), failed), Upload.updated_at < now() - days * 86_400.0)


def forget(session: Session, upload_ids: Sequence[str], which: ColumnElement[bool]) -> int:
    """Delete those of the uploads that are still so; how many."""
    return _delete(session, and_(Upload.id.in_(upload_ids), which))


def _delete(session: Session, which: ColumnElement[bool]) -> int:
    gone = session.scalars(delete(Upload).where(which).returning(Upload.check_id)).all()
    session.execute(delete(Job).where(Job.id.in_([check_id for check_id in gone if check_id is not None])))
    return len(gone)
