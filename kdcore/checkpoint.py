"""Checkpoints: complete files or none, plain values only, refused where they belong to another job."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kdcore import spec as specs
from kdcore.errors import TrainingError, disk_reason, is_memory_error

VERSION = 1
"""Of what `State` and `Training` save: it rises when an older release could not go on from it."""
KEEP = 2
CHUNK = 2**20
UNUSABLE = ("bad_checkpoint", "other_spec")
"""Codes of what `load` says of a checkpoint itself; another try would find the same."""
_NAME = re.compile(r"checkpoint-(\d+)\.pt")
_TEMPORARY = ".checkpoint-"


def save(folder: Path, content: Mapping[str, Any]) -> tuple[Path, str]:
    """Write the next checkpoint of a folder; earlier ones stay until `prune`.

    The file has its name only once its bytes are on disk: temporary file, fsync, rename, fsync of the folder.

    Args:
        folder: made if missing; nobody else writes checkpoints there.
        content: tensors and plain values (dicts, lists, numbers, strings).

    Returns:
        The file, `checkpoint-<number>.pt`, and its digest, `sha256:<hex>`.

    Raises:
        TrainingError: `disk`, kind system: it could not be written; earlier checkpoints are untouched.
    """
    with disk_errors("the checkpoint", folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"checkpoint-{_last_number(folder) + 1:03d}.pt"
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=".tmp", dir=folder)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                torch.save({"version": VERSION, **content}, file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(folder)
    return path, f"sha256:{digest}"


def prune(folder: Path) -> None:
    """Delete all but a folder's last two checkpoints, and what a process left that was killed while it wrote.

    For when nobody counts on the earlier ones any more: once the last one is reported.
    """
    with suppress(OSError):
        for path in [*(path for _, path in _numbered(folder)[:-KEEP]), *folder.glob(f"{_TEMPORARY}*.tmp")]:
            with suppress(OSError):
                path.unlink()


def load(path: Path, *, spec_digest: str, digest: str | None = None) -> dict[str, Any]:
    """Read a checkpoint, executing nothing in it; tensors land on the CPU.

    Args:
        spec_digest: of the job that goes on. The checkpoint must be of the same spec: it has this digest, or is
            of an older version and notes a spec that this version completes to the one with this digest.
        digest: what the file's digest must be, where it is known.

    Raises:
        TrainingError: `bad_checkpoint` where the file is missing, damaged or of another version,
            `other_spec` where it belongs to another job; `disk` or `out_of_memory`, kind system, where its bytes
            could not be read, which says nothing of them.
    """
    content = _content(path, digest)
    if content.get("spec_digest") != spec_digest and not _completes_to(content.get("spec"), spec_digest):
        raise TrainingError(
            "other_spec",
            f"{path.name} belongs to another spec ({content.get('spec_digest')}, this one is {spec_digest}); "
            "resume with the spec it was made with, or start without it",
        )
    return content


def saved_spec(path: Path) -> Any:
    """The complete spec that a checkpoint notes; None where the first release wrote it.

    Raises:
        TrainingError: as `load`, but for `other_spec`.
    """
    return _content(path, None).get("spec")


def _content(path: Path, digest: str | None) -> dict[str, Any]:
    try:
        with read_errors(path), path.open("rb") as file:
            intact = digest is None or _digest(file) == digest
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True) if intact else None
    except TrainingError:
        raise
    except Exception as error:  # a damaged pickle can make the unpickler stumble in any way
        raise _bad(path, f"it cannot be read ({error.__class__.__name__})") from error
    if not intact:
        raise _bad(path, "its bytes do not have the digest they were saved with")
    if not isinstance(content, dict) or type(content.get("version")) is not int:
        raise _bad(path, "it is no checkpoint of Distillery")
    if content["version"] != VERSION:
        reads = f"it is of version {content['version']}, and this release reads version {VERSION}"
        raise _bad(path, f"{reads}; go on with the release that wrote it, or start without it")
    return content


def file_digest(path: Path, poll: Callable[[], object] = lambda: None) -> str:
    """`sha256:<hex>` of a file's bytes; `poll` is called before each MiB, and what it raises ends it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            poll()
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` or a lack of memory inside the block into a `TrainingError` of kind system.

    A file that is not there is no such error: it will not come back.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if is_memory_error(error):
            raise TrainingError("out_of_memory", f"memory ran out while {path.name} was read", "system") from error
        if not isinstance(error, OSError) or error.errno == errno.EINVAL:  # a damaged archive: a seek to nowhere
            raise
        message = f"{path.name} could not be read: {error.strerror or error}"
        raise TrainingError("disk", message, "system") from error


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turns an error of writing inside the block into a `TrainingError` that says what could not be written where."""
    try:
        yield
    except OSError as error:
        message = f"{what} could not be written to {folder}: {disk_reason(error)}"
        raise TrainingError("disk", message, "system") from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):  # torch.save hides the write error behind its own
            raise
        reason = disk_reason(error.__context__)
        raise TrainingError("disk", f"{what} could not be written to {folder}: {reason}", "system") from error
    except SafetensorError as error:  # how safetensors says it; what it is given to write is sound
        raise TrainingError("disk", f"{what} could not be written to {folder}: {error}", "system") from error


def _bad(path: Path, why: str) -> TrainingError:
    return TrainingError("bad_checkpoint", f"{path.name} is no usable checkpoint: {why}", "system")


def _digest(file: BufferedReader) -> str:
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _completes_to(document: Any, spec_digest: str) -> bool:
    try:
        return specs.spec_digest(specs.parse_spec(document)) == spec_digest
    except ValueError:  # none is noted: the first release wrote it
        return False


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _last_number(folder: Path) -> int:
    return max((number for number, _ in _numbered(folder)), default=0)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
