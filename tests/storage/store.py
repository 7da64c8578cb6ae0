"""What the model does, done by storage: each operation in transactions as API and workers make them."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, event, select, update

from storage import actions, attempts, queries, records, submissions, workers
from storage.database import Database
from storage.errors import NotFoundError, StorageError
from storage.lifecycle import Fence
from storage.queue import Doorbell
from storage.reconciler import reconcile
from storage.retention import sweep
from storage.settings import Settings
from storage.tables import Attempt, Base, Worker
from storage.tables import Job as JobRow
from tests.storage.model import CHANGES, MAX_FAILURES, READS, SERVES, TERMINAL, Job

LONG = 3600.0
REST = 200.0
Rows = dict[str, list[Row[Any]]]


class Store:
    """One database, driven by the model's operations; an error of storage is returned as its class's name."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.doorbell = database, Doorbell(settings)
        self.settings = settings.model_copy(
            update={
                "max_failures": MAX_FAILURES, "retry_backoff_seconds": REST, "lease_seconds": LONG,
                "sweep_grace_seconds": 0.0, "keep_checkpoints_days": -1.0,
            }
        )  # fmt: skip

        self.passes_over = database.engine.dialect.name == "postgresql"
        """Whether claims and reconcilers pass over rows that others hold; a claim may choose by what was true then."""
        self._chance: random.Random | None = None
        event.listen(database.engine, "before_cursor_execute", self._hesitate)
        if not self.passes_over:  # SQLite waits for the disk at each commit; no power is cut here
            database.engine.dispose()
            event.listen(
                database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF")
            )

    @contextmanager
    def hesitating(self, seed: int) -> Iterator[None]:
        """Pause before some statements, so that transactions meet in more ways than they would."""
        self._chance = random.Random(seed)
        yield
        self._chance = None

    def _hesitate(self, *_: object) -> None:
        if self._chance is not None:
            time.sleep(self._chance.choice((0.0, 0.0, 0.0, 0.01)))

    def do(self, name: str, args: dict[str, Any]) -> Any:
        try:
            return getattr(self, name)(**args)
        except StorageError as error:
            return type(error).__name__

    def empty(self) -> None:
        """No job, and one idle worker, so that doorbells are rung."""
        with self.database.write() as session:
            session.execute(delete(JobRow))
            session.execute(delete(Worker))
            workers.register(session, workers.WorkerCard("idle", "host", 1, "cuda", "a device", 2**40, "1", 1))

    def rows(self) -> Rows:
        with self.database.read() as session:
            tables = Base.metadata.sorted_tables
            return {t.name: list(session.execute(select(t).order_by(*t.primary_key))) for t in tables}

    def submit(
        self,
        *,
        owner: str,
        key: str | None,
        digest: str,
        most: int | None,
        teacher: str | None,
        version: int,
        **spec: Any,
    ) -> str:
        """Its teacher is looked up in the same transaction, as the API does it."""
        weights = {"weights": {"job": teacher}} if teacher else {}
        document = {"name": "a-job", "labels": {"a": "b"}, "teachers": [weights], "spec_version": version} | spec
        with self.database.write() as session:
            if teacher is not None:
                queries.get_job(session, teacher, owner, keep=True)
                if not queries.list_artifacts(session, teacher):
                    raise NotFoundError
            return submissions.submit(
                session, owner=owner, spec=document, spec_digest=digest, plan={}, idempotency_key=key,
                max_queued=10_000 if most is None else most,
            )  # fmt: skip

    def ask(self, job_id: str, owner: str, action: str) -> None:
        with self.database.write() as session:
            actions.request(session, job_id, owner, action)

    def remove(self, job_id: str, owner: str) -> None:
        with self.database.write() as session:
            actions.remove(session, job_id, owner)

    def claim(self, worker: str) -> tuple[str, int] | None:
        with self.database.write() as session:
            job = attempts.claim(session, worker, SERVES[worker], LONG, spec_version=READS[worker])
            return (job.id, job.attempt) if job is not None else None

    def heartbeat(self, fence: tuple[str, int]) -> str | None:
        with self.database.write() as session:
            return attempts.heartbeat(session, Fence(*fence), LONG).request

    def report(self, fence: tuple[str, int], points: list[tuple[str, str, int, float]]) -> None:
        with self.database.write() as session:
            records.report(session, Fence(*fence), stage="a", points=[records.Point(*point) for point in points])

    def store_choices(self, fence: tuple[str, int], choices: dict[str, Any]) -> dict[str, Any]:
        with self.database.write() as session:
            return records.store_choices(session, Fence(*fence), choices)

    def record_checkpoint(self, fence: tuple[str, int], name: str) -> list[str]:
        """The file before the row, and what no row names any more deleted after the commit."""
        path = self.settings.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"whole")
        with self.database.write() as session:
            dropped = records.record_checkpoint(
                session, Fence(*fence), stage="a", epoch=1, step=1, path=name, digest="sha256:x", size=5
            )
        for old in dropped:
            Path(self.settings.home, old).unlink()
        return dropped

    def set_aside_checkpoint(self, fence: tuple[str, int], id: int) -> None:
        with self.database.write() as session:
            records.set_aside_checkpoint(session, Fence(*fence), id, "bad")

    def rewind(self, fence: tuple[str, int], done: dict[str, int | None]) -> None:
        with self.database.write() as session:
            records.rewind(session, Fence(*fence), done)

    def succeed(self, fence: tuple[str, int], artifacts: list[str]) -> None:
        files = [records.NewArtifact(name, "sha256:aa", 3, "text/plain") for name in artifacts]
        with self.database.write() as session:
            if files:
                records.publish(session, Fence(*fence), files)
            attempts.succeed(session, Fence(*fence), {"summary": "fine"})

    def fail(self, fence: tuple[str, int]) -> None:
        with self.database.write() as session:
            attempts.fail(session, Fence(*fence), {"code": "diverged", "kind": "user", "message": "it did"})

    def give_up(self, fence: tuple[str, int], reason: str) -> None:
        with self.database.write() as session:
            attempts.yield_job(session, Fence(*fence), reason)

    def release(self, fence: tuple[str, int]) -> None:
        error = {"code": "crashed", "kind": "system", "message": "it did"}
        with self.database.write() as session:
            attempts.release(session, Fence(*fence), error, max_failures=MAX_FAILURES, backoff_seconds=REST)

    def expire_lease(self, job_id: str) -> None:
        began = select(Attempt.started_at).where(Attempt.job_id == job_id, Attempt.number == JobRow.attempt)
        self._set(job_id, "running", lease_expires_at=began.scalar_subquery())

    def end_rest(self, job_id: str) -> None:
        self._set(job_id, "queued", available_at=1.0)

    def _set(self, job_id: str, status: str, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id, JobRow.status == status).values(**values))

    def reconcile(self) -> list[tuple[str, int]]:
        taken = reconcile(self.database, self.doorbell, self.settings).taken_back
        return sorted((fence.job_id, fence.attempt) for fence in taken)

    def sweep(self, by: str) -> list[str]:
        values = {
            "days": {"keep_artifacts_days": -1.0},
            "quota": {"keep_checkpoints_days": LONG, "disk_quota_bytes": 1},
        }
        swept = sweep(self.database, self.settings.model_copy(update=values[by]))
        return ["artifacts"] * swept.artifacts + ["checkpoints"] * swept.checkpoints


def look(rows: Rows) -> dict[str, Job]:
    """The rows of all tables as jobs of the model."""
    jobs = {
        row.id: Job(
            owner=row.owner, digest=row.spec_digest, device=row.device, priority=row.priority,
            version=row.spec["spec_version"],
            teacher=row.spec["teachers"][0].get("weights", {}).get("job"), status=row.status, request=row.request,
            attempt=row.attempt, failures=row.failures, worker=row.worker_id,
            expired=row.status == "running" and row.lease_expires_at < row.started_at + LONG / 2,
            resting=row.status == "queued" and row.available_at > row.updated_at + REST / 2,
            choices=row.choices, result=row.result, error=row.error and row.error["code"],
        )
        for row in rows["jobs"]
    }  # fmt: skip
    for row in rows["idempotency_keys"]:
        assert jobs[row.job_id].key is None, "a job has two keys"
        assert (jobs[row.job_id].owner, jobs[row.job_id].digest) == (row.owner, row.spec_digest)
        jobs[row.job_id].key = row.key
    for row in rows["events"]:
        jobs[row.job_id].events.append((row.type, row.attempt))
    for row in rows["attempts"]:
        jobs[row.job_id].outcomes.append(row.outcome)
    for row in rows["metrics"]:
        jobs[row.job_id].points[row.stage, row.name, row.step] = (row.value, row.attempt)
    for row in rows["checkpoints"]:
        jobs[row.job_id].checkpoints[row.id] = row.path
    for row in rows["artifacts"]:
        jobs[row.job_id].artifacts.append(row.name)
    return jobs


def differences(model: dict[str, Job], found: dict[str, Job]) -> dict[str, Any]:
    """By job, and within it by field: what the model has and what was found."""
    apart = {job_id: (model.get(job_id), found.get(job_id)) for job_id in model.keys() | found.keys()}
    return {
        job_id: {name: (value, vars(is_)[name]) for name, value in vars(was).items() if value != vars(is_)[name]}
        if was and is_
        else (was, is_)
        for job_id, (was, is_) in apart.items()
        if was != is_
    }


def check_rows(rows: Rows, home: Path) -> None:
    """What holds of the tables at any time, whatever was done."""
    events: dict[str, list[Any]] = {row.id: [] for row in rows["jobs"]}
    numbers: dict[str, list[int]] = {row.id: [] for row in rows["jobs"]}
    for row in rows["events"]:
        events[row.job_id].append(row)
    for row in rows["attempts"]:
        numbers[row.job_id].append(row.number)
        assert (row.outcome is None) == (row.finished_at is None)
    for job in rows["jobs"]:
        assert [event.id for event in events[job.id]] == list(range(1, job.last_event + 1)), "event ids have gaps"
        assert numbers[job.id] == list(range(1, job.attempt + 1)), "attempts have gaps"
        assert replay([event.type for event in events[job.id]]) == (job.status, job.request), "the history says else"
        assert (job.worker_id is not None) == (job.lease_expires_at is not None) == (job.status == "running")
        assert (job.finished_at is not None) == (job.status in TERMINAL)
        assert (job.started_at is not None) == (job.attempt > 0)
        assert (job.result is not None) == (job.status == "succeeded")
        assert job.request is None or job.status == "running"
        assert job.spent_seconds >= 0
    succeeded = {job.id for job in rows["jobs"] if job.status == "succeeded"}
    assert {row.job_id for row in rows["artifacts"]} <= succeeded, "an artifact of a job that did not succeed"
    missing = [row.path for row in rows["checkpoints"] if not Path(home, row.path).exists()]
    assert not missing, f"rows name files that are gone: {missing}"


def replay(history: list[str]) -> tuple[str, str | None]:
    """Status and request that a history leads to; only changes that are allowed, one end per start."""
    assert history[0] == "submitted"
    status, request = "queued", None
    for type in history[1:]:
        if type in CHANGES:
            sources, target = CHANGES[type]
            assert status in sources, f"{type} of a {status} job: {history}"
            status, request = target, None
        else:
            assert status == "running", f"{type} of a {status} job: {history}"
            request = type.removesuffix("_requested") if type.endswith("_requested") else request
    return status, request
