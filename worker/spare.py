"""The warm spare: one idle training process, torch imported, CUDA untouched, so that a job starts at once."""

import time

import structlog

from worker.process import TrainingProcess

_SECONDS_BETWEEN_STARTS = 10.0

log = structlog.get_logger(__name__)


class Spare:
    """Keeps at most one idle training process."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._process: TrainingProcess | None = None
        self._started = float("-inf")

    def ready(self) -> None:
        """See that there is one; one that keeps dying is not started again and again."""
        if not self._wanted or (self._process is not None and self._process.alive()):
            return
        self.close()
        if time.monotonic() - self._started > _SECONDS_BETWEEN_STARTS:
            self._started = time.monotonic()
            try:
                self._process = TrainingProcess()
            except OSError as error:  # no memory, no process: what runs meanwhile must not suffer from it
                log.warning("no_spare", error=str(error))

    def prove(self) -> None:
        """See that a training process can be started: it is kept for the next job.

        Raises:
            OSError: none can be.
        """
        if self._process is None or not self._process.alive():
            self.close()
            self._process = TrainingProcess()

    def take(self) -> TrainingProcess:
        """A training process for a job: the spare, or a cold one."""
        process, self._process = self._process, None
        if process is not None:
            if process.alive():
                self._started = float("-inf")
                return process
            process.kill()
        return TrainingProcess()

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process = None
