"""What must hold after every round. Read from the database and the files, never asked of the service."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from storage.database import Database
from storage.retention import sweep
from storage.settings import Settings
from tests.faults import histories
from tests.faults.client import Entry, Ledger
from tests.faults.histories import LEFT_BY, TERMINAL, Event
from tests.faults.jobs import Undisturbed

GRANTED_SECONDS = 15.0
"""Beyond the lease, within which a request is granted unless its job ends by itself: see `histories.requests`."""


@dataclass
class Done:
    """What the faults of a round did that its check must know.

    Args:
        failures: jobs that may have failed, with their error's code.
        drained: jobs and attempts whose worker was told to end, and when.
        unread: jobs and attempts that could not read their checkpoint, which is whole.
        removed: files that were taken away for good.
        poison_failures: how many deaths a poison job may cause.
    """

    failures: dict[str, str] = field(default_factory=dict)
    drained: list[tuple[str, int, float]] = field(default_factory=list)
    unread: list[tuple[str, int]] = field(default_factory=list)
    removed: set[Path] = field(default_factory=set)
    poison_failures: int = 3


class Checker:
    """Reads one round's leavings; every violation is a sentence.

    Args:
        undisturbed: by name of spec.
    """

    def __init__(
        self, database: Database, settings: Settings, ledger: Ledger, undisturbed: dict[str, Undisturbed], done: Done
    ) -> None:
        self.database, self.settings, self.ledger, self.undisturbed = database, settings, ledger, undisturbed
        self.done = done
        self.jobs = {row["id"]: row for row in self._rows("SELECT * FROM jobs")}
        self.events: dict[str, list[Event]] = {job: [] for job in self.jobs}
        for row in self._rows("SELECT job_id, id, at, attempt, type, data FROM events ORDER BY job_id, id"):
            self.events[row.pop("job_id")].append(Event(**row | {"data": _json(row["data"])}))

    def _rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return [dict(row._mapping) for row in session.execute(text(statement), values)]

    def violations(self) -> list[str]:
        """All of them; sweeps, so that what is left over can be told from what is needed."""
        found = [*self.ledger.violations, *self._keys(), *self._acknowledged()]
        for job in self.jobs.values():
            for fault in (*self._history(job), *self._ending(job)):
                found.append(f"{job['id']}: {fault}")
        found += self._nothing_left()
        return found

    def _keys(self) -> Iterator[str]:
        """No idempotency key gave two jobs, and no job came without one."""
        told: dict[str, set[str]] = {}
        for entry in self.ledger.entries:
            told.setdefault(entry.key, set()).update(entry.job_ids)
        yield from (f"key {key} gave {sorted(ids)}" for key, ids in told.items() if len(ids) > 1)
        keyed = {row["job_id"]: row["key"] for row in self._rows("SELECT job_id, key FROM idempotency_keys")}
        yield from (
            f"{job} was made without a key: a request was carried out twice" for job in self.jobs if job not in keyed
        )
        for key, ids in told.items():
            yield from (f"{id} was acknowledged under {key} and is stored under {keyed[id]}" for id in ids
                        if id in keyed and keyed[id] != key)  # fmt: skip

    def _acknowledged(self) -> Iterator[str]:
        """What was answered is so."""
        for entry in self.ledger.entries:
            for id in entry.job_ids:
                if entry.deleted and id in self.jobs:
                    yield f"{id} was deleted and is there again"
                elif id not in self.jobs and not entry.deleting:
                    yield f"{id} was acknowledged and is lost"
                elif id in self.jobs and entry.status is not None:
                    told = histories.shown(self.events[id], entry.status, self.jobs[id]["status"])
                    yield from (f"{id} {fault}" for fault in told)
        for answer in self.ledger.answers:
            left = LEFT_BY.get(answer.action)
            if answer.action == "retry" and answer.known is None:
                continue  # it may have been queued, and then there is nothing to do
            if answer.job in self.jobs and left and not any(each.type in left for each in self.events[answer.job]):
                yield f"{answer.action} {answer.job} was acknowledged and is lost"

    def _history(self, job: dict[str, Any]) -> Iterator[str]:
        events, id = self.events[job["id"]], job["id"]
        yield from histories.transitions(events, job)
        within = self.settings.lease_seconds + GRANTED_SECONDS
        yield from histories.requests(events, self.ledger.asked.get(id, set()), within)
        yield from histories.repetitions(events)
        # So long training waits for a database that is away before its supervisor ends it.
        patience = min(self.settings.drain_seconds, self.settings.lease_seconds)
        for drained, attempt, told in self.done.drained:
            if drained == id:
                yield from histories.drain(events, attempt, told, patience)
        for unread, attempt in self.done.unread:
            if unread == id:
                yield from histories.unread(events, attempt)

    def _ending(self, job: dict[str, Any]) -> Iterator[str]:
        if job["status"] not in TERMINAL:
            yield f"is {job['status']}, not terminal: stage {job['stage']}, attempt {job['attempt']}, {job['request']}"
            return
        if job["lease_expires_at"] is not None or job["worker_id"] is not None or job["request"] is not None:
            yield f"is {job['status']} and still has a lease, a worker or a request"
        entry = next((entry for entry in self.ledger.entries if job["id"] in entry.job_ids), None)
        if job["status"] == "succeeded":
            yield from self._success(job, entry)
        elif self._rows("SELECT name FROM artifacts WHERE job_id = :job", job=job["id"]):
            yield f"is {job['status']} and has artifacts"
        if job["status"] == "failed":
            yield from self._failure(job, entry)
        elif entry is not None and entry.poison:
            yield f"is poison and {job['status']}"

    def _failure(self, job: dict[str, Any], entry: Entry | None) -> Iterator[str]:
        error = _json(job["error"]) or {}
        if entry is not None and entry.poison:
            lost = "SELECT data FROM events WHERE job_id = :job AND type IN ('requeued', 'failed')"
            reasons = [_json(row["data"]) for row in self._rows(lost, job=job["id"])]
            deaths = sum(data.get("reason") == "failure" or "reason" not in data for data in reasons)
            if deaths != self.done.poison_failures:
                yield f"is poison and was tried {deaths} times instead of {self.done.poison_failures}"
        elif self.done.failures.get(job["id"]) != error.get("code", "none"):
            yield f"failed: {error}"

    def _success(self, job: dict[str, Any], entry: Entry | None) -> Iterator[str]:
        winners = self._rows("SELECT * FROM attempts WHERE job_id = :job AND outcome = 'succeeded'", job=job["id"])
        if [row["number"] for row in winners] != [job["attempt"]]:
            yield f"attempts {[row['number'] for row in winners]} succeeded, its last is {job['attempt']}"
            return
        spec = entry.spec if entry is not None else job["name"]
        known, [winner] = self.undisturbed[spec], winners
        artifacts = self._rows("SELECT * FROM artifacts WHERE job_id = :job", job=job["id"])
        if (names := {artifact["name"] for artifact in artifacts}) != known.files:
            yield f"its artifacts are not those of {spec!r}: {sorted(names ^ known.files)}"
        for artifact in artifacts:
            yield from self._artifact(job, artifact, winner)
            if artifact["digest"] != known.digests.get(artifact["name"], artifact["digest"]):
                yield f"{artifact['name']} differs from that of an undisturbed run of {spec!r}"
        yield from self._metrics(job, known)

    def _artifact(self, job: dict[str, Any], artifact: dict[str, Any], winner: dict[str, Any]) -> Iterator[str]:
        """Whole, and published by the attempt that won."""
        path = _blob(self.settings, artifact["digest"])
        if not path.is_file():
            yield f"{artifact['name']} is missing"
        elif _digest(path) != artifact["digest"] or path.stat().st_size != artifact["size"]:
            yield f"{artifact['name']} is damaged"
        elif artifact["name"] == "result.json" and json.loads(path.read_text()) != _json(job["result"]):
            yield "its artifacts come from another attempt than its result"
        if not winner["started_at"] <= artifact["created_at"] <= winner["finished_at"]:
            yield f"{artifact['name']} was not published by attempt {winner['number']}"

    def _metrics(self, job: dict[str, Any], known: Undisturbed) -> Iterator[str]:
        """No gap and the same values; that no point is there twice is for the table's primary key to see."""
        rows = self._rows("SELECT stage, name, step, value FROM metrics WHERE job_id = :job", job=job["id"])
        found = {(row["stage"], row["name"], row["step"]): row["value"] for row in rows}
        if gaps := sorted(known.points.keys() - found):
            yield f"{len(gaps)} points are missing, such as {gaps[0]} and {gaps[-1]}"
        if more := sorted(found.keys() - known.points.keys()):
            yield f"{len(more)} points are too many, such as {more[0]}"
        if wrong := [point for point in known.points.keys() & found if known.points[point] != found[point]]:
            yield f"{len(wrong)} points have other values, such as {wrong[0]}"

    def _nothing_left(self) -> Iterator[str]:
        """After the sweep every file in the service's home is one that a row names."""
        settings = self.settings.model_copy(update={"sweep_grace_seconds": 0.0})
        sweep(self.database, settings)
        blobs = {row["digest"] for row in self._rows("SELECT digest FROM artifacts")}
        named = {self.settings.home / row["path"] for row in self._rows("SELECT path FROM checkpoints")}
        named |= {_blob(self.settings, digest) for digest in blobs}
        for path in sorted(self.settings.home.rglob("*")):
            if path.is_file() and path not in named and not self._belongs(path.relative_to(self.settings.home)):
                yield f"left behind: {path.relative_to(self.settings.home)}"
        for path in named - self.done.removed:
            if not path.is_file():
                yield f"a row names {path.relative_to(self.settings.home)}, which is not there"
        rows = Counter(row["path"] for row in self._rows("SELECT path FROM checkpoints"))
        yield from (f"{many} checkpoints of one job are {path}" for path, many in rows.items() if many > 1)
        kept = Counter(row["job_id"] for row in self._rows("SELECT job_id FROM checkpoints"))
        yield from (f"{job} keeps {many} checkpoints" for job, many in kept.items() if many > 2)

    def _belongs(self, path: Path) -> bool:
        """What may be there beside what rows name: the database, locks, the broker, the cache, which bounds itself, and
        the logs of jobs that are."""
        top = path.parts[0]
        if top.startswith(("distillery.db", "serve.json")) or top in ("broker", "cache", "prometheus", ".clock"):
            return True
        if top == "blobs":
            return path.name == ".lock"
        return top == "jobs" and path.name == "log.txt" and path.parts[1] in self.jobs


def _blob(settings: Settings, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return settings.blobs / name[:2] / name


def _digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
