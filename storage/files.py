"""Files of the service, and nobody else's: private where they are made, and read only where they really lie."""

import errno
import os
from pathlib import Path

PRIVATE = 0o077
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def make_home(home: Path) -> None:
    """Make the service's folder where it is missing.

    From now on what this process and its children make is for their own user alone: checkpoints, weights, the
    embedded database and its jobs' specs are nobody else's business.
    """
    os.umask(PRIVATE)
    home.mkdir(parents=True, exist_ok=True)


def is_plain(path: Path, root: Path) -> bool:
    """Whether `path` is a regular file below `root`, and no symbolic link leads there from it.

    `root` itself may be one: an administrator may have moved it to another disk.

    Raises:
        OSError: the disk does not tell, or may not be asked.
    """
    try:
        return path.resolve(strict=True) == root.resolve() / path.relative_to(root) and path.is_file()
    except (RuntimeError, ValueError):  # a circle of links, not below
        return False
    except OSError as error:
        if error.errno in NO_FILE:
            return False
        raise


def file_clock(folder: Path) -> float:
    """Now, in seconds since 1970, by the clock that gives the files of this folder their times.

    A host's own clock may be hours away from that of a file server, or jump.
    """
    probe = folder / ".clock"
    probe.touch()  # its time is set by the file system even where the file was there
    return probe.stat().st_mtime


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()
