"""Uploads as specs name them: by their id, or as `name@version`."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, NotFoundError
from storage.upload_tables import Upload, UploadName
from storage.uploads import Found, UploadStatus, get_upload


def find_ready(session: Session, kind: str, reference: str, owner: str) -> Found:
    """The upload that a spec names by its id or as `name@version`.

    Raises:
        NotFoundError: there is none.
        ConflictError: it is not ready; says why.
    """
    name, version = _read(reference)
    upload_id: str | None = reference
    if name:
        named = (Upload.kind == kind, Upload.owner == owner, Upload.name == name)
        upload_id = session.scalar(select(Upload.id).where(*named, Upload.version == version))
    if upload_id is None:
        raise NotFoundError(f"there is no {kind} {reference}")
    found = get_upload(session, kind, upload_id, owner)
    if found.status != UploadStatus.READY:
        why = f": {found.error['message']}" if found.error else ""
        raise ConflictError(f"{kind} {reference} is {found.status}, not ready{why}")
    return found


def is_gone(session: Session, kind: str, reference: str, owner: str, upload_id: str) -> bool:
    """Whether this upload was deleted and the reference may have named it: it is its id, or a version that was given
    to a name once and is nobody's any more."""
    name, version = _read(reference)
    if session.get(Upload, upload_id) is not None:
        return False
    if not name:
        return reference == upload_id
    last = session.get(UploadName, (owner, kind, name))
    named = (Upload.kind == kind, Upload.owner == owner, Upload.name == name, Upload.version == version)
    return last is not None and 1 <= version <= last.version and session.scalar(select(Upload.id).where(*named)) is None


def _read(reference: str) -> tuple[str, int]:
    """Name and version; an id has no name, and what is no number is no version."""
    name, _, version = reference.rpartition("@")
    return name, int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0
