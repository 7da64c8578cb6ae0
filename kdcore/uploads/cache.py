"""Where prepared data sets are kept: each in a folder of its own, complete or absent, the oldest gone first.

A lock file beside each folder says who uses it. Whoever reads holds it shared, whoever writes or takes away holds it
alone; the system lets go of it when a process ends, however it ends.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO

LOCK, UNFINISHED = ".lock", ".part"
WAIT_SECONDS = 0.2
Poll = Callable[[], object]


class Lock:
    """A shared lock on a folder of the cache, until it is closed or forgotten."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def close(self) -> None:
        self._file.close()


def cached(
    root: Path, key: str, make: Callable[[Path], None], most: int, poll: Poll = lambda: None
) -> tuple[Path, Lock]:
    """The folder of that name, made where it is absent, and a lock that keeps it there.

    Args:
        make: fills an empty folder.
        most: bytes that the whole cache may have; what is used now stays whatever it has.
        poll: called while somebody else makes it; what it raises ends the waiting.
    """
    folder = root / key
    while True:
        lock = hold(root, key, alone=False, poll=poll)
        if folder.is_dir():
            os.utime(folder)
            return folder, lock
        lock.close()
        with closing(hold(root, key, alone=True, poll=poll)):
            if not folder.is_dir():
                _make(folder, make)
                evict(root, most, keep=key)
        # somebody may take the folder away before it is locked again, and then it is made again


def hold(root: Path, key: str, *, alone: bool, poll: Poll) -> Lock:
    """The lock of the folder of that name: shared with those who read it, or alone.

    Args:
        poll: called while it waits; what it raises ends the waiting.
    """
    root.mkdir(parents=True, exist_ok=True)
    path, kind = root / f"{key}{LOCK}", fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            if _is_there(file, path):
                return Lock(file)
        except BlockingIOError:
            poll()
            time.sleep(WAIT_SECONDS)
        file.close()  # taken by another, or taken away meanwhile by an eviction: opened anew


def discard(root: Path, key: str) -> bool:
    """Take a folder away that is damaged; whether nobody uses it."""
    return _take_away(root / key)


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that ended in the midst
    unfinished.mkdir()
    try:
        make(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync(unfinished)
    unfinished.rename(folder)
    _sync(folder.parent)


def evict(root: Path, most: int, keep: str = "") -> None:
    """Take away folders that nobody uses, those first that were not used for longest, until `most` bytes are left."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    found = {path: (_used(path), _size(path)) for path in folders if path.name != keep}
    total = sum(size for _, size in found.values()) + (_size(root / keep) if keep else 0)
    for path in sorted(found, key=lambda path: found[path][0]):
        abandoned = path.name.endswith(UNFINISHED)
        if (total > most or abandoned) and _take_away(path):
            total -= found[path][1]


def held(root: Path) -> int:
    """Bytes that the cache has."""
    return sum(_size(path) for path in root.iterdir() if path.is_dir())


def _take_away(path: Path) -> bool:
    """Whether nobody used it, and it is gone."""
    lock = path.with_name(path.name.removesuffix(UNFINISHED) + LOCK)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not _is_there(file, lock):
            return False  # another took the folder away, and somebody may have made it anew under another lock
        shutil.rmtree(path, ignore_errors=True)
        lock.unlink(missing_ok=True)
    return not path.exists()


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Whether the lock is still the one that others find."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _used(folder: Path) -> float:
    """When it was last used; of one that somebody has just taken away or finished, long ago: there is nothing of it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
