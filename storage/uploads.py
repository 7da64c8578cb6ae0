"""Datasets and models that users bring: stored in parts, checked by a worker, then immutable.

A check is a job that nobody submitted: claimed, leased, fenced and taken back by the functions of all jobs. What an
upload is worth is therefore written once, in its check's row, and read from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, delete, insert, or_, select, update
from sqlalchemy.orm import Session, defer

from storage import actions
from storage.database import insert_into, now
from storage.errors import ConflictError, NotFoundError
from storage.ids import CHECK, new_id
from storage.lifecycle import Fence, Status, hold
from storage.submissions import insert_job, refuse_full_queue
from storage.tables import Job
from storage.upload_tables import Upload, UploadName, UploadPart

PREFIXES = {"dataset": "ds", "model": "mdl"}
"""kind: how its ids begin."""
GOES_ON = ("digest_mismatch", "no_upload", "disk")
"""Codes of checks that pass once parts are sent again, or there is room."""


class UploadStatus(StrEnum):
    """What an upload is: all but the first is what its check is."""

    UPLOADING = "uploading"
    """Parts are missing, or nobody has said that it is complete."""
    CHECKING = "checking"
    """A worker looks at it, or will."""
    READY = "ready"
    """Jobs may name it."""
    FAILED = "failed"
    """It cannot be used; its error says why."""


OF_CHECK = {Status.SUCCEEDED: UploadStatus.READY, Status.FAILED: UploadStatus.FAILED}
"""All others: `checking`. Nobody can cancel a check or pause it."""
STATUS = case(
    (Upload.check_id.is_(None), UploadStatus.UPLOADING),
    *((Job.status == status, shown) for status, shown in OF_CHECK.items()),
    else_=UploadStatus.CHECKING,
)


@dataclass(frozen=True)
class Found:
    """An upload and its check; the check is None until the upload is complete."""

    upload: Upload
    check: Job | None

    @property
    def status(self) -> UploadStatus:
        if self.check is None:
            return UploadStatus.UPLOADING
        return OF_CHECK.get(Status(self.check.status), UploadStatus.CHECKING)

    @property
    def profile(self) -> dict[str, Any] | None:
        """What the check found; None unless it is ready. It may be large: it is loaded when it is asked for, while the
        session is open."""
        found: dict[str, Any] | None = (self.check.result or {}).get("profile") if self.check is not None else None
        return found

    @property
    def error(self) -> dict[str, Any] | None:
        return self.check.error if self.check is not None else None


def count_parts(upload: Upload) -> int:
    return -(-upload.size // upload.part_size)


def size_of_part(upload: Upload, number: int) -> int:
    """In bytes: the last one is what is left.

    Raises:
        NotFoundError: the upload has no such part.
    """
    if not 1 <= number <= count_parts(upload):
        raise NotFoundError(f"{upload.id} has parts 1 to {count_parts(upload)}")
    return min(upload.part_size, upload.size - (number - 1) * upload.part_size)


def create(
    session: Session,
    upload_id: str,
    *,
    kind: str,
    owner: str,
    name: str,
    file: str,
    size: int,
    part_size: int,
    options: dict[str, Any],
    digest: str | None = None,
) -> Upload:
    """A new upload that waits for its parts, under the next version of its name."""
    count = insert_into(session, UploadName).values(owner=owner, kind=kind, name=name, version=1)
    version = session.scalar(
        count.on_conflict_do_update(
            index_elements=["owner", "kind", "name"], set_={"version": UploadName.version + 1}
        ).returning(UploadName.version)
    )
    row = insert(Upload).values(
        id=upload_id, kind=kind, owner=owner, name=name, version=version, file=file, size=size,
        part_size=part_size, options=options, announced=digest, created_at=now(), updated_at=now(),
    )  # fmt: skip
    return session.scalars(row.returning(Upload)).one()


def _found() -> Select[Upload, Job]:
    large = (defer(Job.plan), defer(Job.spec), defer(Job.result))
    return select(Upload, Job).outerjoin(Job, Job.id == Upload.check_id).options(*large)


def get_upload(session: Session, kind: str, upload_id: str, owner: str) -> Found:
    """An upload of this kind and owner.

    Raises:
        NotFoundError: there is none.
    """
    mine = (Upload.id == upload_id, Upload.kind == kind, Upload.owner == owner)
    row = session.execute(_found().where(*mine)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no {kind} {upload_id}")
    return Found(*row)


def begun(session: Session, kind: str, owner: str, name: str, *, file: str, size: int, digest: str) -> list[Upload]:
    """The uploads, newest first, that were said to be this very file and can go on: they are not complete, or their
    check failed for a reason of `GOES_ON`; of the last 100."""
    mine = (Upload.kind == kind, Upload.owner == owner, Upload.name == name)
    this = (Upload.file == file, Upload.size == size, Upload.announced == digest)
    ended = or_(Upload.check_id.is_(None), Job.status == Status.FAILED)
    both = select(Upload, Job.error).outerjoin(Job, Job.id == Upload.check_id).where(*mine, *this, ended)
    rows = session.execute(both.order_by(Upload.id.desc()).limit(100)).all()
    return [upload for upload, error in rows if error is None or error["code"] in GOES_ON]


def lock_upload(session: Session, kind: str, upload_id: str, owner: str, *, share: bool = False) -> Upload:
    """Its row, held until this transaction ends: `share` with others who only need it to stay.

    Raises:
        NotFoundError: there is none.
    """
    mine = (Upload.id == upload_id, Upload.kind == kind, Upload.owner == owner)
    upload = session.scalar(select(Upload).where(*mine).with_for_update(read=share))
    if upload is None:
        raise NotFoundError(f"there is no {kind} {upload_id}")
    return upload


def page_uploads(
    session: Session,
    kind: str,
    owner: str,
    *,
    limit: int,
    after: str | None = None,
    status: str | None = None,
    name: str | None = None,
) -> tuple[list[Found], bool]:
    """Uploads newest first, and whether there are more; `after` is the id of the last one of the page before."""
    where: list[ColumnElement[bool]] = [Upload.kind == kind, Upload.owner == owner]
    if after is not None:
        where.append(Upload.id < after)
    if status is not None:
        where.append(STATUS.in_([status]))
    if name is not None:
        where.append(Upload.name == name)
    rows = session.execute(_found().where(*where).order_by(Upload.id.desc()).limit(limit + 1)).all()
    return [Found(*row) for row in rows[:limit]], len(rows) > limit


def list_parts(session: Session, upload_id: str) -> list[UploadPart]:
    """The parts that have arrived, in order."""
    mine = select(UploadPart).where(UploadPart.upload_id == upload_id)
    return list(session.scalars(mine.order_by(UploadPart.number)))


def missing_parts(session: Session, upload: Upload) -> list[int]:
    """The numbers of the parts that have not arrived; of an upload whose parts are joined, none."""
    if upload.digest is not None:
        return []
    there = {part.number for part in list_parts(session, upload.id)}
    return [number for number in range(1, count_parts(upload) + 1) if number not in there]


def name_parts(numbers: Sequence[int]) -> str:
    """For people: the first ten."""
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")


def refuse_complete(session: Session, upload: Upload) -> None:
    """Raise `ConflictError` where it takes no more parts: they are joined, or its check is about to join them."""
    if upload.check_id is None:
        return
    if upload.digest is None and session.scalar(_status_of_check(upload)) == Status.FAILED:
        return  # they do not make the file that was announced, or one was damaged: sent again, they may
    raise ConflictError(f"{upload.id} is complete and takes no more parts; what is to change is a new upload")


def _status_of_check(upload: Upload) -> Select[str]:
    return select(Job.status).where(Job.id == upload.check_id)


def add_part(session: Session, upload: Upload, number: int, *, size: int, digest: str, path: str) -> str | None:
    """Note a part whose file is there; the path of the file whose place it takes, to be deleted after the commit.

    Args:
        upload: locked by this transaction.

    Raises:
        ConflictError: the upload is complete.
    """
    refuse_complete(session, upload)
    old = session.scalar(select(UploadPart.path).where(UploadPart.upload_id == upload.id, UploadPart.number == number))
    values = {"size": size, "digest": digest, "path": path}
    row = insert_into(session, UploadPart).values(upload_id=upload.id, number=number, **values)
    session.execute(row.on_conflict_do_update(index_elements=["upload_id", "number"], set_=values))
    session.execute(update(Upload).where(Upload.id == upload.id).values(updated_at=now()))
    return old


def complete(session: Session, upload: Upload, *, spec: dict[str, Any], spec_digest: str, max_queued: int) -> None:
    """Queue the check of an upload whose parts are all there, or joined; of one that failed, once more.

    Args:
        upload: locked by this transaction.
        spec: the check's, as `insert_job` wants it.

    Raises:
        ConflictError: a part is missing.
        QueueFullError: `max_queued` jobs wait already.
    """
    if upload.check_id is not None and session.scalar(_status_of_check(upload)) != Status.FAILED:
        return
    if missing := missing_parts(session, upload):
        raise ConflictError(f"parts of {upload.id} are missing: {name_parts(missing)}")
    refuse_full_queue(session, max_queued)
    check_id = upload.check_id or new_id(CHECK)
    if upload.check_id is not None:
        actions.request(session, check_id, upload.owner, "retry")
    else:
        insert_job(session, check_id, upload.owner, spec, spec_digest, {})
    session.execute(update(Upload).where(Upload.id == upload.id).values(check_id=check_id, updated_at=now()))


def join(session: Session, fence: Fence, upload_id: str, digest: str) -> None:
    """Give an upload the blob that its parts were joined to; from now on no part is needed.

    Raises:
        StaleAttemptError: the check's attempt is no longer its job's.
    """
    hold(session, fence)
    session.execute(update(Upload).where(Upload.id == upload_id).values(digest=digest, updated_at=now()))
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))


def lose_parts(session: Session, fence: Fence, upload_id: str, numbers: Sequence[int]) -> None:
    """Forget parts whose bytes are no longer there: they are missing again.

    Raises:
        StaleAttemptError: the check's attempt is no longer its job's.
    """
    hold(session, fence)
    these = (UploadPart.upload_id == upload_id, UploadPart.number.in_(numbers))
    session.execute(delete(UploadPart).where(*these))


def checked_by(session: Session, check_id: str) -> Upload:
    """The upload that a job checks.

    Raises:
        NotFoundError: it was deleted, and its check with it.
    """
    upload = session.scalar(select(Upload).where(Upload.check_id == check_id))
    if upload is None:
        raise NotFoundError(f"what {check_id} checks is gone")
    return upload
