"""Jobs as they are shown, read for one request or for all that ask at the same time."""

from collections.abc import Collection
from functools import cached_property
from typing import Any

from sqlalchemy import Row

from api import schemas
from api.batching import Batcher
from api.views import Document, summarise
from storage.database import Database
from storage.errors import NotFoundError
from storage.lifecycle import Status
from storage.queries import Wait, explain_waits, read_jobs


class Shown:
    """A job as one question found it; what is made of that is made once, by the first who needs it."""

    def __init__(self, row: Row[Any], wait: Wait | None) -> None:
        self.owner: str = row.owner
        self._row, self._wait = row, wait

    @cached_property
    def job(self) -> schemas.Job:
        row, wait = self._row, self._wait
        queue = schemas.Queue(position=wait.position, reason=wait.reason) if wait is not None else None
        return schemas.Job(**summarise(row), queue=queue, choices=row.choices, plan=row.plan, spec=row.spec)

    @cached_property
    def document(self) -> Document:
        return Document.of(self.job)


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
            queued = [row for row in rows if row.status == Status.QUEUED]
            waits = explain_waits(connection, queued, self._silence_seconds)
        return {row.id: Shown(row, waits.get(row.id)) for row in rows}


def _checked(shown: Shown | None, owner: str, job_id: str) -> Shown:
    if shown is None or shown.owner != owner:
        raise NotFoundError(f"there is no job {job_id}")
    return shown
