"""The device slot: what lives in Celery's one child, which claims jobs and supervises them one at a time."""

import contextlib
import os

import structlog

from kdcore.memory import Need
from storage import attempts, schema, workers
from storage.database import Database
from storage.errors import SchemaError, StaleAttemptError
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job
from storage.workers import WorkerCard
from worker.identity import drain_flag, whose
from worker.ledger import AWAY, Ledger, held_by
from worker.lifeline import EXIT_ORPHANED, watch_parent
from worker.places import attempt_folder
from worker.process import TrainingProcess
from worker.spare import Spare
from worker.supervisor import Limits, Supervisor

SPARE_AFTER_SECONDS = 1.0
"""After a job's start: two processes that import torch at once delay each other."""

log = structlog.get_logger(__name__)


class Slot:
    """One job at a time, until there is none or the worker ends. Only the child's main thread may use it."""

    def __init__(self, settings: Settings, card: WorkerCard) -> None:
        self._settings, self._card = settings, card
        self._database = Database(settings.database)
        self._spare = Spare(settings.warm_spare)
        self._flag = drain_flag(settings, card.id)
        self._busy = self._orphaned = False

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
            self._say_idle()
        except AWAY:
            log.warning("database_away")  # the lease runs out, and the parent's heartbeat says idle

    def _release(self, ledger: Ledger, code: str, message: str) -> None:
        with contextlib.suppress(StaleAttemptError):  # the reconciler may have been faster
            ledger.release(code, message)
            log.warning("attempt_released", job_id=ledger.fence.job_id, attempt=ledger.fence.attempt, code=code)

    def work(self) -> None:
        """Claim and run jobs until there is nothing to claim."""
        self._busy = True
        try:
            while not self._stopping():
                job = self._claim()
                if job is None:
                    break
                self._run(job)
            if not self._stopping():
                self._say_idle()
                self._spare.ready()
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

    def _say_idle(self) -> None:
        with self._database.write() as session:
            workers.set_status(session, self._card.id, "idle")

    def _run(self, job: Job) -> None:
        fence = Fence(job.id, job.attempt)
        with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt):
            log.info("attempt_started", name=job.name)
            ledger = Ledger(self._database, self._settings, fence)
            process: TrainingProcess | None = None
            try:
                process = self._spare.take()
                process.assign(fence, attempt_folder(self._settings, fence) / "log.txt", self._settings.max_log_bytes)
                Supervisor(ledger, process, _limits(job), self._stopping, self._meanwhile).run()
            except Exception as error:  # no disk, no memory: the attempt must not wait for its lease
                log.exception("supervision_failed")
                if process is not None:
                    process.kill()
                self._release(ledger, "supervision_failed", f"{type(error).__name__}: {error}")

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


def _limits(job: Job) -> Limits:
    limits = job.spec["limits"]
    seconds = limits["max_seconds"]
    memory = job.plan.get("memory")
    batch_size = max((stage["batch_size"] for stage in job.plan.get("stages", ())), default=0)
    # Beside a GPU the batch is not what fills the host's memory, of which alone a supervisor knows.
    need = Need.of(memory, "cpu") if memory and whose().device == "cpu" else None
    return Limits(seconds - job.spent_seconds, seconds, limits["max_memory"], need, batch_size)
