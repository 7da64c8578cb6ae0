"""The tables of what users bring."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from storage.tables import Base, BigInt, JobId, job_key

UploadId = String(64)


class Upload(Base):
    """A file that a user brought: a dataset or a model. Immutable once its check has begun.

    Its status is nowhere stored: without a check it is `uploading`, after that what the check says (`storage.uploads`).
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(UploadId, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """`dataset` or `model`."""
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(100))
    version: Mapped[int]
    """Counts from 1 within owner, kind and name; none is given twice."""
    file: Mapped[str] = mapped_column(String(255))
    """The file's own name, which nothing is opened by."""
    size: Mapped[int] = mapped_column(BigInt)
    part_size: Mapped[int] = mapped_column(BigInt)
    options: Mapped[dict[str, Any]]
    announced: Mapped[str | None] = mapped_column(String(80))
    """The whole file's digest as its owner said it."""
    digest: Mapped[str | None] = mapped_column(String(80), index=True)
    """The whole file's digest once it lies in the store."""
    check_id: Mapped[str | None] = mapped_column(JobId, ForeignKey("jobs.id"), index=True)
    """The job that checks it; its result holds the profile."""
    created_at: Mapped[float]
    updated_at: Mapped[float]

    __table_args__ = (Index("ix_uploads_owner_kind_name_version", "owner", "kind", "name", "version", unique=True),)


class UploadName(Base):
    """The last version of each name, so that a deleted one's number is never another file's."""

    __tablename__ = "upload_names"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[int]


class UploadPart(Base):
    """A part that has arrived whole; `path` is relative to the service's home."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(UploadId, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInt)
    digest: Mapped[str] = mapped_column(String(80))
    path: Mapped[str] = mapped_column(Text)


class JobUpload(Base):
    """Which uploads a job reads."""

    __tablename__ = "job_uploads"

    job_id: Mapped[str] = job_key()
    upload_id: Mapped[str] = mapped_column(
        UploadId, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True, index=True
    )
