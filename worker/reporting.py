"""How training tells storage: buffered, and written in batches by a thread, so that the loop never waits."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy.orm import Session

from kdcore.reporter import PrintReporter, Progress, Request, SavedCheckpoint
from storage.records import Point, add_events, record_checkpoint, report
from worker.ledger import Ledger

WRITE_SECONDS = 1.0
QUIET_SECONDS = 1.0
"""How often a loop that has nothing to tell but steps is said to be alive."""
LOADING_SECONDS = 3600.0
"""How long training may read and download data, before its first stage, and is taken to be alive."""
MOST_BUFFERED = 5_000
"""Calls of `metrics` that are kept; beyond, the loop waits for the database."""

T = TypeVar("T")


@dataclass
class _Batch:
    stage: str | None = None
    progress: dict[str, Any] | None = None
    values: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    polls: int = 0
    told: int | None = None
    """Id that the first of `events` got in the last try to write them, which may have been committed."""

    def points(self) -> list[Point]:
        return [Point(stage, name, step, value) for stage, step, row in self.values for name, value in row.items()]

    def holds_something(self) -> bool:
        return bool(self.values or self.events or self.stage is not None or self.progress is not None)


class StorageReporter:
    """A `Reporter` that writes to storage; a context manager, whose end writes the rest.

    Every method raises what the writing thread met: `StaleAttemptError` once the attempt is not the job's
    any more, or the database's error after the whole lease.

    Args:
        ledger: of the attempt.
        wish: what the supervisor relayed.
        loading_seconds: how long it may be silent before its first stage; left out: `LOADING_SECONDS`.
    """

    def __init__(
        self, ledger: Ledger, wish: Callable[[], Request | None], loading_seconds: float | None = None
    ) -> None:
        self._ledger, self._wish = ledger, wish
        self._printer = PrintReporter(every_seconds=10.0)
        self._batch = _Batch()
        self._polls = 0
        self._loaded_by = time.monotonic() + (LOADING_SECONDS if loading_seconds is None else loading_seconds)
        self._swap = threading.Lock()
        self._writing = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is None:
            self._write()

    def stage(self, name: str) -> None:
        self._printer.stage(name)
        self._loaded_by = 0.0
        with self._swap:
            self._batch.stage, self._batch.progress = name, None  # progress of the stage before would mislead
            self._batch.events.append(("stage_started", {"stage": name}))

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._printer.metrics(stage, step, values)
        with self._swap:
            self._batch.values.append((stage, step, dict(values)))
            full = len(self._batch.values) >= MOST_BUFFERED
        if full:
            self._write()

    def progress(self, progress: Progress) -> None:
        self._printer.progress(progress)
        shown = vars(progress).copy()
        stage = shown.pop("stage")
        with self._swap:
            self._batch.stage, self._batch.progress = stage, shown

    def event(self, type: str, data: Mapping[str, Any]) -> None:
        self._printer.event(type, data)
        with self._swap:
            self._batch.events.append((type, dict(data)))

    def checkpoint(self, saved: SavedCheckpoint) -> None:
        """Recorded together with every point up to it: a resume finds them all."""
        home = self._ledger.settings.home

        def record(session: Session) -> list[str]:
            return record_checkpoint(
                session,
                self._ledger.fence,
                stage=saved.stage,
                epoch=saved.epoch,
                step=saved.step,
                path=str(saved.path.relative_to(home)),
                digest=saved.digest,
                size=saved.size,
            )

        for dropped in self._write(record):
            Path(home, dropped).unlink(missing_ok=True)

    def requested(self) -> Request | None:
        self._polls += 1
        if self._failure is not None:
            raise self._failure
        return self._wish()

    def _write(self, then: Callable[[Session], T] = lambda session: None) -> T:  # type: ignore[assignment,return-value]
        """Write what is buffered, and do `then` in the same transaction."""
        with self._writing:
            if self._failure is not None:
                raise self._failure
            with self._swap:
                batch, self._batch = self._batch, _Batch(polls=self._polls)
            moved = self._moved(batch) or batch.holds_something()
            points = batch.points()

            def save(session: Session) -> T:
                fence = self._ledger.fence
                report(session, fence, stage=batch.stage, progress=batch.progress, points=points, moved=moved)
                batch.told = add_events(session, fence, batch.events, batch.told)
                return then(session)

            try:
                return self._ledger.write(save)
            except Exception as error:
                self._failure = error
                raise

    def _moved(self, batch: _Batch) -> bool:
        """Whether there was a step since the batch was begun, or there could not be one: data is still read."""
        return self._polls != batch.polls or time.monotonic() < self._loaded_by

    def _run(self) -> None:
        written = time.monotonic()
        while not self._stopped.wait(WRITE_SECONDS):
            alive = self._moved(self._batch) and time.monotonic() - written >= QUIET_SECONDS
            if not alive and not self._batch.holds_something():
                continue
            try:
                self._write()
            except Exception:
                return  # kept in `_failure`: the loop's next call raises it
            written = time.monotonic()
