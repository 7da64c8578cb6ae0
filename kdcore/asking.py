"""Asking a teacher that answers over HTTP: once about each sample, so that a restart and the next job ask no more.

The answers lie in the cache under the digest of what was asked: address, view, data and kind of answer. A row counts as
answered only once its numbers are on disk; whoever is killed goes on behind the last one.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.data.stored import StoredRows
from kdcore.errors import TrainingError
from kdcore.inputs import unit
from kdcore.job import Job
from kdcore.models import HttpConfig
from kdcore.models.onnx import SMALLEST
from kdcore.reuse import check_room, disk_room, key_of, samples_seen
from kdcore.state import teacher_name
from kdcore.uploads.cache import evict, held, hold

Ask = Callable[[HttpConfig, list[Any], Callable[[], None]], Any]
"""Sends one batch of instances and returns the predictions; calls its last argument while it waits."""
SPLITS = ("train", "validation", "test")
ROWS, DONE = "logits.npy", "done.npy"


def ask_teachers(job: Job, ask: Ask | None) -> None:
    """Give the job what its teachers over HTTP say of every sample.

    Raises:
        TrainingError: `bad_teacher_answer`, or `bad_data` of answers that no cache can hold, kind user; `disk`, kind
            system, where there is no room for them now; or what `ask` raises.
    """
    for index, teacher in enumerate(job.spec.teachers):
        if isinstance(teacher.model, HttpConfig):
            if ask is None:
                raise TrainingError(
                    "bad_teacher_answer", "only the service asks a teacher over HTTP; submit the job there"
                )
            with tempfile.TemporaryDirectory() as made:
                root = job.places.cache if job.places.cache is not None else Path(made)
                job.answers[index] = _answers(job, index, teacher.model, ask, root)


def _answers(job: Job, index: int, config: HttpConfig, ask: Ask, root: Path) -> dict[str, Tensor | StoredRows]:
    """(N, C) float32 for each split; where the samples stay in their file, what is said of them does too."""
    folder, asked = root / _key(job, index), 0
    while True:
        lock = hold(root, folder.name, alone=False, poll=job.session.poll)
        if _is_whole(folder):
            break
        lock.close()
        with closing(hold(root, folder.name, alone=True, poll=job.session.poll)):  # the others find all answered
            asked += _ask_all(job, index, config, ask, folder)
    job.reporter.event("teacher_asked", {"teacher": teacher_name(index), "samples": asked})
    whole = StoredRows(folder / ROWS, keep=lock).to(job.device)
    if job.spec.teachers[index].classes is not None:
        theirs = list(job.outputs("teacher", index))
        whole = whole.columns([theirs.index(each) for each in job.data.facts.classes])
    found: dict[str, Tensor | StoredRows] = {}
    before = 0
    for name in SPLITS:
        part = whole.part(before, before + len(getattr(job.data, name)))
        found[name] = part[:] if job.data.facts.resident else part
        before += len(part)
    return found


def _ask_all(job: Job, index: int, config: HttpConfig, ask: Ask, folder: Path) -> int:
    """Ask about the samples of which nothing is known; how many."""
    sizes = [len(getattr(job.data, name)) for name in SPLITS]
    count, classes = sum(sizes), len(job.outputs("teacher", index))
    if not (folder / DONE).exists():
        _make_room(job, index, folder, count * (classes * np.dtype(np.float32).itemsize + 1))
    rows, done = _opened(folder, count, classes)
    begun, before = int(done.sum()), 0
    for name, size in zip(SPLITS, sizes, strict=True):
        missing = np.flatnonzero(~done[before : before + size])
        for start in range(0, len(missing), config.batch):
            job.session.poll()
            places = missing[start : start + config.batch]
            found = _asked(job, index, config, ask, name, places)
            rows[before + places] = found
            rows.flush()
            done[before + places] = True
            done.flush()
        before += size
    return count - begun


def _make_room(job: Job, index: int, folder: Path, needed: int) -> None:
    """Before anything is written, or asked: what was not used for longest goes."""
    root, most = folder.parent, job.places.cache_bytes
    what = f"what {teacher_name(index)} says of all samples"
    if needed > most:
        message = f"{what} takes {needed:,} bytes, and the cache may have {most:,} (cache_bytes); use fewer samples"
        raise TrainingError("bad_data", message)
    evict(root, min(most - needed, held(root) + disk_room(root) - needed), keep=folder.name)
    try:
        check_room(replace(job.places, cache=root), needed)
    except OSError as error:
        raise TrainingError("disk", f"{what} cannot be kept: {error}", "system") from error


def _asked(job: Job, index: int, config: HttpConfig, ask: Ask, split: str, places: Any) -> Any:
    """What it says of these samples: (B, C) float32."""
    stored = getattr(job.data, split).inputs[torch.from_numpy(places).to(job.device)]
    with torch.no_grad():
        read = job.teacher_readers[index](unit(stored, job.data.scale))
    answer = ask(config, read.cpu().tolist(), job.session.poll)
    classes = len(job.outputs("teacher", index))
    try:
        found = np.asarray(answer, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.shape != (len(places), classes):
        raise _bad(f"{len(places)} samples were asked about, each with {classes} classes, and the answer has the shape"
                   f" {list(found.shape)}; name all its classes in the teacher's `classes`")  # fmt: skip
    if not np.isfinite(found).all() or np.abs(found).max() > np.finfo(np.float32).max:
        raise _bad("a prediction holds NaN or infinity")
    if config.gives == "probabilities":
        if found.min() < 0 or not np.allclose(found.sum(1), 1, atol=0.01):
            raise _bad("a prediction holds no probabilities, whose sum is 1; set `gives: logits`")
        found = np.log(found.clip(SMALLEST))
    return found.astype(np.float32)


def _bad(why: str) -> TrainingError:
    return TrainingError("bad_teacher_answer", f"the teacher over HTTP cannot be used: {why}")


def _key(job: Job, index: int) -> str:
    """The name of the answers: other address, classes or samples, another name."""
    config = job.spec.teachers[index].model
    asked = {name: getattr(config, name) for name in ("url", "gives", "secret")}
    seen = samples_seen(job, "teacher", index)
    return key_of("answers", {"asked": asked, "outputs": list(job.outputs("teacher", index)), "seen": seen})


def _is_whole(folder: Path) -> bool:
    """Whether every sample was answered for."""
    done = folder / DONE
    return done.exists() and bool(np.load(done, allow_pickle=False).all())


def _opened(folder: Path, count: int, classes: int) -> tuple[Any, Any]:
    """The answers, (N, C) float32, and which of them are there, (N,) bool, in their files."""
    rows, done = folder / ROWS, folder / DONE
    if not done.exists():  # made last: with it, both are whole
        folder.mkdir(parents=True, exist_ok=True)
        for path, shape, kind in ((rows, (count, classes), np.float32), (done, (count,), np.bool_)):
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                np.lib.format.write_array(file, np.zeros(shape, kind), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
    return tuple(np.lib.format.open_memmap(path, mode="r+") for path in (rows, done))  # type: ignore[return-value]
