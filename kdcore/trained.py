"""A teacher is trained once: the next job that would train the same takes its weights from the cache.

The same is what has the same bytes: model, training, seed, data, choices and processor, and whoever taught it. Of jobs
that want it at once one trains and holds the folder's lock, which the system lets go of when its process ends, and the
others wait. The weights are copied into the job's own state: what becomes of the folder later hurts nobody.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from kdcore.export import weights_digest
from kdcore.job import Job
from kdcore.models import AnswersConfig
from kdcore.reuse import DamagedError, circumstances, is_of_the_house, key_of, obtain, samples_seen, tell
from kdcore.stages import Stage
from kdcore.state import Weights, teacher_name
from kdcore.uploads.cache import LOCK, Lock

SILENT_SECONDS = 120.0
"""Without a step of the job that trains it: it is frozen, or about something else, and whoever waits trains it too."""
BEAT_SECONDS = 1.0
WEIGHTS, NOTES = "weights.safetensors", "teacher.json"
Found = tuple[Weights, dict[str, Any]]


class SilentError(Exception):
    """The job that trains the teacher makes no step."""


def train_once(job: Job, stage: Stage, train: Callable[[], None]) -> None:
    """Run a stage, or conclude it with the teacher that another job has trained, or trains just now.

    Args:
        train: runs and concludes the stage.
    """
    if not _is_reused(job, stage):
        return train()
    name, began = teacher_name(stage.index), time.monotonic()
    key = key_of("teacher", recipe(job, stage))
    waiting = _Waiting(job, name, key)
    is_trained = is_training = False

    def make(folder: Path) -> None:
        nonlocal is_trained, is_training
        if not is_trained:  # else the disk has damaged what was written
            _spend(job, stage, time.monotonic() - began)
            is_training = True
            with job.session.watched(waiting.beat):
                train()
            is_trained, is_training = True, False
        _write(job, stage, folder)

    def read(folder: Path, lock: Lock) -> Found | None:
        found = None if is_trained else _read(folder)
        lock.close()
        return found

    try:
        found = obtain(job.places, key, make, read, job.session.poll, waiting)
    except (OSError, DamagedError, SilentError) as error:
        if is_training:
            raise  # of the training, not of the cache
        tell(job, name, error)
        return None if is_trained else train()
    if found is not None:
        _conclude(job, stage, *found, time.monotonic() - began)


def _is_reused(job: Job, stage: Stage) -> bool:
    if stage.role != "teacher" or not job.spec.reuse_teachers or job.places.cache is None:
        return False
    before = [job.spec.teachers[index].model for index in stage.teachers(len(job.spec.teachers))]
    if any(isinstance(model, AnswersConfig) for model in before):  # nobody knows a digest of what they say
        return False
    return is_of_the_house([job.spec.data, job.spec.teachers[stage.index].model, *before, *stage.losses])


def recipe(job: Job, stage: Stage) -> dict[str, Any]:
    """All that decides the bytes of a teacher that is trained."""
    spec, facts = job.spec, job.data.facts
    before = stage.teachers(len(spec.teachers))
    room = {"keep_bytes", "spill_bytes"} if before else set()  # whether others are asked in every step
    return {
        "teacher": spec.teachers[stage.index].model_dump(mode="json"),
        "index": stage.index,
        "seed": spec.seed,
        "select_by": spec.select_by,
        "task": [facts.task, facts.classes],
        "seen": {str(at): samples_seen(job, "teacher", at) for at in (*before, stage.index)},
        "labelled": [spec.data.labelled, facts.labelled],
        "before": {
            str(at): [weights_digest(job.state.models[teacher_name(at)]), spec.teachers[at].model_dump(mode="json")]
            for at in before
        },
        "room": job.choices.model_dump(mode="json", include=room),
        "keep_targets": spec.keep_targets if before else None,
        **circumstances(job),
    }


class _Waiting:
    """What a job does while another trains its teacher."""

    def __init__(self, job: Job, name: str, key: str) -> None:
        assert job.places.cache is not None
        self._job, self._name, self._lock = job, name, job.places.cache / f"{key}{LOCK}"
        self._has_begun = job.resumed is not None
        self._sign: float | None = None
        self._since = self._beaten = 0.0

    def __call__(self) -> None:
        self._job.session.poll()
        if self._has_begun:
            raise SilentError("another job trains it, and this one goes on with what it has")
        now, sign = time.monotonic(), self._lock.stat().st_mtime  # clocks of several machines are never compared
        if self._sign is None:
            self._job.reporter.event("teacher_awaited", {"teacher": self._name})
        if sign != self._sign:
            self._sign, self._since = sign, now
        if now - self._since > SILENT_SECONDS:
            raise SilentError(f"the job that trains it has made no step for {SILENT_SECONDS:g} s")

    def beat(self) -> None:
        """Show those who wait that there was a step."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            with contextlib.suppress(OSError):  # somebody has emptied the cache
                os.utime(self._lock)


def _spend(job: Job, stage: Stage, seconds: float) -> None:
    job.state.seconds[stage.name] = job.state.seconds.get(stage.name, 0.0) + seconds


def _write(job: Job, stage: Stage, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(save(job.state.models[teacher_name(stage.index)]))
    notes = {"selected": job.state.selected[stage.name], "seconds": job.state.seconds[stage.name]}
    (folder / NOTES).write_text(json.dumps(notes), encoding="utf-8")


def _read(folder: Path) -> Found:
    return load((folder / WEIGHTS).read_bytes()), json.loads((folder / NOTES).read_text(encoding="utf-8"))


def _conclude(job: Job, stage: Stage, weights: Weights, notes: dict[str, Any], seconds: float) -> None:
    """As the stage itself would, its seconds those of this job; the training's are noted beside its scores."""
    state, selected = job.state, dict(notes["selected"])
    epoch, epochs = int(selected.pop("epoch")), int(selected.pop("epochs"))
    selected.pop("trained_seconds", None)
    job.reporter.stage(stage.name)
    told = {"teacher": teacher_name(stage.index), "digest": weights_digest(weights), "seconds": notes["seconds"]}
    job.reporter.event("teacher_reused", told)
    values = {f"validation/{name}": value for name, value in selected.items()}
    job.reporter.metrics(stage.name, epoch * job.steps_per_epoch(stage), values)
    _spend(job, stage, seconds)
    state.epoch, job.resumed = epochs, None
    state.best = {"epoch": epoch, "values": selected | {"trained_seconds": notes["seconds"]}}
    job.conclude(stage, weights)
    job.session.save()
