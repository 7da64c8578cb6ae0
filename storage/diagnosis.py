"""What is wrong with a deployment, in sentences that say how to mend it."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from storage import schema
from storage.database import Database
from storage.looks import DatabaseLook, HomeLook, Look, Seen, missing_database, see_broker, see_database, see_home
from storage.queue import Doorbell
from storage.settings import Settings
from storage.workers import serves

LOOK_SECONDS = 3.0
CLOCK_SECONDS = 5.0
"""How far a clock may be off: more than what a busy machine delays a heartbeat by."""
UNDRAINED_SECONDS = 60.0
LOW_SHARE = 0.05
MIB = 2**20
SAME_BROKER = (
    "see that API and workers have the same DISTILLERY_BROKER_URL and DISTILLERY_QUEUE_PREFIX, and restart the worker"
)

Part = Literal["database", "schema", "broker", "worker"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: for programs; stable.
        message: what is wrong and how to mend it. It names no machine and no folder: `/readyz` shows it to strangers.
        part: what is away, where jobs cannot be taken or run because of it; None for a warning.
        about: who exactly, and what was said, for whoever runs the service.
    """

    code: str
    message: str
    part: Part | None = None
    about: tuple[str, ...] = ()

    @property
    def severity(self) -> Literal["critical", "warning"]:
        return "warning" if self.part is None else "critical"


class Diagnosis:
    """Looks at one deployment, as often as asked; what hangs is not begun a second time.

    Args:
        database, doorbell: those of this process; opened when they are needed where left out.
    """

    def __init__(self, settings: Settings, database: Database | None = None, doorbell: Doorbell | None = None) -> None:
        self._settings, self._database, self._doorbell = settings, database, doorbell
        self._looks: dict[str, Look[Any]] = {
            "database": Look(self._see_database),
            "broker": Look(self._see_broker),
            "home": Look(lambda: see_home(settings)),
        }

    def _see_database(self) -> DatabaseLook:
        if (file := missing_database(self._settings)) is not None:
            raise FileNotFoundError(f"there is no database at {file}")
        self._database = self._database or Database(self._settings.database)
        return see_database(self._database, self._settings)

    def _see_broker(self) -> dict[str, int]:
        if self._settings.broker is None and not self._settings.home.exists():
            return {}  # to look would make it
        self._doorbell = self._doorbell or Doorbell(self._settings)
        return see_broker(self._doorbell, self._settings)

    def findings(self, seconds: float = LOOK_SECONDS) -> list[Finding]:
        """All that is wrong, what is critical first; answers within about `seconds`, whatever hangs."""
        until = time.monotonic() + seconds
        pending = {name: look.begin() for name, look in self._looks.items()}
        seen: dict[str, Any] = {name: _result(future, until) for name, future in pending.items()}
        found = [*self._of_database(seen["database"], seconds), *self._of_broker(seen, seconds)]
        found += self._of_home(seen["home"], seconds)
        return sorted(found, key=lambda finding: finding.severity)

    def _of_database(self, look: DatabaseLook | Exception, seconds: float) -> Iterator[Finding]:
        if isinstance(look, DatabaseLook):
            yield from _schema(look)
            yield from _clocks(look)
            if look.state == "current":
                yield from _workers(look, self._settings)
                yield from _queue(look, self._settings)
        elif isinstance(look, TimeoutError):
            message = f"does not answer within {seconds:g} s: see whether it is overloaded, locked or frozen"
            yield Finding("database_away", f"The database {message}.", "database")
        elif isinstance(look, FileNotFoundError):
            message = "There is no database here yet: `distillery serve` makes one, or set DISTILLERY_HOME."
            yield Finding("database_away", message, "database", (str(look),))
        else:
            message = "The database does not answer: start it, or mend DISTILLERY_DATABASE_URL."
            yield Finding("database_away", message, "database", _said(look))

    def _of_broker(self, seen: dict[str, Any], seconds: float) -> Iterator[Finding]:
        look, database = seen["broker"], seen["database"]
        if isinstance(look, Exception):
            if self._settings.broker is None:
                what = "The embedded broker's folder cannot be used: give it back to the user that runs the service"
                yield Finding("broker_unusable", f"{what}; it may be emptied.", "broker", _said(look))
            else:
                how = f" within {seconds:g} s" if isinstance(look, TimeoutError) else ""
                what = f"The broker does not answer{how}: jobs are accepted and wait"
                mend = "start Redis, or mend DISTILLERY_BROKER_URL."
                yield Finding("broker_away", f"{what}; {mend}", "broker", _said(look))
        elif isinstance(database, DatabaseLook):
            there = [w for w in _present(database.workers, self._settings) if w.status == "idle"]
            for device, count in look.items():
                if any(device in serves(worker.device) for worker in there):
                    what = f"An idle worker does not hear the {count} messages for device {device} in the broker"
                    yield Finding("doorbells_unheard", f"{what}: {SAME_BROKER}.")

    def _of_home(self, look: HomeLook | Exception, seconds: float) -> Iterator[Finding]:
        if isinstance(look, Exception):
            how = f"does not answer within {seconds:g} s" if isinstance(look, TimeoutError) else "cannot be read"
            mend = "mount it, or set DISTILLERY_HOME to a folder that API and workers share."
            yield Finding("home_not_writable", f"The service's folder {how}: {mend}", about=_said(look))
            return
        if look.fault is not None:
            what = "Nothing can be written into the service's folder"
            mend = "give it to the user that runs API and workers, or free the disk."
            yield Finding("home_not_writable", f"{what}: {mend}", about=(look.fault,))
        least = self._settings.min_free_bytes
        if look.free < max(2 * least, LOW_SHARE * look.size):
            refused = f"submissions are refused below {least / MIB:,.0f} MiB"
            what = f"The service's disk is nearly full, {look.free / MIB:,.0f} MiB are free ({refused})"
            yield Finding("disk_low", f"{what}: delete jobs, or set DISTILLERY_DISK_QUOTA_BYTES.")


def _result(future: Future[Any], until: float) -> Any:
    """What was seen, or the exception that was raised instead; `TimeoutError` for what hangs."""
    try:
        return future.result(max(until - time.monotonic(), 0.0))
    except Exception as error:
        return error


def _said(error: Exception) -> tuple[str, ...]:
    """The cause, without what SQLAlchemy adds to it."""
    text = str(getattr(error, "orig", None) or error).strip()
    return (text.splitlines()[0],) if text else ()


def _schema(look: DatabaseLook) -> Iterator[Finding]:
    at = f"The database's schema is at revision {look.revision}"
    says = {
        "empty": "The database is empty: run `distillery migrate`.",
        "behind": f"{at}, this version needs {schema.head()}: run `distillery migrate` (after a backup).",
        "ahead": f"{at}, which this version (at {schema.head()}) does not know: run the version it belongs to.",
        "foreign": "The database holds another program's tables: give Distillery a database of its own.",
    }
    if look.state != "current":
        yield Finding(f"schema_{look.state}", says[look.state], "schema")


def _clocks(look: DatabaseLook) -> Iterator[Finding]:
    depends = "leases do not depend on it, but times in logs and the age at which files are swept do; set up NTP"
    if abs(look.clock_offset) > CLOCK_SECONDS:
        what = f"This machine's clock is {look.clock_offset:+,.0f} s off the database's"
        yield Finding("clock_off", f"{what}: {depends}.")
    off = [worker for worker in look.workers if abs(worker.clock_offset) > CLOCK_SECONDS]
    if off:
        most = max((worker.clock_offset for worker in off), key=abs)
        what = f"The clock of {_count(len(off), 'worker')} is off the database's, by up to {most:+,.0f} s"
        about = tuple(f"{worker.name}: {worker.clock_offset:+,.0f} s" for worker in off)
        yield Finding("worker_clock_off", f"{what}: {depends}.", about=about)


def _workers(look: DatabaseLook, settings: Settings) -> Iterator[Finding]:
    there = _present(look.workers, settings)
    silent = [worker for worker in look.workers if worker not in there]
    if not there:
        jobs = sum(each.jobs for each in look.waiting)
        wait = f" ({_count(jobs, 'queued job')})" if jobs else ""
        yield Finding("no_worker", f"No worker is running{wait}: start one with `distillery worker`.", "worker")
    if silent:
        what = f"{_count(len(silent), 'worker')} stopped without a word, or cannot reach the database"
        about = tuple(f"{worker.name}: silent for {worker.silence:,.0f} s" for worker in silent)
        yield Finding("workers_silent", f"{what}: look at the machine, and start what is gone again.", about=about)
    resting = [worker for worker in there if worker.status == "resting"]
    if resting:
        what = f"{_count(len(resting), 'worker')} can start no training process, or write no file for it"
        about = tuple(worker.name for worker in resting)
        part: Part | None = "worker" if len(resting) == len(there) else None
        yield Finding("workers_resting", f"{what}: its log says why; mend that, or stop it.", part, about)


def _queue(look: DatabaseLook, settings: Settings) -> Iterator[Finding]:
    there = _present(look.workers, settings)
    for each in look.waiting if there else ():
        fitting = [worker for worker in there if each.device in serves(worker.device)]
        if not fitting:
            what = f"No worker has {each.device} ({_count(each.jobs, 'queued job')})"
            yield Finding("no_worker_for_device", f"{what}: start one on a machine that has it, or cancel them.")
        elif each.spec_version > max(worker.spec_version for worker in fitting):
            what = f"Queued jobs for device {each.device} have specs of version {each.spec_version}"
            yield Finding("spec_too_new", f"{what}, which no worker there reads: bring the workers to this version.")
    if look.longest_idle > UNDRAINED_SECONDS:
        what = f"A job has waited {look.longest_idle:,.0f} s although a worker for it is idle"
        yield Finding("queue_not_drained", f"{what}: {SAME_BROKER}.")
    if look.longest_expired > max(UNDRAINED_SECONDS / 2, 10 * settings.reconcile_seconds):
        what = f"A job's lease ran out {look.longest_expired:,.0f} s ago and nobody took it back"
        yield Finding("lease_expired", f"{what}: no reconciler is alive; every API process and worker runs one.")


def _present(workers: tuple[Seen, ...], settings: Settings) -> list[Seen]:
    return [worker for worker in workers if worker.silence <= settings.lease_seconds]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
