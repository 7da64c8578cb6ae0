"""The narrow way out of the training loop: what it tells, and what it is asked."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Request = Literal["cancel", "pause", "drain"]


class Interrupted(Exception):  # noqa: N818 - not an error: training stopped because it was asked to
    """Training stopped on request; for `pause` and `drain` a checkpoint was reported before, once there was a step."""

    def __init__(self, request: Request) -> None:
        self.request = request
        super().__init__(request)


@dataclass(frozen=True)
class Progress:
    """Where training is. `fraction` is of the whole job, by estimated cost; `step` counts within the stage."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    fraction: float
    samples_per_second: float
    eta_seconds: float | None


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint file."""

    path: Path
    digest: str
    size: int
    stage: str
    epoch: int
    step: int


class Reporter(Protocol):
    """What a training loop needs of the world outside."""

    def stage(self, name: str) -> None:
        """A stage begins, or goes on after a resume."""

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Values at a step of a stage; a pair (stage, step, name) is reported once per run."""

    def progress(self, progress: Progress) -> None:
        """A few times per second; never stored one by one."""

    def event(self, type: str, data: Mapping[str, Any]) -> None:
        """Something worth a line in the job's history, in JSON values."""

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        """A checkpoint is complete on disk."""

    def requested(self) -> Request | None:
        """What was asked for; polled at every step, so it must be cheap."""


def heed(reporter: Reporter) -> None:
    """Raise `Interrupted` if the job was asked to stop, where it has nothing to save."""
    if (request := reporter.requested()) is not None:
        raise Interrupted(request)


class PrintReporter:
    """Prints stages, epochs and progress to standard error."""

    def __init__(self, every_seconds: float = 1.0) -> None:
        self._every = every_seconds
        self._last = 0.0

    def stage(self, name: str) -> None:
        print(f"stage {name}", file=sys.stderr)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if any(name.startswith("validation/") for name in values):
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"  {stage} step {step}  {shown}", file=sys.stderr)

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            print(
                f"  {progress.fraction:6.1%}  {progress.stage} epoch {progress.epoch}/{progress.epochs}"
                f"  {progress.samples_per_second:,.0f} samples/s",
                file=sys.stderr,
            )

    def event(self, type: str, data: Mapping[str, Any]) -> None:
        print(f"  {type} {dict(data)}", file=sys.stderr)

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        pass

    def requested(self) -> Request | None:
        return None


@dataclass
class RecordingReporter:
    """Keeps everything it is told, for tests; asks for `request` once `request_at` steps were polled."""

    request: Request | None = None
    request_at: int = 0
    stages: list[str] = field(default_factory=list)
    points: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    checkpoints: list[SavedCheckpoint] = field(default_factory=list)
    last_progress: Progress | None = None
    polls: int = 0

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.points.append((stage, step, dict(values)))

    def progress(self, progress: Progress) -> None:
        self.last_progress = progress

    def event(self, type: str, data: Mapping[str, Any]) -> None:
        self.events.append((type, dict(data)))

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        self.checkpoints.append(saved)

    def requested(self) -> Request | None:
        self.polls += 1
        return self.request if self.request is not None and self.polls > self.request_at else None
