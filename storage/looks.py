"""What is seen of a deployment, each part in bounded time: its database, its broker, its disk."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy import func, make_url, select

from storage import schema, workers
from storage.database import Database, now
from storage.lifecycle import Status
from storage.queue import Doorbell
from storage.reconciler import MOST_RINGS
from storage.settings import Settings
from storage.tables import SPEC_VERSION, Job, Worker

T = TypeVar("T")

SETTLE_SECONDS = 0.5


class Look(Generic[T]):
    """Looks in a thread of its own. While one look hangs, whoever looks again waits for the same one."""

    def __init__(self, take: Callable[[], T]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._pending: Future[T] | None = None

    def begin(self) -> Future[T]:
        with self._lock:
            if self._pending is None or self._pending.done():
                pending: Future[T] = Future()
                threading.Thread(target=self._run, args=(pending,), name="look", daemon=True).start()
                self._pending = pending  # not before: without a thread there is nothing to wait for
            return self._pending

    def _run(self, pending: Future[T]) -> None:
        try:
            pending.set_result(self._take())
        except Exception as error:
            pending.set_exception(error)


@dataclass(frozen=True)
class Seen:
    """A worker's row; `silence` is the age of its last heartbeat in seconds."""

    name: str
    device: str
    status: str
    memory_bytes: int
    silence: float
    clock_offset: float
    spec_version: int


@dataclass(frozen=True)
class Waiting:
    """The queued jobs for one device that may start now."""

    device: str
    jobs: int
    spec_version: int
    """The newest among them."""


@dataclass(frozen=True)
class DatabaseLook:
    """What the database says; of another version's schema, only which one it is."""

    clock_offset: float
    """Seconds that this machine's clock is ahead."""
    state: schema.State
    revision: str | None
    workers: tuple[Seen, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    longest_idle: float = 0.0
    """How long the oldest job has waited that an idle worker takes, in seconds."""
    longest_expired: float = 0.0
    """How long ago the oldest lease of a running job ran out, in seconds."""


def see_database(database: Database, settings: Settings) -> DatabaseLook:
    with database.read() as session:
        before = time.time()
        clock = session.scalar(select(now())) or 0.0
        offset = (before + time.time()) / 2 - clock
    state, revision = schema.state(database)
    if state != "current":
        return DatabaseLook(offset, state, revision)
    ready = (Job.status == Status.QUEUED) & (Job.available_at <= now())
    with database.read() as session:
        seen = tuple(
            Seen(
                f"{row.id} on {row.hostname}", row.device, row.status, row.memory_bytes,
                clock - row.heartbeat_at, row.clock_offset or 0.0, row.spec_version or 1,
            )
            for row in session.scalars(select(Worker).order_by(Worker.started_at))
        )  # fmt: skip
        newest = func.max(func.coalesce(SPEC_VERSION, 1))
        rows = session.execute(select(Job.device, func.count(), newest).where(ready).group_by(Job.device))
        waiting = tuple(Waiting(row[0], row[1], int(row[2])) for row in rows)
        there = workers.present(session, settings.lease_seconds)
        suits = workers.suits([worker for worker in there if worker.status == "idle"], there)
        longest_idle = session.scalar(select(clock - func.min(Job.available_at)).where(ready, suits)) or 0.0
        expired = select(clock - func.min(Job.lease_expires_at)).where(Job.status == Status.RUNNING)
        longest_expired = session.scalar(expired) or 0.0
    return DatabaseLook(offset, state, revision, seen, waiting, longest_idle, longest_expired)


def see_broker(doorbell: Doorbell, settings: Settings) -> dict[str, int]:
    """Messages by device that nobody takes; raises what its client raises."""
    if settings.broker is None:
        probe(settings.broker_folder / "messages")
    counts = {device: doorbell.count(device) for device in ("auto", "cuda")}
    if max(counts.values()) >= MOST_RINGS:  # just rung, perhaps: what is heard becomes fewer
        time.sleep(SETTLE_SECONDS)
        counts = {device: doorbell.count(device) if before >= MOST_RINGS else 0 for device, before in counts.items()}
    return {device: count for device, count in counts.items() if count >= MOST_RINGS}


@dataclass(frozen=True)
class HomeLook:
    """The disk of `home`; and what keeps files from being written there."""

    free: int
    size: int
    fault: str | None


def see_home(settings: Settings) -> HomeLook:
    usage = shutil.disk_usage(settings.home)
    try:
        for folder in (settings.home, settings.jobs, settings.blobs):
            if folder == settings.home or folder.exists():
                probe(folder)
    except OSError as error:
        return HomeLook(usage.free, usage.total, str(error))
    return HomeLook(usage.free, usage.total, None)


def probe(folder: Path) -> None:
    """Write a file there that nobody sees; raises `OSError` where that is impossible."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")


def missing_database(settings: Settings) -> Path | None:
    """The SQLite file, where it is not there: to connect would make it."""
    url = make_url(settings.database)
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    return file if file is not None and not file.exists() else None
