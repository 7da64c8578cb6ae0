"""What surrounds the loop: requests from outside, progress, and checkpoints in time."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcore import checkpoint
from kdcore.recorder import Recorder
from kdcore.reporter import Interrupted, Progress, Reporter, SavedCheckpoint
from kdcore.spec import CheckpointConfig
from kdcore.stages import Stage
from kdcore.state import State, Training

PROGRESS_SECONDS = 0.25
COST_SHARE = 0.02
"""Of the training time that checkpoints in time may take: a large model's come less often than asked for."""
LONGEST_INTERVAL = 10
"""Times `every_seconds`, at most, between two checkpoints, whatever they take: more work than that is never lost."""
STEP_FLOPS = 25_000_000
"""FLOPs that take as long as what a step does beside them: 0.4 ms of one CPU core, measured with the MNIST pair."""


class Session:
    """One run of a job: it answers requests, tells progress and saves `state` when it is time.

    Args:
        header: what every checkpoint says of its job: spec, its digest, data digest, choices.
        steps: of each stage, in order.
        samples: in one epoch of each stage.
        flops: to train on one sample, by stage; progress is told in them, since a teacher's step takes longer.
    """

    def __init__(
        self,
        reporter: Reporter,
        folder: Path,
        state: State,
        header: Mapping[str, Any],
        config: CheckpointConfig,
        stages: Sequence[Stage],
        steps: Sequence[int],
        samples: Sequence[int],
        flops: Sequence[int],
    ) -> None:
        self._reporter, self._folder, self._state, self._header = reporter, folder, state, header
        self._config, self._stages, self._steps, self._samples = config, stages, steps, samples
        self._costs = [STEP_FLOPS + each * stage.train.batch_size for each, stage in zip(flops, stages, strict=True)]
        self._running: tuple[Training, Recorder] | None = None
        self._marked = self._saved = self._reported = time.monotonic()
        self._began, self._began_at_step = self._marked, 0
        self._seconds: deque[float] = deque(maxlen=2)
        """That the last two checkpoints took to write. The smaller counts: a disk may be slow for once."""
        self._watchers: list[Callable[[], None]] = []

    @contextmanager
    def stage(self, training: Training, recorder: Recorder) -> Iterator[None]:
        """The time in which the stage's modules belong into every checkpoint."""
        self._running = (training, recorder)
        self._marked = self._began = time.monotonic()
        self._began_at_step = self._state.step
        self._reporter.progress(self._progress(self._began))  # the stage before is not what is shown any more
        try:
            yield
        finally:
            self._account()
            self._running = None

    @contextmanager
    def watched(self, watcher: Callable[[], None]) -> Iterator[None]:
        """The time in which `watcher` is called after every step."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    def poll(self) -> None:
        """Raise `Interrupted` if the job was asked to stop; after a checkpoint, where it shall go on later."""
        request = self._reporter.requested()
        if request is None:
            return
        if request != "cancel":
            self.save()
        raise Interrupted(request)

    def step_done(self) -> None:
        """Called after every step: tells progress and saves, when it is time."""
        for watcher in self._watchers:
            watcher()
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self._reported = now
            self._reporter.progress(self._progress(now))
        every = self._config.every_steps
        if now - self._saved >= self._interval() or (every and self._state.step % every == 0):
            self.save()

    def save(self) -> None:
        """Write a checkpoint, report it, and then delete older ones: until then a list that someone keeps names them.

        How long the writing takes decides how soon the next one comes; the reporter may wait for its database.

        Raises:
            TrainingError: `diverged`, before a state that is not finite reaches the disk; `disk`.
        """
        running = None
        if self._running is not None:
            training, recorder = self._running
            recorder.flush()
            training.check(self._name(), self._state.step)
            self._account()
            running = training.snapshot()
        began = time.monotonic()
        path, digest = checkpoint.save(self._folder, {**self._header, "state": vars(self._state), "running": running})
        self._seconds.append(time.monotonic() - began)
        self._reporter.checkpoint(SavedCheckpoint(path, digest, path.stat().st_size, *self._position()))
        checkpoint.prune(self._folder)
        self._saved = time.monotonic()

    def _interval(self) -> float:
        """Seconds of training between two checkpoints in time."""
        every = self._config.every_seconds
        return min(max(every, min(self._seconds, default=0.0) / COST_SHARE), LONGEST_INTERVAL * every)

    def _name(self) -> str:
        """The stage's name; of the last one where all are done."""
        return self._stages[min(self._state.stage, len(self._stages) - 1)].name

    def _position(self) -> tuple[str, int, int]:
        """Stage, epoch and step; the end of the last stage where all are done."""
        state = self._state
        if not self._stages:
            return "evaluation", 0, 0
        if state.stage < len(self._stages):
            return self._name(), state.epoch, state.step
        last = self._stages[-1]
        epochs = int(state.selected[last.name]["epochs"])  # fewer than asked for where it stopped early
        return last.name, epochs, epochs * self._steps[-1] // last.train.epochs

    def _account(self) -> None:
        now = time.monotonic()
        name = self._name()
        self._state.seconds[name] = self._state.seconds.get(name, 0.0) + now - self._marked
        self._marked = now

    def _progress(self, now: float) -> Progress:
        state, stage = self._state, self._stages[self._state.stage]
        shares = [cost * steps for cost, steps in zip(self._costs, self._steps, strict=True)]
        cost, whole = self._costs[state.stage], sum(shares)
        done = sum(shares[: state.stage]) + state.step * cost
        rate = (state.step - self._began_at_step) / max(now - self._began, 1e-9)  # steps per second
        return Progress(
            stage=stage.name,
            epoch=min(state.epoch + 1, stage.train.epochs),
            epochs=stage.train.epochs,
            step=state.step,
            steps=self._steps[state.stage],
            fraction=done / whole,
            samples_per_second=rate * self._samples[state.stage] * stage.train.epochs / self._steps[state.stage],
            eta_seconds=(whole - done) / (rate * cost) if rate else None,
        )
