"""What one job computes and another may use: a folder of the cache, under the digest of all that decides its bytes.

A folder is complete or absent (`kdcore.uploads.cache`), and lists the digest of each of its files: one that is damaged
is taken away and made again. Nothing here ever fails a job: where the cache cannot be used it goes on without.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

import kdcore
from kdcore.choices import cpu_name
from kdcore.config import Config
from kdcore.data import Places
from kdcore.job import Job
from kdcore.uploads.cache import Lock, cached, discard

FORM = 2
"""Of the folders and their keys; a change of either makes another number."""
CONTENTS = "contents.json"
AT_ONCE = 8 * 2**20
"""Bytes that are read together."""
SPARED = 2**28
"""Bytes that are left free on the disk."""
PACKAGES = ("torchvision", "timm", "onnxruntime")
"""That bring networks of their own."""
T = TypeVar("T")


class DamagedError(ValueError):
    """A file in the cache is not what was written."""


def key_of(kind: str, parts: Mapping[str, Any]) -> str:
    """The folder's name; other parts, another name."""
    text = json.dumps({"form": FORM, **parts}, sort_keys=True, allow_nan=False)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}"


def circumstances(job: Job) -> dict[str, Any]:
    """What decides the bits of any computation of the job, whatever it is about."""
    cuda = job.device.type == "cuda"
    return {
        "release": kdcore.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name(job.device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        # What is in force is said above: a job that goes on elsewhere cannot always have what it began with.
        "choices": job.choices.model_dump(
            mode="json", exclude={"torch", "cpu", "threads", "keep_bytes", "spill_bytes", "trace_from", "compile_from"}
        ),
    }


def samples_seen(job: Job, role: str, index: int) -> dict[str, Any]:
    """What decides which numbers a network reads: the data, and its view, tokenizer and normalisation of them."""
    reader, data = job.reader(role, index), job.data
    own = job.spec.teachers[index] if role == "teacher" else job.spec.student
    tokenizer = job.spec.teachers[index].tokenizer if role == "teacher" else None
    return {
        "data": data.digest,
        "samples": [len(split) for split in (data.train, data.validation, data.test)],
        "scale": data.scale,
        "fields": str(data.facts.fields),
        "view": own.view.model_dump(mode="json") if own.view is not None else None,
        "tokenizer": tokenizer.model_dump(mode="json") if tokenizer is not None else None,
        "columns": [reader.columns.start, reader.columns.stop],
        "shape": list(reader.facts.input_shape),
        "vocabulary": reader.facts.vocabulary,
        "normalised": [list(reader.facts.mean), list(reader.facts.std)],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_of_the_house(configs: Iterable[Config]) -> bool:
    """Whether all of it is defined here: of what an operator has installed nobody knows when its code changes."""
    return all(type(config).__module__.partition(".")[0] == "kdcore" for config in configs)


def obtain(
    places: Places,
    key: str,
    make: Callable[[Path], None],
    read: Callable[[Path, Lock], T],
    poll: Callable[[], None],
    waiting: Callable[[], None] | None = None,
) -> T:
    """What `read` makes of the folder of that name, which is made where it is absent, or damaged.

    Args:
        make: fills an empty folder; whoever wants the same meanwhile waits.
        read: is given the lock too, to be kept as long as the files are read.
        poll: called now and then; what it raises ends it.
        waiting: called instead while another makes the folder.

    Raises:
        OSError: there is no room, or the disk does not do it.
        DamagedError: it is damaged, and another job reads it, or the disk damages what is written.
    """

    def sealed(folder: Path) -> None:
        make(folder)
        seal(folder, poll)

    assert places.cache is not None
    for is_last in (False, True):
        folder, lock = cached(places.cache, key, sealed, places.cache_bytes, waiting or poll)
        try:
            check(folder, poll)
            return read(folder, lock)
        except DamagedError:
            lock.close()
            if is_last or not discard(places.cache, key):
                raise
        except BaseException:
            lock.close()
            raise
    raise AssertionError


def seal(folder: Path, poll: Callable[[], None] = lambda: None) -> None:
    """Note the digest of each file of the folder, once its bytes are on disk."""
    digests = {path.name: _digest(path, poll) for path in sorted(folder.iterdir())}
    with (folder / CONTENTS).open("w", encoding="utf-8") as file:
        json.dump(digests, file)
    for path in folder.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())


def check(folder: Path, poll: Callable[[], None] = lambda: None) -> None:
    """Raise `DamagedError` unless every file of the folder is there as it was written."""
    try:
        digests = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        intact = all(_digest(folder / name, poll) == digest for name, digest in digests.items())
    except (FileNotFoundError, ValueError, AttributeError) as error:
        raise DamagedError(f"{folder.name} is damaged") from error
    if not intact:
        raise DamagedError(f"{folder.name} is damaged")


def _digest(path: Path, poll: Callable[[], None]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(AT_ONCE):
            found.update(block)
            poll()
    return found.hexdigest()


def disk_room(folder: Path) -> int:
    """Bytes that may be written there; the folder need not exist."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return max(0, shutil.disk_usage(there).free - SPARED)


def check_room(places: Places, needed: int) -> None:
    """Raise `OSError` unless so many bytes fit on the disk and into the cache."""
    assert places.cache is not None
    if needed > (room := min(places.cache_bytes, disk_room(places.cache))):
        raise OSError(f"{needed:,} bytes are needed in the cache, and there is room for {room:,}")


def tell(job: Job, what: str, error: Exception) -> None:
    """A line of history: something is not in the cache, and was not put there."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    job.reporter.event("not_cached", {"what": what, "reason": reason})
