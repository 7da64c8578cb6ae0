"""What an owner's uploads may take together."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.errors import QuotaError
from storage.tables import Artifact
from storage.upload_tables import Upload


def refuse_over_quota(session: Session, owner: str, size: int, most: int | None) -> None:
    """Raise `QuotaError` where with one of this size the owner's uploads would have more than `most` bytes, with what
    their checks wrote.

    Until this transaction ends no other one looks: two that begin at once do not both take the last room.
    """
    if most is None:
        return
    if session.get_bind().dialect.name == "postgresql":  # on SQLite one writes at a time
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(owner, 0))))
    sent = select(func.coalesce(func.sum(Upload.size), 0)).where(Upload.owner == owner)
    made = select(func.coalesce(func.sum(Artifact.size), 0)).join(Upload, Upload.check_id == Artifact.job_id)
    taken = sum(int(session.scalar(sizes) or 0) for sizes in (sent, made.where(Upload.owner == owner)))
    if taken + size > most:
        message = f"your uploads have {taken:,} bytes, with these {size:,} they would have more than {most:,}"
        raise QuotaError(f"{message} (owner_upload_bytes); delete what is no longer needed")
