"""What a fault has at hand: the service, its servers, its traps, and a look into its database."""

import json
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from storage.database import Database
from storage.settings import Settings
from tests.faults.client import Client, Ledger, Patience
from tests.faults.invariants import Done
from tests.faults.proxy import Proxy
from tests.faults.servers import Postgres, Redis
from tests.faults.service import Service, WorkerTree, worker_tree

VICTIM_SECONDS = 10.0
SPRING_SECONDS = 60.0
SAY_SECONDS = 5.0
ZOMBIE_SECONDS = 1.0
AT_ONCE = {"priority": 100}
"""Before the customers' jobs."""
RUNNING = text("""
    SELECT jobs.id AS job, jobs.attempt AS attempt, workers.pid AS pid, jobs.name AS name,
        (SELECT count(*) FROM checkpoints WHERE checkpoints.job_id = jobs.id) AS saved
    FROM jobs JOIN workers ON workers.id = jobs.worker_id
    WHERE jobs.status = 'running' AND jobs.lease_expires_at IS NOT NULL
""")

IDLE = text("SELECT pid FROM workers WHERE status = 'idle'")


@dataclass(frozen=True)
class Injection:
    """A fault that has happened.

    Args:
        at: when, in seconds since 1970.
        healed: when it was over, where it lasts; recovery is counted from then on.
        job: whose attempt it hit, if a certain one.
    """

    at: float
    healed: float
    job: str | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class Victim:
    """A running job and who runs it."""

    job: str
    attempt: int
    tree: WorkerTree
    lock: threading.Lock
    """Its worker's."""


@dataclass
class Scene:
    """One round's."""

    form: str
    settings: Settings
    service: Service
    database: Database
    ledger: Ledger
    rng: random.Random
    folder: Path
    patience: Patience
    postgres: Postgres | None = None
    postgres_name: str = ""
    """Of the round's database."""
    redis: Redis | None = None
    postgres_proxy: Proxy | None = None
    redis_proxy: Proxy | None = None
    locks: dict[str, threading.Lock] = field(default_factory=dict)
    did: Done = field(default_factory=Done)
    over: threading.Event = field(default_factory=threading.Event)
    """The round injects no more."""

    def rows(self, statement: Any, **values: Any) -> list[Any]:
        """Rows of the database itself, past any proxy; none while it is down."""
        with suppress(Exception), self.database.read() as session:
            return list(session.execute(statement, values).all())
        return []

    def wait_for(self, look: Callable[[], Any], seconds: float) -> Any:
        """The first true value within so many seconds, else None."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := look():
                return found
            time.sleep(0.05)
        return None

    @contextmanager
    def victim(self, needs: str = "training", *, saved: bool = False) -> Iterator[Victim | None]:
        """A running job with a living worker, which no other fault picks meanwhile; None where none turns up.

        Args:
            needs: which of the worker's processes must be there.
            saved: whether the job must have a checkpoint.
        """
        seconds = SPRING_SECONDS if saved else VICTIM_SECONDS
        found: Victim | None = self.wait_for(lambda: self._seize(needs, saved), seconds)
        try:
            yield found
        finally:
            if found is not None:
                found.lock.release()

    def _seize(self, needs: str, saved: bool) -> Victim | None:
        rows = [row for row in self.rows(RUNNING) if not row.name.startswith("poison") and (row.saved or not saved)]
        self.rng.shuffle(rows)
        for row in rows:
            lock = self.locks.setdefault(f"worker {row.pid}", threading.Lock())
            if lock.acquire(blocking=False):
                tree = worker_tree(row.pid)
                if tree is not None and getattr(tree, needs) is not None:
                    return Victim(row.job, row.attempt, tree, lock)
                lock.release()
        return None

    @contextmanager
    def client(self) -> Iterator[Client]:
        client = self.new_client()
        try:
            yield client
        finally:
            client.close()

    def new_client(self) -> Client:
        return Client(self.service.urls, self.ledger, random.Random(self.rng.random()), self.patience)

    def bring_an_end(self) -> None:
        """Submit a job that will soon upload and publish."""
        with self.client() as client:
            client.submit("short", changes=AT_ONCE)

    def done(self, victim: Victim | None = None, *, since: float | None = None) -> Injection:
        """It happened, just now or from `since` until now."""
        now = time.time()
        job, attempt = (victim.job, victim.attempt) if victim is not None else (None, None)
        return Injection(since or now, now, job, attempt)

    def spring(
        self,
        moment: str,
        action: str,
        argument: Any = None,
        *,
        seconds: float = SPRING_SECONDS,
        cause: Callable[[], Any] = lambda: None,
        **condition: Any,
    ) -> dict[str, Any] | None:
        """Order the next process that passes the moment to do something; who it was, or None if nobody came.

        Args:
            seconds: how long the order stands.
            cause: what brings a process there, once the order is given.
            condition: which process it must be.
        """
        with self.locks.setdefault(f"moment {moment}", threading.Lock()):
            armed, note = self._arm(moment, action, argument, **condition)
            cause()
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.over.is_set() and not note.exists():
                time.sleep(0.02)
            return _disarm(armed, note)

    @contextmanager
    def expecting(self, moment: str, action: str) -> Iterator[Callable[[], dict[str, Any] | None]]:
        """An order for what the caller is about to cause; yields who carried it out."""
        with self.locks.setdefault(f"moment {moment}", threading.Lock()):
            armed, note = self._arm(moment, action, None)
            try:
                yield lambda: _disarm(armed, note)
            finally:
                armed.unlink(missing_ok=True)

    @contextmanager
    def lasting(self, moments: dict[str, tuple[str, Any]]) -> Iterator[Callable[[], bool]]:
        """Orders that everybody carries out meanwhile, by moment; yields whether anybody did."""
        locks = [self.locks.setdefault(f"moment {moment}", threading.Lock()) for moment in sorted(moments)]
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            notes = []
            for moment, (action, argument) in moments.items():
                armed, note = self._arm(moment, action, argument, lasting=True)
                stack.callback(armed.unlink, missing_ok=True)
                notes.append(note)
            yield lambda: any(note.exists() for note in notes)

    def _arm(self, moment: str, action: str, argument: Any, **condition: Any) -> tuple[Path, Path]:
        order = {"id": uuid.uuid4().hex, "action": action, "argument": argument, **condition}
        armed = self.folder / "armed" / moment
        temporary = self.folder / f".{order['id']}"
        temporary.write_text(json.dumps(order))
        temporary.rename(armed)
        return armed, self.folder / "sprung" / f"{order['id']}.json"

    def bring_close_to_the_limit(self, job: str, failures: int) -> bool:
        """Let a job fail after so many system failures, where the round's limit is far higher for all others."""
        closer = text("UPDATE jobs SET failures = failures + :more WHERE id = :job")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with suppress(Exception), self.database.write() as session:
                session.execute(closer, {"more": self.settings.max_failures - failures, "job": job})
                return True
            time.sleep(0.1)
        return False

    def sprung(self, note: dict[str, Any] | None) -> Injection | None:
        """What a trap reported, as an injection."""
        if note is None:
            return None
        of_attempt = note["job"] if note["attempt"] is not None else None
        return Injection(note["at"], note["at"], of_attempt, note["attempt"])


def _disarm(armed: Path, note: Path) -> dict[str, Any] | None:
    """Take the order back; who was faster carries it out, and has a while to say so."""
    try:
        armed.unlink()
    except FileNotFoundError:
        end = time.monotonic() + SAY_SECONDS
        while not note.exists() and time.monotonic() < end:
            time.sleep(0.02)
    return json.loads(note.read_text()) if note.exists() else None


def send(process: psutil.Process | None, number: int) -> bool:
    """Send a signal; whether the process was still there."""
    if process is None:
        return False
    with suppress(psutil.Error):
        process.send_signal(number)
        return True
    return False


def wake(note: dict[str, Any]) -> None:
    """Let a stopped training process and then its supervisor go on, which may end it as soon as it looks."""
    for number, pause in ((note["pid"], ZOMBIE_SECONDS), (note["parent"], 0.0)):
        with suppress(psutil.Error):
            send(psutil.Process(number), signal.SIGCONT)
        time.sleep(pause)
