"""Jobs as they are shown, read for one request or for all that ask at the same time."""

from collections.abc import Collection
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Row

from api import schemas
from api.batching import Batcher
from api.views import Document, summarise
from storage.database import Database, read_json
from storage.errors import NotFoundError
from storage.lifecycle import Status
from storage.queries import JSON_COLUMNS, Wait, explain_waits, read_jobs

MOST = 1000
"""Documents that are remembered, …"""
LARGE = 16 * 2**10
"""… of rows with fewer characters, so that they take about 128 MiB at the very most."""


class Shown:
    """A job as one question found it."""

    def __init__(self, row: Row[Any], wait: Wait | None) -> None:
        self.owner: str = row.owner
        self.state: tuple[str, str | None, str | None] = (row.status, row.stage, row.request)
        self._row, self._wait = row, wait

    @property
    def job(self) -> schemas.Job:
        return _job(self._row, self._wait)

    @cached_property
    def document(self) -> Document:
        size = sum(len(value) for value in self._row if isinstance(value, str))
        made = _document if size < LARGE else _document.__wrapped__
        return made(self._row, self._wait)


@lru_cache(MOST)
def _document(row: Row[Any], wait: Wait | None) -> Document:
    """A function of what the database said just now, all of it: remembered for the same row, it is never stale."""
    return Document.of(_job(row, wait))


def _job(row: Row[Any], wait: Wait | None) -> schemas.Job:
    read = {
        name: read_json(value) if name in JSON_COLUMNS and value is not None else value
        for name, value in row._mapping.items()
    }
    job = SimpleNamespace(**read)
    queue = schemas.Queue(position=wait.position, reason=wait.reason) if wait is not None else None
    return schemas.Job(**summarise(job), queue=queue, choices=job.choices, plan=job.plan, spec=job.spec)


class JobReader:
    """Shows jobs to their owners.

    Args:
        silence_seconds: after which a worker counts as gone.
    """

    def __init__(self, database: Database, silence_seconds: float) -> None:
        self._database = database
        self._silence_seconds = silence_seconds
        self._batcher = Batcher(self._read)

    def read(self, owner: str, job_id: str) -> Shown:
        """A job of this owner. Blocks: reads the database.

        Raises:
            NotFoundError: there is none, or it is another's.
        """
        return _checked(self._read([job_id]).get(job_id), owner, job_id)

    async def get(self, owner: str, job_id: str) -> Shown:
        """The same for a request that holds no thread, in one question with the others that wait."""
        return _checked(await self._batcher.get(job_id), owner, job_id)

    def _read(self, job_ids: Collection[str]) -> dict[str, Shown]:
        with self._database.look() as connection:
            rows = read_jobs(connection, job_ids)
            queued = [row.id for row in rows if row.status == Status.QUEUED]
            waits = explain_waits(connection, queued, self._silence_seconds)
        return {row.id: Shown(row, waits.get(row.id)) for row in rows}


def _checked(shown: Shown | None, owner: str, job_id: str) -> Shown:
    if shown is None or shown.owner != owner:
        raise NotFoundError(f"there is no job {job_id}")
    return shown
