"""One poller per process that wakes whoever waits for a job: a waiter holds no thread and no connection."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.to_thread
import structlog
from anyio import CapacityLimiter

from api.problems import TooManyStreamsError
from storage.database import Database
from storage.queries import Glance, glance

IDS_PER_QUERY = 1_000

log = structlog.get_logger(__name__)


class Watch:
    """One waiter's view of one job; `glance` is the newest, None once the job was deleted."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.glance: Glance | None = None
        self._told = False
        self._news = asyncio.Event()

    def tell(self, glance: Glance | None) -> None:
        """Hand in a newer look at the job."""
        if not self._told or glance != self.glance:
            self.glance, self._told = glance, True
            self._news.set()

    async def changed(self, timeout: float) -> bool:
        """Wait for news since the last call; False where there was none for that many seconds."""
        try:
            async with asyncio.timeout(max(timeout, 0)):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


class Watcher:
    """Looks at all watched jobs in one query, every `poll_seconds`, as long as any is watched."""

    def __init__(self, database: Database, poll_seconds: float, most: int) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._most = most
        self._watches: set[Watch] = set()
        self._wanted = asyncio.Event()
        self._limiter = CapacityLimiter(1)  # busy request threads must not delay the poll

    def __len__(self) -> int:
        return len(self._watches)

    def open(self, job_id: str) -> Watch:
        """Begin to watch a job; `close` must follow.

        Raises:
            TooManyStreamsError: this process has as many waiters as it may.
        """
        if len(self._watches) >= self._most:
            raise TooManyStreamsError("too many open streams and waits here; try again", headers={"Retry-After": "5"})
        watch = Watch(job_id)
        self._watches.add(watch)
        self._wanted.set()
        return watch

    def close(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches:
            self._wanted.clear()

    @contextmanager
    def watching(self, job_id: str) -> Iterator[Watch]:
        watch = self.open(job_id)
        try:
            yield watch
        finally:
            self.close(watch)

    async def run(self) -> None:
        """Poll until cancelled; a database that is away is only waited for."""
        failing = False
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._look()
            except Exception as error:
                if not failing:
                    log.warning("watching fails", error=type(error).__name__)
                failing = True
            else:
                failing = False

    async def _look(self) -> None:
        ids = sorted({watch.job_id for watch in self._watches})
        for start in range(0, len(ids), IDS_PER_QUERY):
            asked = set(ids[start : start + IDS_PER_QUERY])
            seen = await anyio.to_thread.run_sync(self._query, asked, limiter=self._limiter)
            for watch in [watch for watch in self._watches if watch.job_id in asked]:
                watch.tell(seen.get(watch.job_id))

    def _query(self, ids: set[str]) -> dict[str, Glance]:
        with self._database.read() as session:
            return glance(session, ids)
