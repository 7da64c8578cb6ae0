"""Accepting datasets and models: the same for both, but for what their owner says of them."""

import hashlib
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from api import upload_schemas
from api.bodies import Body
from api.new_uploads import Kind, New, read_new
from api.problems import DigestMismatchError
from api.receiving import check_disk
from api.service import Service
from kdcore.config import SPEC_VERSION
from storage import quota, upload_removal, upload_tables, uploads
from storage.errors import ConflictError, NotFoundError, QueueFullError, QuotaError
from storage.ids import new_id
from storage.queries import list_artifacts

CHECK_PRIORITY = 100
"""The highest: a check is short, and jobs wait for it."""
MOST_SHOWN = 1_000
"""Of the parts that are missing."""


def begin(service: Service, owner: str, kind: Kind, body: Body, resume: bool) -> tuple[upload_schemas.Upload, bool]:
    """An upload that waits for its parts, and whether it is new.

    Args:
        resume: whether one will do that was begun earlier and of which the same was said.
    """
    new = read_new(kind, body.parse(), service.settings.max_upload_bytes)
    if resume and (earlier := _begun(service, owner, kind, new)) is not None:
        return show(service, owner, kind, earlier), False
    check_disk(service, 2 * new.size)  # its parts, and what they are joined to
    upload_id = new_id(kind.prefix)
    with service.database.write() as session:
        create(session, service, upload_id, owner, kind, new, service.settings.max_part_bytes)
    return show(service, owner, kind, upload_id), True


def _begun(service: Service, owner: str, kind: Kind, new: New) -> str | None:
    """The id of an upload of which the same was said, defaults filled in; none where nothing tells the file by."""
    if new.digest is None:
        return None
    with service.database.read() as session:
        same = uploads.begun(session, kind.name, owner, new.name, file=new.file, size=new.size, digest=new.digest)
        options = new.options.model_dump(mode="json")
        return next((upload.id for upload in same if upload.options == options), None)


def create(
    session: Session, service: Service, upload_id: str, owner: str, kind: Kind, new: New, part_size: int
) -> upload_tables.Upload:
    quota.refuse_over_quota(session, owner, new.size, service.settings.owner_upload_bytes)
    return uploads.create(
        session,
        upload_id,
        kind=kind.name,
        owner=owner,
        name=new.name,
        file=new.file,
        size=new.size,
        part_size=part_size,
        options=new.options.model_dump(mode="json"),
        digest=new.digest,
    )


def check_room(service: Service, owner: str, size: int) -> None:
    """Before the bytes of a whole file are read: there must be room for them on the disk, and in the owner's quota."""
    size = min(size, service.settings.max_part_bytes)  # a longer one is refused as such
    check_disk(service, size)
    with service.database.read() as session:
        quota.refuse_over_quota(session, owner, size, service.settings.owner_upload_bytes)


def part_path(service: Service, upload_id: str, number: int) -> Path:
    """A file of its own for each time that a part is sent: none is written where an acknowledged one lies."""
    return service.settings.uploads / upload_id / f"{number}-{secrets.token_hex(8)}"


def expect_part(service: Service, owner: str, kind: Kind, upload_id: str, number: int, digest: str) -> int:
    """The size that a part must have, before its bytes are read.

    Raises:
        ConflictError: the upload takes no more parts.
        DigestMismatchError: it is the only part, and has not the digest of the whole.
    """
    with service.database.read() as session:
        upload = uploads.get_upload(session, kind.name, upload_id, owner).upload
        uploads.refuse_complete(session, upload)
    size = uploads.size_of_part(upload, number)
    if upload.announced not in (None, digest) and uploads.count_parts(upload) == 1:
        raise DigestMismatchError(f"the file has the digest {digest}, not {upload.announced} as was announced")
    check_disk(service, size)
    return size


def keep_part(
    service: Service, owner: str, kind: Kind, upload_id: str, number: int, path: Path, size: int, digest: str
) -> upload_schemas.Upload:
    """Acknowledge a part whose file is there, and drop the file that it replaces."""
    try:
        with service.database.write() as session:
            upload = uploads.lock_upload(session, kind.name, upload_id, owner)
            old = uploads.add_part(session, upload, number, size=size, digest=digest, path=_relative(service, path))
    except (ConflictError, NotFoundError):
        path.unlink(missing_ok=True)  # nothing was committed; of any other error nobody knows that, and the sweep does
        raise
    if old is not None:
        (service.settings.home / old).unlink(missing_ok=True)
    return show(service, owner, kind, upload_id)


def _relative(service: Service, path: Path) -> str:
    return str(path.relative_to(service.settings.home))


def finish(service: Service, owner: str, kind: Kind, upload_id: str) -> upload_schemas.Upload:
    """Queue the check of an upload that has all its parts."""
    with service.database.write() as session:
        _complete(session, service, uploads.lock_upload(session, kind.name, upload_id, owner))
    return show(service, owner, kind, upload_id)


def accept_file(
    service: Service, owner: str, kind: Kind, upload_id: str, new: New, path: Path, digest: str
) -> upload_schemas.Upload:
    """An upload whose only part is there: it begins, has its part and is complete in one transaction."""
    try:
        with service.database.write() as session:
            upload = create(session, service, upload_id, owner, kind, new, new.size)
            uploads.add_part(session, upload, 1, size=new.size, digest=digest, path=_relative(service, path))
            _complete(session, service, upload)
    except (QueueFullError, QuotaError):
        path.unlink(missing_ok=True)
        raise
    return show(service, owner, kind, upload_id)


def _complete(session: Session, service: Service, upload: upload_tables.Upload) -> None:
    settings = service.settings
    spec = {
        "spec_version": SPEC_VERSION,
        "name": upload.name,
        "priority": CHECK_PRIORITY,
        "device": "cpu",
        "labels": {},
        "limits": {"max_seconds": settings.check_seconds, "max_memory": settings.check_memory_bytes},
        "upload": upload.id,
    }
    digest = f"sha256:{hashlib.sha256(json.dumps(spec).encode()).hexdigest()}"
    uploads.complete(session, upload, spec=spec, spec_digest=digest, max_queued=settings.max_queued)


def drop(service: Service, owner: str, kind: Kind, upload_id: str) -> None:
    """Delete an upload, and the parts of it that are not joined; its blob is left to the sweep."""
    with service.database.write() as session:
        upload_removal.remove(session, uploads.lock_upload(session, kind.name, upload_id, owner))
    shutil.rmtree(service.settings.uploads / upload_id, ignore_errors=True)


def show(service: Service, owner: str, kind: Kind, upload_id: str) -> upload_schemas.Upload:
    """An upload as it is now.

    Raises:
        NotFoundError: there is none of this owner.
    """
    with service.database.read() as session:
        found = uploads.get_upload(session, kind.name, upload_id, owner)
        missing = uploads.missing_parts(session, found.upload)
        files = list_artifacts(session, found.check.id) if found.check is not None else []
        profile = found.profile
    upload = found.upload
    return upload_schemas.Upload(
        **summarise(found),
        part_size=upload.part_size,
        parts=uploads.count_parts(upload),
        missing=missing[:MOST_SHOWN],
        options=upload.options,
        profile=profile,
        files=[upload_schemas.UploadFile(name=each.name, size=each.size, media_type=each.media_type) for each in files],
    )


def summarise(found: uploads.Found) -> dict[str, Any]:
    """What a list shows of an upload."""
    upload = found.upload
    return {
        "id": upload.id,
        "name": upload.name,
        "version": upload.version,
        "status": found.status,
        "file": upload.file,
        "size": upload.size,
        "digest": upload.digest or upload.announced,
        "error": found.error,
        "created_at": upload.created_at,
        "updated_at": max(upload.updated_at, found.check.updated_at if found.check is not None else 0.0),
    }
