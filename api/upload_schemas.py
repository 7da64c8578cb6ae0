"""What the API answers of datasets and models."""

from typing import Any

from pydantic import Field

from api.schemas import Answer, Instant, JobError
from storage.uploads import UploadStatus


class UploadSummary(Answer):
    """A dataset or a model as lists show it."""

    id: str = Field(examples=["ds_01k2v9h3m4n5p6q7r8s9t0v1w2"])
    name: str = Field(examples=["flowers"])
    version: int = Field(examples=[1])
    """Counts from 1 within the name; a spec may say `flowers@1`."""
    status: UploadStatus
    file: str = Field(examples=["flowers.zip"])
    size: int = Field(examples=[104857600])
    """In bytes."""
    digest: str | None = Field(examples=["sha256:9f86d081884c7d65…"])
    """Of the whole file: as it was announced, until its parts are joined."""
    error: JobError | None = None
    """Of one that failed: why it cannot be used."""
    created_at: Instant
    updated_at: Instant


class UploadFile(Answer):
    """What a check wrote of an upload."""

    name: str = Field(examples=["thumbnails.png"])
    size: int
    """In bytes."""
    media_type: str = Field(examples=["application/octet-stream"])


class Upload(UploadSummary):
    """A dataset or a model."""

    part_size: int = Field(examples=[33554432])
    """Bytes of every part but the last one."""
    parts: int = Field(examples=[4])
    """How many there are."""
    missing: list[int] = Field(examples=[[2, 4]])
    """Numbers of those that have not arrived, the first 1,000."""
    options: dict[str, Any]
    """What its owner said of it."""
    profile: dict[str, Any] | None = None
    """What its check found; null until it is ready."""
    files: list[UploadFile]
    """What its check wrote; see `GET …/files/{name}`."""


class UploadPage(Answer):
    """Uploads, newest first."""

    data: list[UploadSummary]
    has_more: bool
    next: str | None
    """The `after` of the next page; null on the last one."""
