"""A file's bytes as they arrive, straight to disk: memory stays flat, and what does not arrive whole is not kept."""

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Request

from api.budget import Bodies
from api.problems import (
    BodyTimeoutError,
    BodyTooLargeError,
    ContentTypeError,
    DigestMismatchError,
    DiskFullError,
    InvalidUploadError,
)
from api.service import Service
from kdcore.errors import NO_SPACE
from storage.blobs import sync_folder

BYTES = "application/octet-stream"
STALL_SECONDS = 60.0
"""How long nothing may arrive of a body that is under way."""
LONGEST_SECONDS = 3_600.0
"""What a whole body may take: who sends a byte a minute must not hold a connection for ever."""
CLOSE = {"Connection": "close"}


async def receive(request: Request, service: Service, target: Path, digest: str, *, size: int | None = None) -> int:
    """Write a request's body to `target`, a new file, until it is safe there; its size in bytes.

    Args:
        digest: what it must have, as `sha256:<hex>`.
        size: how many bytes it must have; left out: from 1 to the lesser of `max_part_bytes` and `max_upload_bytes`.

    Raises:
        ContentTypeError: it is compressed, or of another type than bytes.
        BodyTooLargeError, InvalidUploadError: it has another size.
        BodyTimeoutError: it stalls, or takes too long.
        DigestMismatchError: other bytes arrived than were sent.
        DiskFullError: there is no room for it.
        FileNotFoundError: its folder was taken away meanwhile.
    """
    _check_type(request)
    most = min(service.settings.max_part_bytes, service.settings.max_upload_bytes) if size is None else size
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(most)
    file = _File(target, service.storing)
    try:
        with _disk_errors():
            await _take_in(request, file, service.pieces, most)
            if file.size < (size or 1):
                raise InvalidUploadError(f"{file.size} bytes arrived where {size or 'some'} are wanted")
            if file.digest != digest:
                raise DigestMismatchError(f"what arrived has the digest {file.digest}, not {digest}; send it again")
            await file.finish()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await file.discard()
        raise
    return file.size


async def _take_in(request: Request, file: "_File", pieces: Bodies, most: int) -> None:
    """Each piece is written as it comes, which makes the next one larger: who is slow holds no memory meanwhile."""
    clock = asyncio.get_running_loop().time
    latest = clock() + LONGEST_SECONDS
    try:
        async with asyncio.timeout_at(clock() + STALL_SECONDS) as timer:
            async for piece in request.stream():
                if file.size + len(piece) > most:
                    raise _too_large(most)
                timer.reschedule(None)  # it is here: the disk may take its time
                with pieces.holding(len(piece)):
                    await file.write(piece)
                timer.reschedule(min(clock() + STALL_SECONDS, latest))
    except TimeoutError:
        late = f"nothing arrived for {STALL_SECONDS:g} s, or it took longer than {LONGEST_SECONDS:g} s; send it again"
        raise BodyTimeoutError(late, headers=CLOSE) from None


class _File:
    """A new file that is written and hashed in threads: neither may hold up the event loop."""

    def __init__(self, path: Path, limiter: CapacityLimiter) -> None:
        self._path, self._limiter = path, limiter
        self._file: Any = None
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    async def write(self, data: bytes) -> None:
        await self._run(self._write, data)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb", buffering=0)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    async def finish(self) -> None:
        """Returns once it survives a power cut."""
        await self._run(self._finish)

    def _finish(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        for folder in (self._path.parent, self._path.parent.parent):  # both may be new
            sync_folder(folder)

    async def discard(self) -> None:
        await self._run(self._discard)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)

    async def _run(self, work: Any, *arguments: Any) -> None:
        await anyio.to_thread.run_sync(work, *arguments, limiter=self._limiter)


@contextlib.contextmanager
def _disk_errors() -> Any:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFullError("the service's disk is full; nothing was stored", headers=CLOSE) from error


def check_disk(service: Service, more: int = 0) -> None:
    """Raise `DiskFullError` where so many bytes more would leave less than `min_free_bytes`."""
    free, least = shutil.disk_usage(service.settings.home).free, service.settings.min_free_bytes
    if free - more < least:
        for_it = f" beside the {more} of this upload" if more else ""
        raise DiskFullError(
            f"only {free} bytes are free on the service's disk, and it needs {least}{for_it}; "
            "delete what is no longer needed"
        )


def read_digest(content_digest: str) -> str:
    """`sha-256=:<base64>:` (RFC 9530) as `sha256:<hex>`."""
    text = content_digest.removeprefix("sha-256=:").removesuffix(":")
    return f"sha256:{base64.b64decode(text).hex()}"


def _check_type(request: Request) -> None:
    type = request.headers.get("content-type", BYTES).partition(";")[0].strip().lower()
    if type != BYTES:
        raise ContentTypeError(f"the Content-Type must be {BYTES}, or left out", headers={"Accept": BYTES} | CLOSE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ContentTypeError("the body must not be compressed", headers={"Accept-Encoding": "identity"} | CLOSE)


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {most} bytes", headers=CLOSE)
