"""All files of a job as one zip, made while it is sent: nothing of it is ever on disk, or whole in memory."""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.views import matches
from storage.tables import Artifact

CHUNK = 65_536
DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can say, for every file: equal files make equal bytes."""
LIMIT = zipfile.ZIP64_LIMIT
HEADER, DESCRIPTOR, ENTRY, END = 30 + 20, 24, 46, 22
"""Bytes beside the name: before a file, with its 64-bit sizes; after it; in the list at the end; of the end."""
END_64 = 56 + 20


def serve_archive(request: Request, job_id: str, files: Sequence[tuple[Artifact, Path]]) -> Response:
    """The response to GET or HEAD."""
    etag = f'"{_digest(files)}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{job_id}.zip"',
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(archive_size([(artifact.name, artifact.size) for artifact, _ in files]))
    content = archive(files) if request.method == "GET" else iter(())
    return StreamingResponse(content, headers=headers, media_type="application/zip")


def _digest(files: Sequence[tuple[Artifact, Path]]) -> str:
    lines = "".join(f"{artifact.digest} {artifact.name}\n" for artifact, _ in files)
    return f"zip-sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


class Outlet(io.RawIOBase):
    """Where a zip is written to and taken from at once."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._written)
        self._written.clear()
        return taken


def archive(files: Sequence[tuple[Artifact, Path]]) -> Iterator[bytes]:
    """The bytes of the zip, stored as they are, a chunk at a time; one file is open at a time.

    Raises:
        OSError: a file is gone; the client sees that less came than was announced.
    """
    outlet = Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED, allowZip64=True) as target:
        for artifact, path in files:
            entry = zipfile.ZipInfo(artifact.name, DATE)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, target.open(entry, "w", force_zip64=True) as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    yield outlet.take()
            yield outlet.take()
    yield outlet.take()


def archive_size(files: Sequence[tuple[str, int]]) -> int:
    """How long the zip of files of these names and sizes will be (APPNOTE.TXT 6.3, sections 4.3.7 to 4.3.16)."""
    offset, listed = 0, 0
    for name, size in files:
        named = len(name.encode())
        extra = 8 * (2 * (size > LIMIT) + (offset > LIMIT))
        listed += ENTRY + named + (extra + 4 if extra else 0)
        offset += HEADER + named + size + DESCRIPTOR
    large = len(files) > zipfile.ZIP_FILECOUNT_LIMIT or offset > LIMIT or listed > LIMIT
    return offset + listed + END + (END_64 if large else 0)
