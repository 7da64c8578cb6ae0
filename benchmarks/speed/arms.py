"""What `python -m benchmarks.speed` compares: cases, each with its arms, functions that do the case's work once.

Every arm of a case has the same training samples, the same teacher, batch size, optimizer and number of updates. An arm
answers with the seconds that its work took, what its author would wait for, and the student's accuracy on the test set.
"""

import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdcore import train
from kdcore.choices import cpu_name
from kdcore.job import Job
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec
from kdcore.stages import Stage

TEACHER = "teacher.safetensors"


@dataclass(frozen=True)
class Run:
    """What an arm did: `samples` trained on in `seconds`, and what came of it."""

    seconds: float
    samples: int
    accuracy: float | None = None


@dataclass(frozen=True)
class Place:
    """Where an arm works: the data directory and a folder that all arms share."""

    data: Path
    work: Path


Arm = Callable[[Place], Run]


@dataclass(frozen=True)
class Case:
    """A table: arms by name; the first is what the others are compared with."""

    title: str
    arms: Mapping[str, Arm]
    spec: dict[str, Any]
    """With the teacher to be trained, where the arms need its weights."""
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """How many times faster an arm has to be, by arm and peer."""
    limits: Sequence[tuple[str, str]] = ()
    """Arms that are a limit, each with the one whose share of it is told."""


def ours(document: dict[str, Any], stage: str | None = None, *, whole: bool = False, last_epoch: bool = False) -> Arm:
    """The job by `kdcore.train.run`: the seconds of a stage's steps, or of its last epoch's alone; with `whole`, of all
    of the stage, its validation and the first asking of the teacher included; without a stage, of everything. A seed
    is drawn for each run, as the peers draw theirs."""

    def arm(place: Place) -> Run:
        spec = parse_spec({**document, "seed": secrets.randbelow(2**31)})
        given = {0: place.work / TEACHER} if spec.teachers[0].weights is not None else {}
        with tempfile.TemporaryDirectory() as folder, timed_epochs() as steps:
            began = time.perf_counter()
            result = train.run(
                spec, data_root=place.data, out=Path(folder), reporter=RecordingReporter(), teacher_weights=given,
                download=False,
            )  # fmt: skip
            everything = time.perf_counter() - began
        who = "teacher" if stage is not None and stage.startswith("teacher") else "student"
        if stage is None or whole:
            seconds = everything if stage is None else result["seconds"][stage]
        else:
            seconds = steps[stage][-1] if last_epoch else sum(steps[stage])
        count = trained_on(spec, stage) // (spec.stages[0].epochs if last_epoch else 1)
        return Run(seconds, count, result[who]["accuracy"])

    return arm


@contextmanager
def timed_epochs() -> Iterator[dict[str, list[float]]]:
    """The seconds that the updates of each stage take, epoch by epoch."""
    original, seconds = train.train_epoch, dict[str, list[float]]()

    def timed(job: Job, stage: Stage, *rest: Any) -> None:
        began = time.perf_counter()
        original(job, stage, *rest)
        seconds.setdefault(stage.name, []).append(time.perf_counter() - began)

    train.train_epoch = timed
    try:
        yield seconds
    finally:
        train.train_epoch = original


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
    }


def trained_on(spec: JobSpec, stage: str | None) -> int:
    return sum(each.samples * each.epochs for each in make_plan(spec).stages if each.name == stage)


def given(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The spec with the teacher's weights from the file, no baseline, and the changes."""
    teacher = {key: value for key, value in document["teachers"][0].items() if key != "train"}
    return {
        **document,
        "teachers": [{**teacher, "weights": {"file": TEACHER}}],
        "baseline": False,
        **changes,
    }
