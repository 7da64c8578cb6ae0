"""What the worker's parent does beside Celery, in a thread: heartbeat, reconciler, and the word that it drains."""

import contextlib
import os
import signal
import threading
import time

import psutil
import structlog
from sqlalchemy.exc import ProgrammingError

from storage import attempts, schema, workers
from storage.database import Database
from storage.errors import SchemaError, StaleAttemptError
from storage.queue import Doorbell
from storage.reconciler import reconcile
from storage.settings import Settings
from storage.workers import WorkerCard
from worker.identity import drain_flag
from worker.ledger import AWAY, held_by

TICK_SECONDS = 0.1
OVERDUE_SECONDS = 2.0
"""What a worker gets beyond `drain_seconds` for everything else: then it ends, whatever hangs.

By default that is 9 s after SIGTERM: whoever sends it often kills after 10, and a busy machine needs some of them.
"""
EXIT_OVERDUE = 1
EXIT_SCHEMA = 3
"""Exit status where starting again would not help: the database's schema is not this version's."""

log = structlog.get_logger(__name__)


class Keeper:
    """Start once Celery hears its queues, stop when it has ended."""

    def __init__(self, settings: Settings, card: WorkerCard) -> None:
        self._settings, self._card = settings, card
        self._database = Database(settings.database)
        self._doorbell = Doorbell(settings)
        self._flag = drain_flag(settings, card.id)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._said_draining = False
        self._drain_ends: float | None = None
        """When the process must be gone, once it was asked to end."""
        self._gone = threading.Event()
        self.schema_changed = False
        """Whether that is why the worker ends."""
        self._next_beat = self._next_reconcile = 0.0

    def start(self) -> None:
        """Say that the worker is there, and ring for what may wait already. Later calls only ring."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()
            threading.Thread(target=self._bound_drain, name="drain", daemon=True).start()
        for device in {"auto", self._card.device} - {"cpu"}:
            self._doorbell.ring(device)

    def drain(self) -> None:
        """Called by a signal handler: no locks, no database."""
        if self._drain_ends is None:
            self._drain_ends = time.monotonic() + self._settings.drain_seconds + OVERDUE_SECONDS
        self._flag.touch()

    def _bound_drain(self) -> None:
        """A database that neither answers nor refuses must not keep a worker that is to end: its lease runs out."""
        while self._drain_ends is None:
            if self._gone.wait(TICK_SECONDS):
                return
        if self._gone.wait(self._drain_ends - time.monotonic()):
            return
        log.warning("drain_overdue")
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._flag.unlink(missing_ok=True)
        os._exit(EXIT_SCHEMA if self.schema_changed else EXIT_OVERDUE)

    def stop(self) -> None:
        """Take the worker's row away; Celery and its child are gone. What that was made to drop is given back."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self._settings.lease_seconds)
        self._flag.unlink(missing_ok=True)
        try:
            with self._database.write() as session:
                for fence in held_by(session, self._card.id):
                    with contextlib.suppress(StaleAttemptError):  # a reconciler may have been faster
                        attempts.yield_job(session, fence, "drain")
                workers.leave(session, self._card.id)
        except (*AWAY, ProgrammingError) as error:  # the latter where the tables are another version's by now
            log.warning("left_without_a_word", error=type(error).__name__)  # a silent worker's row is forgotten
        self._database.close()
        self._gone.set()
        if self._drain_ends is not None:
            # What Celery's pool and Python tidy up at the very end takes a busy machine seconds, and no thread runs
            # in them: the kernel ends the process.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(TICK_SECONDS, self._drain_ends - time.monotonic()))

    def _run(self) -> None:
        structlog.contextvars.bind_contextvars(worker_id=self._card.id)
        while not self._stopped.wait(TICK_SECONDS):
            try:
                self._turn(time.monotonic())
            except AWAY as error:
                log.warning("database_away", error=type(error).__name__)
            except SchemaError as error:
                log.error("schema_changed", error=str(error))
                self.schema_changed = True
                os.kill(os.getpid(), signal.SIGTERM)  # the one way in which a worker ends
            except Exception:
                log.exception("keeper_failed")  # whatever it was, the worker must go on being seen

    def _turn(self, now: float) -> None:
        if self._flag.exists():
            self._say_draining()
        if now >= self._next_beat:
            self._next_beat = now + self._settings.heartbeat_seconds
            with self._database.write() as session:
                if not self.schema_changed:
                    schema.check(session)
                workers.beat(session, self._card)
        if now >= self._next_reconcile and not self.schema_changed:
            self._next_reconcile = now + self._settings.reconcile_seconds
            done = reconcile(self._database, self._doorbell, self._settings)
            for fence in done.taken_back:
                log.warning("attempt_taken_back", job_id=fence.job_id, attempt=fence.attempt)

    def _say_draining(self) -> None:
        if self._settings.broker is None and self._doorbell.waiting("auto") == 0:
            self._doorbell.ring("auto")  # ends Celery's wait for messages, which is 2 s long over files
        if not self._said_draining:
            with self._database.write() as session:
                workers.set_status(session, self._card.id, "draining")
            self._said_draining = True
