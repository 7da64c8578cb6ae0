"""What an API process does besides answering: it mends what others left behind, and sweeps."""

import threading
from collections.abc import Callable

import structlog

from storage import schema
from storage.database import Database
from storage.queue import Doorbell
from storage.reconciler import reconcile
from storage.retention import sweep
from storage.settings import Settings

STOP_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Periodic(threading.Thread):
    """Does one thing every so many seconds until it is stopped; what fails is tried again next time."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._work = work
        self._stopping = threading.Event()

    def run(self) -> None:
        failing = False
        while not self._stopping.wait(self._seconds):
            try:
                self._work()
            except Exception as error:
                if not failing:  # a database that is away must not fill the log
                    log.warning("housekeeping fails", work=self.name, error=f"{type(error).__name__}: {error}")
                failing = True
            else:
                failing = False

    def stop(self) -> None:
        self._stopping.set()


def start(settings: Settings, database: Database, doorbell: Doorbell) -> list[Periodic]:
    """Start the reconciler and the sweep, each in a thread of its own."""

    def sweep_checked() -> None:
        with database.read() as session:
            schema.check(session)  # another version's tables may name files that these know nothing of
        sweep(database, settings)

    threads = [
        Periodic("reconciler", settings.reconcile_seconds, lambda: reconcile(database, doorbell, settings)),
        Periodic("sweep", settings.sweep_seconds, sweep_checked),
    ]
    for thread in threads:
        thread.start()
    return threads


def stop(threads: list[Periodic]) -> None:
    """Stop them; one that hangs is left behind."""
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(STOP_SECONDS)
