"""What a training process printed, bounded: the beginning and the end are kept."""

import errno
import os
from io import FileIO
from pathlib import Path

_LONGEST_LINE = 500


def _made(path: Path) -> FileIO:
    """An empty file; what a link of this name leads to stays as it is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return FileIO(descriptor, "r+b")


def _write_all(file: FileIO, data: bytes) -> None:
    """Where only a part fits, the system writes that part and says how much it was."""
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class BoundedLog:
    """A file that never grows beyond `max_bytes`, and is complete at every moment.

    When it would, it is rewritten: the first half of what it may hold, a line that says how much was cut,
    and the last quarter, so that a quarter is free again.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._max, self._quarter = path, max_bytes - 64, max_bytes // 4
        self._file = _made(path)
        self._size = 0
        self._head = 0
        """Length of the kept beginning, once something was cut."""
        self._tail_from = 0
        self._cut = 0
        self._line = self._last = b""

    def write(self, data: bytes) -> None:
        """Append."""
        self._remember(data)
        for start in range(0, len(data), self._quarter):
            piece = data[start : start + self._quarter]
            if self._size + len(piece) > self._max:
                self._compact()
            self._size += self._file.write(piece)

    def _compact(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if not self._head:
            half = content[: self._max // 2]
            self._head = self._tail_from = half.rfind(b"\n") + 1 or len(half)
        body = content[self._tail_from :]
        kept = body[-self._quarter :]
        kept = kept[kept.find(b"\n") + 1 :]
        cut = self._cut + len(body) - len(kept)
        start = content[: self._head] + f"[... {cut} bytes cut here ...]\n".encode()
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        file = _made(temporary)
        try:
            _write_all(file, start + kept)
            os.replace(temporary, self._path)
        except OSError:  # the disk is full: the old file stays in use
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._tail_from, self._size = file, len(start), len(start) + len(kept)
        self._cut = cut

    def _remember(self, data: bytes) -> None:
        *ended, rest = (self._line + data).split(b"\n")
        self._line = rest[:_LONGEST_LINE]
        said = [line for line in (*ended, rest) if line.strip()]
        if said:
            self._last = said[-1][:_LONGEST_LINE]

    def last_line(self) -> str:
        """The last line that is not empty, shortened."""
        return self._last.decode("utf-8", "replace").strip()

    def close(self) -> None:
        self._file.close()
