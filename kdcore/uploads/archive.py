"""Archives of strangers: their members read where they lie, one after the other, and never written to disk."""

import gzip
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from kdcore.data.base import DataError
from kdcore.uploads.zips import check_members, check_unpacked, open_zip, shown

MOST_MEMBER_BYTES = 64 * 2**20
"""Of a picture's file."""
MOST_NAME = 1024
Poll = Callable[[], object]
NESTED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz")
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: its checked name, and how to open it."""

    name: str
    size: int
    file: IO[bytes]

    def read(self, most: int = MOST_MEMBER_BYTES) -> bytes:
        """Its content, of the size that the archive says.

        Raises:
            DataError: it is larger than `most`, or damaged.
        """
        if self.size > most:
            raise DataError(f"{shown(self.name)} has {self.size:,} bytes, more than {most:,}; make it smaller")
        try:
            content = self.file.read(self.size)
        except DAMAGED as error:
            raise DataError(f"{shown(self.name)} is damaged ({error}); upload a whole archive") from error
        if len(content) != self.size:
            raise DataError(f"{shown(self.name)} ends early; upload a whole archive")
        return content


class Archive(Protocol):
    """A file of files; may be walked through several times."""

    def members(self) -> Iterator[Member]:
        """Its files in the order in which they lie, hidden ones left out, each readable until the next is asked for.

        Raises:
            DataError: a name, a link or a size that no honest archive has; or it is damaged.
        """
        ...


class Names:
    """The names of an archive: relative, plain, and no two of them one on any system."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def check(self, name: str) -> None:
        parts = name.split("/")
        if len(name) > MOST_NAME or "\\" in name or not name.isprintable():
            raise DataError(f"the archive has a file named {shown(name)}; use plain names with / between folders")
        if name.startswith("/") or name[1:2] == ":" or ".." in parts:
            raise DataError(f"{shown(name)} leads out of the archive; pack with relative names")
        if name.lower().endswith(NESTED):
            raise DataError(f"{shown(name)} is an archive within the archive; unpack it and pack its files")
        folded = hash(unicodedata.normalize("NFC", name).casefold())
        if folded in self._seen:
            raise DataError(f"{shown(name)} is there twice, or in another case; names must be unique")
        self._seen.add(folded)
        check_members(len(self._seen))


def is_hidden(name: str) -> bool:
    """What systems leave in archives: `.DS_Store`, `__MACOSX`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


class Zip:
    """A zip file."""

    def __init__(self, path: Path, poll: Poll) -> None:
        self._path, self._poll = path, poll

    def members(self) -> Iterator[Member]:
        names = Names()
        with open_zip(self._path) as opened:
            for info in opened.infolist():
                self._poll()
                kind = info.external_attr >> 16
                if kind and stat.S_IFMT(kind) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{shown(info.filename)} is a link or a device; pack the file itself")
                if info.orig_filename != info.filename and "\0" in info.orig_filename:
                    raise DataError(f"{shown(info.filename)} has a NUL in its name; rename it")
                if info.is_dir():
                    continue
                names.check(info.orig_filename)
                if is_hidden(info.filename):
                    continue
                try:
                    file = opened.open(info)
                except DAMAGED as error:
                    raise DataError(f"{shown(info.filename)} is damaged ({error}); upload a whole archive") from error
                with file:
                    yield Member(info.filename, info.file_size, file)


class _Bounded:
    """A tar's bytes; a header that claims to be long, as those of names may, is not read into memory, and what lies
    between two members, all of which gzip unpacks, is passed in steps."""

    def __init__(self, file: IO[bytes], poll: Poll) -> None:
        self._file, self._poll, self.tell = file, poll, file.tell

    def seek(self, to: int) -> int:
        while (at := self._file.tell()) + MOST_MEMBER_BYTES < to:
            self._poll()
            if self._file.seek(at + MOST_MEMBER_BYTES) == at:
                break  # the file ends here
        return self._file.seek(to)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_MEMBER_BYTES:
            raise tarfile.ReadError(f"a part of {size:,} bytes")
        return self._file.read(size)


def _opened(file: IO[bytes], poll: Poll) -> Any:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return _Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=file)) if packed else file, poll)


class Tar:
    """A tar file, packed with gzip or not."""

    def __init__(self, path: Path, poll: Poll) -> None:
        self._path, self._poll = path, poll

    def members(self) -> Iterator[Member]:
        names, unpacked, packed = Names(), 0, self._path.stat().st_size
        try:
            with (
                self._path.open("rb") as file,
                tarfile.open(fileobj=_opened(file, self._poll), mode="r:", encoding="utf-8", errors="strict") as opened,
            ):
                while (info := opened.next()) is not None:
                    self._poll()
                    opened.members = []  # type: ignore[attr-defined]  # it keeps what it has seen; names are kept as numbers, above
                    unpacked += info.size
                    check_unpacked(unpacked, packed)
                    if info.isdir():
                        continue
                    names.check(info.name.removeprefix("./"))
                    if not info.isreg() or info.issparse():
                        raise DataError(f"{shown(info.name)} is a link, a device or sparse; pack the file itself")
                    content = opened.extractfile(info)
                    if content is not None and not is_hidden(info.name):
                        yield Member(info.name.removeprefix("./"), info.size, content)
        except DataError:
            raise
        except DAMAGED as error:
            raise DataError(f"the archive is damaged ({error}); upload a whole copy") from error
