"""The device slot: what lives in Celery's one child, which claims jobs and supervises them one at a time.

Whose fault it is where an attempt cannot be supervised, no process started or no log written, is found out by trying
the same without a job. A worker that cannot do it any more gives the job back, which costs the job nothing, and rests:
it claims nothing until it can again. Otherwise the job is to blame: the failure counts, and the worker rests a moment,
so that the next try may be another's.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import structlog

from kdcore.memory import Need
from storage import attempts, schema, workers
from storage.database import Database
from storage.errors import SchemaError, StaleAttemptError
from storage.ids import is_check
from storage.lifecycle import Fence
from storage.looks import probe
from storage.queue import Doorbell
from storage.settings import Settings
from storage.tables import Job
from storage.workers import WorkerCard
from worker.identity import drain_flag
from worker.ledger import AWAY, Ledger, held_by
from worker.lifeline import EXIT_ORPHANED, watch_parent
from worker.places import attempt_folder
from worker.process import TrainingProcess
from worker.spare import Spare
from worker.supervisor import Limits, Supervisor

SPARE_AFTER_SECONDS = 1.0
"""After a job's start: two processes that import torch at once delay each other."""

LONGEST_REST_SECONDS = 60.0
ASIDE_SECONDS = 0.5
"""How long a worker does not listen that has rung for another: longer than any broker takes to tell that one."""
TICK_SECONDS = 0.1

log = structlog.get_logger(__name__)


class Slot:
    """One job at a time, until there is none or the worker ends. Only the child's main thread may use it."""

    def __init__(self, settings: Settings, card: WorkerCard) -> None:
        self._settings, self._card = settings, card
        self._database = Database(settings.database)
        self._doorbell = Doorbell(settings)
        self._spare = Spare(settings.warm_spare)
        self._flag = drain_flag(settings, card.id)
        self._busy = self._orphaned = False
        self._rests = 0
        """In a row, without an attempt that could be supervised."""

    def open(self) -> None:
        """Get ready. Where this child replaces one that died, nobody runs that one's job any more: release it."""
        watch_parent(self._card.pid, self._on_orphaned)
        self._spare.ready()
        try:
            with self._database.read() as session:
                lost = held_by(session, self._card.id)
            for fence in lost:
                ledger = Ledger(self._database, self._settings, fence)
                self._release(ledger, "worker_lost", "the process that supervised training died")
            self._say("idle")
        except AWAY:
            log.warning("database_away")  # the lease runs out, and the parent's heartbeat says idle

    def _release(self, ledger: Ledger, code: str, message: str, *, counts: bool = True) -> None:
        with contextlib.suppress(StaleAttemptError):  # the reconciler may have been faster
            ledger.release(code, message, counts=counts)
            log.warning("attempt_released", job_id=ledger.fence.job_id, attempt=ledger.fence.attempt, code=code)

    def work(self) -> None:
        """Claim and run jobs until there is nothing to claim."""
        self._busy = True
        try:
            while not self._stopping() and (job := self._claim()) is not None:
                if self._run(job):
                    self._rests = 0
                else:
                    self._rest()
            if not self._stopping():
                self._say("idle")
                self._spare.ready()
                self._pass_on()
        except AWAY:
            log.warning("database_away")  # the jobs stay where they are, and the reconciler rings again
        except SchemaError as error:
            log.warning("schema_changed", error=str(error))  # the parent will see it, too, and end this worker
        finally:
            self._busy = False
            if self._orphaned:
                os._exit(EXIT_ORPHANED)

    def _claim(self) -> Job | None:
        with self._database.write() as session:
            schema.check(session)
            card, lease = self._card, self._settings.lease_seconds
            takes = workers.takes(session, card, lease)
            job = attempts.claim(session, card.id, card.serves, lease, spec_version=card.spec_version, takes=takes)
            if job is not None:
                workers.set_status(session, self._card.id, "busy", job.id)
        return job

    def _say(self, status: str) -> None:
        with self._database.write() as session:
            workers.set_status(session, self._card.id, status)

    def _pass_on(self) -> None:
        """Ring again where another worker waits for what this one leaves: who hears a doorbell takes it away."""
        with self._database.read() as session:
            device = workers.left_to_idle(session, self._card, self._settings.lease_seconds)
        if device is not None:
            self._doorbell.ring(device)
            self._pause(ASIDE_SECONDS)

    def _run(self, job: Job) -> bool:
        """Whether the attempt could be supervised until its end, whatever that was."""
        fence = Fence(job.id, job.attempt)
        with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt):
            log.info("attempt_started", name=job.name)
            ledger = Ledger(self._database, self._settings, fence)
            process: TrainingProcess | None = None
            try:
                process = self._spare.take()
                process.assign(fence, attempt_folder(self._settings, fence) / "log.txt", self._settings.max_log_bytes)
                limits = _limits(job, self._card.device)
                Supervisor(ledger, process, limits, self._stopping, self._meanwhile).run()
            except Exception as error:  # no disk, no memory: the attempt must not wait for its lease
                log.exception("supervision_failed")
                if process is not None:
                    process.kill()
                message = f"{type(error).__name__}: {error}"
                self._release(ledger, "supervision_failed", message, counts=self._is_fit())
                return False
        return True

    def _is_fit(self) -> bool:
        """Whether a training process can be started here, and files can be made for it."""
        try:
            self._spare.prove()
            self._settings.jobs.mkdir(parents=True, exist_ok=True)
            probe(self._settings.jobs)
        except Exception as error:
            log.warning("worker_unfit", error=f"{type(error).__name__}: {error}")
            return False
        return True

    def _rest(self) -> None:
        """Claim nothing for a while, which is longer each time, and until this worker is fit for any job."""
        with contextlib.suppress(*AWAY):
            self._say("resting")
        while not self._stopping():
            self._pause(min(2.0**self._rests, LONGEST_REST_SECONDS))
            self._rests += 1
            if not self._stopping() and self._is_fit():
                with contextlib.suppress(*AWAY):
                    return self._say("idle")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping() and time.monotonic() < until:
            time.sleep(TICK_SECONDS)

    def _meanwhile(self, seconds: float) -> None:
        if seconds > SPARE_AFTER_SECONDS and not self._stopping():
            self._spare.ready()

    def _stopping(self) -> bool:
        return self._orphaned or self._flag.exists()

    def _on_orphaned(self) -> None:
        self._orphaned = True
        if not self._busy:
            os._exit(EXIT_ORPHANED)

    def close(self) -> None:
        """Leave nothing behind."""
        self._spare.close()
        self._database.close()


def _limits(job: Job, device: str) -> Limits:
    limits = job.spec["limits"]
    seconds = limits["max_seconds"]
    # Beside a GPU the batch is not what fills the host's memory, of which alone a supervisor knows.
    need, batch_size = _planned(job.plan) if device == "cpu" else (None, 0)
    left = seconds - job.spent_seconds
    return Limits(left, seconds, limits["max_memory"], need, batch_size, of_check=is_check(job.id))


def _planned(plan: Mapping[str, Any]) -> tuple[Need | None, int]:
    """The memory that a job needs, and its largest batch; unknown where another version's API planned it otherwise."""
    try:
        memory = {name: size for name, size in plan["memory"].items() if isinstance(size, int)}
        return Need.of(memory, "cpu"), max((int(stage["batch_size"]) for stage in plan["stages"]), default=0)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, 0
