"""The artifact store: immutable files under their digest, complete or absent."""

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from storage.errors import BlobError
from storage.files import is_folder, is_plain

CHUNK = 1 << 20


class BlobStore:
    """Files under `root/<first two hex digits>/<digest>`. Safe for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, *sources: Path, poll: Callable[[], object] = lambda: None) -> tuple[str, int]:
        """Copy a file in, or the parts of one in order; its digest (`sha256:<hex>`) and size in bytes.

        Putting the same bytes again keeps the one file, and makes it young again, so that a sweep that
        found it unreferenced a moment ago leaves it alone.

        Args:
            poll: called before each MiB; what it raises ends it, and nothing is kept.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".{secrets.token_hex(8)}.tmp"
        digest, size = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as writer:
                for source in sources:
                    with source.open("rb") as reader:
                        while chunk := reader.read(CHUNK):
                            poll()
                            digest.update(chunk)
                            size += writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            final = self._path(f"sha256:{digest.hexdigest()}")
            final.parent.mkdir(exist_ok=True)
            with self._locked(fcntl.LOCK_SH):
                os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        for folder in (final.parent, self.root):  # the folder may be new itself
            sync_folder(folder)
        return f"sha256:{digest.hexdigest()}", size

    def path(self, digest: str, size: int) -> Path:
        """Where a blob lies.

        Raises:
            BlobError: it is missing, has another size, or is a link to another file.
        """
        path = self._path(digest)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise BlobError(f"{digest} is missing from the store") from None
        if found != size:
            raise BlobError(f"{digest} has {found} bytes in the store instead of {size}")
        if not is_plain(path, self.root):
            raise BlobError(f"{digest} is no file of the store")
        return path

    def _path(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / name[:2] / name

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every blob's digest and file."""
        for folder in filter(is_folder, self.root.glob("[0-9a-f][0-9a-f]")):
            for path in folder.iterdir():
                yield f"sha256:{path.name}", path

    @contextlib.contextmanager
    def keeping(self, blobs: Iterable[tuple[str, int]]) -> Iterator[None]:
        """The time in which rows that name these blobs, by digest and size, are committed: none is deleted meanwhile.

        Raises:
            BlobError: one is not there; a sweep may have found it old, and it must be put again.
        """
        with self._locked(fcntl.LOCK_SH):
            for digest, size in blobs:
                self.path(digest, size)
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """The time in which rows are read and what none names is deleted; false where somebody else is at it."""
        if not self.root.is_dir():
            yield False
            return
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
        except BlockingIOError:
            yield False

    def discard(self, path: Path, *, before: float) -> int:
        """Delete a file of the store that was written before then, by the files' clock; the bytes that came free.

        To be called in the time that is `alone`: a put may make the file young.
        """
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if status.st_mtime <= before:
                path.unlink()
                return status.st_size
        return 0

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Shared among those who put and publish, for one sweep alone."""
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, kind)
            yield

    def temporary(self) -> Iterator[Path]:
        """Files of puts that never ended, or have not yet."""
        yield from self.root.glob(".*.tmp")


def sync_folder(folder: Path) -> None:
    """What was made or renamed in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
