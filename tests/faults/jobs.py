"""The jobs of a round: tiny, with several stages, and what each of them comes to when nobody disturbs it."""

import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kdcore import train
from kdcore.opening import choose_here
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

Point = tuple[str, str, int]
"""Of a series: stage, name, step."""

_DATA = {"type": "digits", "train_samples": 640}
_TEACHER = {"model": {"type": "mlp", "hidden": [64], "dropout": 0.2}, "train": {"epochs": 12}}
_STUDENT = {"model": {"type": "mlp", "hidden": [8]}}

SPECS: dict[str, dict[str, Any]] = {
    "plain": {
        "data": _DATA,
        "teachers": [_TEACHER],
        "student": _STUDENT,
        "stages": [{"epochs": 30}],
        "checkpoint": {"every_steps": 60},
    },
    "two-stages": {
        "data": _DATA,
        "teachers": [_TEACHER],
        "student": _STUDENT,
        "stages": [
            {"name": "hints", "epochs": 20, "losses": [{"type": "logit_mse"}]},
            {
                "name": "soft",
                "epochs": 25,
                "losses": [{"type": "cross_entropy", "weight": 0.2}, {"type": "kd", "weight": 0.8, "temperature": 4}],
                "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9},
            },
        ],
        "baseline": False,
        "checkpoint": {"every_steps": 50},
        "seed": 5,
    },
    "convolution": {
        "data": _DATA,
        "teachers": [{"model": {"type": "cnn", "channels": [8, 16]}, "train": {"epochs": 6}}],
        "student": {"model": {"type": "cnn", "channels": [4]}},
        "stages": [{"epochs": 10, "augment": {"crop": 1}}],
        "checkpoint": {"every_steps": 30},
        "seed": 6,
    },
    "short": {
        "data": _DATA,
        "teachers": [_TEACHER | {"train": {"epochs": 4}}],
        "student": _STUDENT,
        "stages": [{"epochs": 6, "early_stopping": {"patience": 3}}],
        "baseline": False,
        "checkpoint": {"every_steps": 30},
        "seed": 7,
    },
}
for spec in SPECS.values():
    spec["reuse_teachers"] = False  # a job that takes a teacher over has no points of its training to compare


@dataclass(frozen=True)
class Undisturbed:
    """What a spec comes to: its files, the digests of those that hold what it trained, every point of every series."""

    files: frozenset[str]
    digests: dict[str, str]
    points: dict[Point, float]
    teacher: dict[Point, float]
    """The teacher's scores, as a job tells them whose teacher it is without being trained there."""


def run_undisturbed(name: str, points: int) -> Undisturbed:
    """Run a spec with the library alone.

    Args:
        points: the service's `metric_points`.
    """
    spec, reporter = parse_spec(SPECS[name]), RecordingReporter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        result = train.run(
            spec, data_root=Path(folder), out=out, reporter=reporter, choices=choose_here(spec, "cpu"),
            download=False, points=points,
        )  # fmt: skip
        files = [path for path in out.iterdir() if path.is_file()]
        digests = {
            path.name: f"sha256:{sha256(path.read_bytes()).hexdigest()}"
            for path in files
            if path.suffix in (".safetensors", ".onnx")
        }
    series = {(stage, key, step): value for stage, step, row in reporter.points for key, value in row.items()}
    best = result["validation"]["teacher-1"]
    scores = {("teacher-1", f"validation/{name}", 0): best[name] for name in best if name not in ("epoch", "epochs")}
    return Undisturbed(frozenset(path.name for path in files), digests, series, scores)


def taught(first: Undisturbed) -> Undisturbed:
    """What a job comes to whose teacher comes from a finished job of the same spec: no stage of the teacher, whose
    scores are told all the same."""
    points = {point: value for point, value in first.points.items() if not point[0].startswith("teacher")}
    return Undisturbed(first.files - {"teacher-1.safetensors"}, first.digests, points | first.teacher, {})
