"""What must hold after every round. Read from the database and the files, never asked of the service.

The words of the lifecycle are written out here once more, from the design and not from the code.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import text

from storage.database import Database
from storage.retention import sweep
from storage.settings import Settings
from tests.faults.client import Entry, Ledger
from tests.faults.jobs import Undisturbed

TERMINAL = {"succeeded", "failed", "cancelled"}
LIFECYCLE = {
    ("submitted", None): "queued",
    ("claimed", "queued"): "running",
    ("requeued", "running"): "queued",
    ("paused", "queued"): "paused",
    ("paused", "running"): "paused",
    ("resumed", "paused"): "queued",
    ("cancelled", "queued"): "cancelled",
    ("cancelled", "paused"): "cancelled",
    ("cancelled", "running"): "cancelled",
    ("succeeded", "running"): "succeeded",
    ("failed", "running"): "failed",
    ("retried", "failed"): "queued",
    ("retried", "cancelled"): "queued",
}
CHANGES = {change for change, _ in LIFECYCLE}


class Checker:
    """Reads one round's leavings; every violation is a sentence.

    Args:
        undisturbed: by name of spec.
        expected_failures: jobs that may have failed, with their error's code.
        poison_failures: how many deaths a poison job may cause.
        drained: jobs and attempts whose worker was told to end.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        ledger: Ledger,
        undisturbed: dict[str, Undisturbed],
        expected_failures: dict[str, str],
        poison_failures: int,
        drained: list[tuple[str, int]],
    ) -> None:
        self.database, self.settings, self.ledger, self.undisturbed = database, settings, ledger, undisturbed
        self.expected_failures, self.poison_failures = expected_failures, poison_failures
        self.drained = drained
        self.jobs = {row["id"]: row for row in self._rows("SELECT * FROM jobs")}

    def _rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return [dict(row._mapping) for row in session.execute(text(statement), values)]

    def violations(self) -> list[str]:
        """All of them; sweeps, so that what is left over can be told from what is needed."""
        found = [*self.ledger.violations, *self._keys(), *self._acknowledged()]
        for job in self.jobs.values():
            found += [f"{job['id']}: {fault}" for fault in self._history(job)]
            found += [f"{job['id']}: {fault}" for fault in self._ending(job)]
        found += self._drains()
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
        for entry in self.ledger.entries:
            for id in entry.job_ids:
                if entry.deleted and id in self.jobs:
                    yield f"{id} was deleted and is there again"
                elif id not in self.jobs and not entry.deleting:
                    yield f"{id} was acknowledged and is lost"
                elif id in self.jobs and entry.status is not None and self.jobs[id]["status"] != entry.status:
                    yield f"{id} was {entry.status} and is {self.jobs[id]['status']}"

    def _history(self, job: dict[str, Any]) -> Iterator[str]:
        """Allowed transitions only, attempts counted one by one, one final event per submission or retry."""
        events = self._rows("SELECT id, attempt, type, data FROM events WHERE job_id = :job ORDER BY id", job=job["id"])
        if [event["id"] for event in events] != list(range(1, job["last_event"] + 1)):
            yield f"event ids {[event['id'] for event in events]} do not count up to {job['last_event']}"
        status, attempt, finals = None, 0, 0
        for event in events:
            change = event["type"]
            if change == "claimed":
                attempt += 1
            if event["attempt"] != attempt:
                yield f"event {event['id']} ({change}) is of attempt {event['attempt']}, not {attempt}"
            if change in CHANGES:
                if (change, status) not in LIFECYCLE:
                    yield f"event {event['id']}: {change} from {status}"
                status = LIFECYCLE.get((change, status), status)
                finals += change in TERMINAL
            elif status != "running":
                yield f"event {event['id']} ({change}) of a {status} job"
        if status != job["status"]:
            yield f"is {job['status']}, its history says {status}"
        wanted = 1 + sum(event["type"] == "retried" for event in events)
        if finals != wanted:
            yield f"has {finals} final events instead of {wanted}"
        if attempt != job["attempt"]:
            yield f"has attempt {job['attempt']}, its history says {attempt}"

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
        error = _json(job["error"])
        if entry is not None and entry.poison:
            lost = "SELECT data FROM events WHERE job_id = :job AND type IN ('requeued', 'failed')"
            reasons = [_json(row["data"]) for row in self._rows(lost, job=job["id"])]
            deaths = sum(data.get("reason") == "failure" or "reason" not in data for data in reasons)
            if deaths != self.poison_failures:
                yield f"is poison and was tried {deaths} times instead of {self.poison_failures}"
        elif self.expected_failures.get(job["id"]) != error["code"]:
            yield f"failed: {error}"

    def _success(self, job: dict[str, Any], entry: Entry | None) -> Iterator[str]:
        winners = self._rows("SELECT number FROM attempts WHERE job_id = :job AND outcome = 'succeeded'", job=job["id"])
        if [row["number"] for row in winners] != [job["attempt"]]:
            yield f"attempts {[row['number'] for row in winners]} succeeded, its last is {job['attempt']}"
        artifacts = self._rows("SELECT name, digest, size FROM artifacts WHERE job_id = :job", job=job["id"])
        for artifact in artifacts:
            name = artifact["digest"].removeprefix("sha256:")
            path = self.settings.blobs / name[:2] / name
            if not path.is_file():
                yield f"{artifact['name']} is missing"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != name or path.stat().st_size != artifact["size"]:
                yield f"{artifact['name']} is damaged"
            elif artifact["name"] == "result.json" and json.loads(path.read_text()) != _json(job["result"]):
                yield "its artifacts come from another attempt than its result"
        if {"student.safetensors", "student.onnx", "student.pt2", "result.json"} - {each["name"] for each in artifacts}:
            yield f"lacks artifacts: {sorted(each['name'] for each in artifacts)}"
        spec = entry.spec if entry is not None else job["name"]
        known = self.undisturbed[spec]
        for artifact in artifacts:
            if artifact["name"] in known.digests and artifact["digest"] != known.digests[artifact["name"]]:
                yield f"{artifact['name']} differs from that of an undisturbed run of {spec!r}"
        yield from self._metrics(job, known)

    def _metrics(self, job: dict[str, Any], known: Undisturbed) -> Iterator[str]:
        rows = self._rows("SELECT stage, name, step, value FROM metrics WHERE job_id = :job", job=job["id"])
        found = Counter((row["stage"], row["name"], row["step"]) for row in rows)
        if double := [point for point, times in found.items() if times > 1]:
            yield f"{len(double)} points are there twice, such as {double[0]}"
        if gaps := sorted(known.points.keys() - found):
            yield f"{len(gaps)} points are missing, such as {gaps[0]} and {gaps[-1]}"
        if more := sorted(found.keys() - known.points.keys()):
            yield f"{len(more)} points are too many, such as {more[0]}"
        wrong = [
            row
            for row in rows
            if known.points.get((row["stage"], row["name"], row["step"]), row["value"]) != row["value"]
        ]
        if wrong:
            yield f"{len(wrong)} points have other values, such as {wrong[0]}"

    def _drains(self) -> Iterator[str]:
        """A drained attempt saved itself where it stood: nothing happened between its last checkpoint and its end."""
        mine = "SELECT type, data FROM events WHERE job_id = :job AND attempt = :attempt ORDER BY id"
        for job, attempt in self.drained:
            events = self._rows(mine, job=job, attempt=attempt)
            types = [event["type"] for event in events]
            if "requeued" not in types or _json(events[types.index("requeued")]["data"])["reason"] != "drain":
                continue  # it ended in another way meanwhile
            before = [type for type in types[: types.index("requeued")] if not type.endswith("_requested")]
            if before[-1] not in ("claimed", "checkpoint", "checkpoint_rejected"):
                yield f"{job}: attempt {attempt} was drained without a checkpoint: {before[-3:]}"

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
        for path in named:
            if not path.is_file():
                yield f"a row names {path.relative_to(self.settings.home)}, which is not there"
        kept = Counter(row["job_id"] for row in self._rows("SELECT job_id FROM checkpoints"))
        yield from (f"{job} keeps {many} checkpoints" for job, many in kept.items() if many > 2)

    def _belongs(self, path: Path) -> bool:
        """What may be there beside what rows name: the database, locks, the broker, and the logs of jobs that are."""
        top = path.parts[0]
        if top.startswith(("distillery.db", "serve.json")) or top in ("broker", "prometheus"):
            return True
        if top == "blobs":
            return path.name == ".lock"
        return top == "jobs" and path.name == "log.txt" and path.parts[1] in self.jobs


def _blob(settings: Settings, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return settings.blobs / name[:2] / name


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
