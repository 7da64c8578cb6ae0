"""The artifact store: immutable files under their digest, complete or absent."""

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from storage.errors import BlobError

CHUNK = 1 << 20


class BlobStore:
    """Files under `root/<first two hex digits>/<digest>`. Safe for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, source: Path) -> tuple[str, int]:
        """Copy a file in; its digest (`sha256:<hex>`) and size in bytes.

        Putting the same bytes again keeps the one file, and makes it young again, so that a sweep that
        found it unreferenced a moment ago leaves it alone.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{secrets.token_hex(8)}.tmp"
        digest, size = hashlib.sha256(), 0
        try:
            with source.open("rb") as reader, temporary.open("xb") as writer:
                while chunk := reader.read(CHUNK):
                    digest.update(chunk)
                    size += writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            final = self._path(f"sha256:{digest.hexdigest()}")
            final.parent.mkdir(exist_ok=True)
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(final.parent)
        return f"sha256:{digest.hexdigest()}", size

    def path(self, digest: str, size: int) -> Path:
        """Where a blob lies.

        Raises:
            BlobError: it is missing or has another size.
        """
        path = self._path(digest)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise BlobError(f"{digest} is missing from the store") from None
        if found != size:
            raise BlobError(f"{digest} has {found} bytes in the store instead of {size}")
        return path

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / name[:2] / name

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every blob's digest and file."""
        for path in self.root.glob("[0-9a-f][0-9a-f]/*"):
            yield f"sha256:{path.name}", path

    def discard(self, path: Path, *, older_than_seconds: float) -> int:
        """Delete a file of the store if it is that old; the bytes that came free."""
        try:
            status = path.stat()
            if time.time() - status.st_mtime < older_than_seconds:
                return 0
            path.unlink()
        except FileNotFoundError:
            return 0
        return status.st_size

    def temporary(self) -> Iterator[Path]:
        """Files of puts that never ended, or have not yet."""
        yield from self.root.glob(".*.tmp")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
