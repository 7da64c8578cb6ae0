"""Jobs in every status, made by the service's own functions."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from storage import actions, attempts, queries, records, submissions
from storage.database import Database
from storage.lifecycle import Fence
from storage.tables import Base, Checkpoint, Job

ERROR = {"code": "crashed", "kind": "system", "message": "the process died"}


class Jobs:
    """What most tests do with jobs, one short transaction each."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._urgency = 1000

    def submit(self, *, key: str | None = None, digest: str = "sha256:one", most: int = 10_000, **spec: Any) -> str:
        owner = spec.pop("owner", "alice")
        document = {"name": "a-job", "priority": 0, "device": "auto", "labels": {}, "teachers": [{}]} | spec
        with self.database.write() as session:
            return submissions.submit(
                session, owner=owner, spec=document, spec_digest=digest, plan={}, idempotency_key=key, max_queued=most
            )

    def claim(self, worker: str = "w1", devices: tuple[str, ...] = ("auto", "cpu"), lease: float = 30.0) -> Fence:
        fence = self.try_claim(worker, devices, lease)
        assert fence is not None
        return fence

    def try_claim(
        self, worker: str = "w1", devices: tuple[str, ...] = ("auto", "cpu"), lease: float = 30.0
    ) -> Fence | None:
        with self.database.write() as session:
            job = attempts.claim(session, worker, devices, lease)
            return Fence(job.id, job.attempt) if job is not None else None

    def running(self, **spec: Any) -> Fence:
        """A new job that runs; other queued jobs stay so."""
        self._urgency += 1
        job_id = self.submit(priority=self._urgency, **spec)
        fence = self.claim()
        assert fence.job_id == job_id
        return fence

    def ask(self, job_id: str, action: str, owner: str = "alice") -> None:
        with self.database.write() as session:
            actions.request(session, job_id, owner, action)

    def put(self, situation: str, **spec: Any) -> str:
        """A new job in a status; after `+` the request that is pending."""
        status, _, pending = situation.partition("+")
        if status in ("queued", "paused"):
            job_id = self.submit(**spec)
            if status == "paused":
                self.ask(job_id, "pause")
            return job_id
        fence = self.running(**spec)
        if pending:
            self.ask(fence.job_id, pending)
        self.end(fence, status)
        return fence.job_id

    def end(self, fence: Fence, status: str) -> None:
        with self.database.write() as session:
            if status == "succeeded":
                attempts.succeed(session, fence, {"summary": "fine"})
            elif status == "failed":
                attempts.fail(session, fence, ERROR | {"kind": "user"})
            elif status == "cancelled":
                attempts.yield_job(session, fence, "cancel")

    def get(self, job_id: str) -> Job:
        with self.database.read() as session:
            job = session.get(Job, job_id)
            assert job is not None
            return job

    def state(self, job_id: str) -> tuple[str, str | None]:
        job = self.get(job_id)
        return job.status, job.request

    def events(self, job_id: str) -> list[str]:
        with self.database.read() as session:
            found = queries.list_events(session, job_id, after=0, limit=10_000)
        assert [event.id for event in found] == list(range(1, len(found) + 1)), "event ids have gaps"
        assert self.get(job_id).last_event == len(found)
        return [event.type for event in found]

    def checkpoint(self, fence: Fence, name: str, step: int = 1) -> list[str]:
        path = f"jobs/{fence.job_id}/attempt-{fence.attempt}/checkpoints/{name}"
        with self.database.write() as session:
            return records.record_checkpoint(
                session, fence, stage="distill-1", epoch=1, step=step, path=path, digest="sha256:x", size=10
            )

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        with self.database.read() as session:
            return queries.list_checkpoints(session, job_id)

    def set(self, job_id: str, **values: Any) -> None:
        """Write columns directly: what time or a fault would have done."""
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))

    def everything(self) -> dict[str, list[Any]]:
        """All rows of all tables."""
        with self.database.read() as session:
            return {t.name: sorted(map(repr, session.execute(select(t)))) for t in Base.metadata.sorted_tables}


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def at_once(number: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0)` … `work(number - 1)` in threads that start together; what each returned or raised."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(index: int) -> None:
        barrier.wait(30)
        try:
            results[index] = work(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


@pytest.fixture(name="at_once")
def at_once_fixture() -> Callable[[int, Callable[[int], Any]], list[Any]]:
    return at_once
