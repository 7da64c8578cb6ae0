"""The check after a round is silent over a correct one, and says of every damage what it is."""

import copy
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from storage import actions, attempts, records, schema, submissions
from storage.blobs import BlobStore
from storage.database import Database
from storage.lifecycle import Fence, add_event
from storage.records import NewArtifact, Point
from storage.settings import Settings
from tests.faults.client import Answer, Entry, Ledger
from tests.faults.histories import Event, drain, repetitions, requests, shown, unread
from tests.faults.invariants import Checker, Done
from tests.faults.jobs import Undisturbed

RESULT = {"summary": "fine"}
FILES = {
    "result.json": json.dumps(RESULT).encode(),
    "student.onnx": b"the student, to be run",
    "student.safetensors": b"the student's weights",
}
POINTS = {("distill-1", "loss", step): 1.0 / step for step in range(1, 7)}


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


KNOWN = Undisturbed(
    frozenset(FILES), {name: digest(content) for name, content in FILES.items() if name != "result.json"}, POINTS, {}
)
POISONED = {"code": "worker_lost", "kind": "system", "message": "the worker stopped renewing its lease"}


@dataclass
class Played:
    """A correct round: a drained, a paused, a cancelled and retried, a poison and a deleted job."""

    database: Database
    settings: Settings
    ledger: Ledger = field(default_factory=Ledger)
    done: Done = field(default_factory=Done)
    jobs: dict[str, str] = field(default_factory=dict)

    def violations(self) -> list[str]:
        return Checker(self.database, self.settings, self.ledger, {"plain": KNOWN}, self.done).violations()

    def do(self, statement: str, **values: Any) -> None:
        with self.database.write() as session:
            session.execute(text(statement), values)

    def entry(self, which: str) -> Entry:
        return next(entry for entry in self.ledger.entries if self.jobs[which] in entry.job_ids)

    def blob(self, content: bytes) -> Path:
        name = digest(content).removeprefix("sha256:")
        return self.settings.blobs / name[:2] / name

    def submit(self, which: str) -> str:
        entry = self.ledger.open("plain")
        entry.poison = which == "poison"
        with self.database.write() as session:
            self.jobs[which] = submissions.submit(
                session, owner="local", spec={"name": which, "priority": 0, "device": "auto", "labels": {}},
                spec_digest="sha256:one", plan={}, idempotency_key=entry.key, max_queued=10,
            )  # fmt: skip
        entry.job_ids.add(self.jobs[which])
        return self.jobs[which]

    def claim(self) -> Fence:
        with self.database.write() as session:
            job = attempts.claim(session, "w", ("auto",), 30.0)
        assert job is not None
        return Fence(job.id, job.attempt)

    def write(self, function: Callable[..., Any], fence: Fence, *args: Any, **values: Any) -> Any:
        with self.database.write() as session:
            return function(session, fence, *args, **values)

    def ask(self, which: str, action: str) -> None:
        self.ledger.asks(self.jobs[which], action)
        with self.database.write() as session:
            actions.request(session, self.jobs[which], "local", action)
        self.ledger.answers.append(Answer(self.jobs[which], action, self.entry(which).status))

    def train(self, fence: Fence, steps: range) -> None:
        self.write(add_event, fence, "stage_started", {"stage": "distill-1"})
        points = [Point(*point, value) for point, value in POINTS.items() if point[2] in steps]
        self.write(records.report, fence, stage="distill-1", points=points)

    def save(self, fence: Fence, step: int) -> None:
        path = self.settings.jobs / fence.job_id / f"attempt-{fence.attempt}" / "checkpoints" / f"{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a checkpoint")
        self.write(
            records.record_checkpoint, fence, stage="distill-1", epoch=0, step=step,
            path=str(path.relative_to(self.settings.home)), digest="sha256:x", size=12,
        )  # fmt: skip

    def resume(self, fence: Fence, step: int) -> None:
        self.write(add_event, fence, "resumed_from_checkpoint", {"stage": "distill-1", "epoch": 0, "step": step})

    def finish(self, which: str, fence: Fence) -> None:
        store, source, artifacts = BlobStore(self.settings.blobs), self.settings.home / "source", []
        for name, content in FILES.items():
            source.write_bytes(content)
            artifacts.append(NewArtifact(name, *store.put(source), "application/octet-stream"))
        source.unlink()
        with self.database.write() as session:
            records.publish(session, fence, artifacts)
            attempts.succeed(session, fence, RESULT)
        self.entry(which).status = "succeeded"


def open_round(home: Path) -> Played:
    settings = Settings(home=home, data=home.parent / "data")
    home.mkdir(exist_ok=True)
    return Played(Database(settings.database), settings)


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Played:
    round = open_round(tmp_path_factory.mktemp("correct") / "home")
    schema.ensure(round.database)
    play(round)
    round.database.close()
    return round


@pytest.fixture
def played(correct: Played, tmp_path: Path) -> Iterator[Played]:
    """A copy of the correct round."""
    shutil.copytree(correct.settings.home, tmp_path / "home")
    round = open_round(tmp_path / "home")
    round.ledger, round.done, round.jobs = copy.deepcopy((correct.ledger, correct.done, correct.jobs))
    yield round
    round.database.close()


def play(round: Played) -> None:
    job = round.submit("drained")
    fence = round.claim()
    round.train(fence, range(1, 4))
    told = time.time()
    round.save(fence, 3)
    round.write(attempts.yield_job, fence, "drain")
    round.done.drained.append((job, 1, told))
    fence = round.claim()  # cannot read it just now
    round.write(attempts.release, fence, POISONED, max_failures=5, backoff_seconds=0)
    round.done.unread.append((job, 2))
    fence = round.claim()
    round.resume(fence, 3)
    round.train(fence, range(4, 7))
    round.save(fence, 6)
    round.finish("drained", fence)

    round.submit("paused")
    fence = round.claim()
    round.ask("paused", "pause")
    round.write(attempts.yield_job, fence, "pause")
    round.ask("paused", "resume")
    fence = round.claim()
    round.train(fence, range(1, 7))
    round.finish("paused", fence)

    round.submit("cancelled")
    round.ask("cancelled", "cancel")
    round.entry("cancelled").status = "cancelled"
    round.ask("cancelled", "retry")
    fence = round.claim()
    round.train(fence, range(1, 3))
    round.ask("cancelled", "cancel")
    round.write(attempts.yield_job, fence, "cancel")

    round.submit("poison")
    for _ in range(round.done.poison_failures):
        round.write(attempts.release, round.claim(), POISONED, max_failures=3, backoff_seconds=0)
    round.entry("poison").status = "failed"

    job = round.submit("deleted")
    round.ask("deleted", "cancel")
    with round.database.write() as session:
        actions.remove(session, job, "local")
    round.entry("deleted").deleting = round.entry("deleted").deleted = True


def test_a_correct_round_has_no_violation(played: Played) -> None:
    assert played.violations() == []


def append(event: str, **data: Any) -> Callable[[Played], None]:
    """One more line in the drained job's history."""

    def damage(played: Played) -> None:
        job = played.jobs["drained"]
        played.do("UPDATE jobs SET last_event = last_event + 1 WHERE id = :job", job=job)
        played.do(
            "INSERT INTO events (job_id, id, at, attempt, type, data)"
            " SELECT id, last_event, updated_at, attempt, :type, :data FROM jobs WHERE id = :job",
            job=job, type=event, data=json.dumps(data),
        )  # fmt: skip

    return damage


def change(which: str, statement: str) -> Callable[[Played], None]:
    return lambda played: played.do(statement, job=played.jobs[which])


def lost(played: Played) -> None:
    played.do("PRAGMA foreign_keys = ON")
    played.do("DELETE FROM jobs WHERE id = :job", job=played.jobs["drained"])


def stray(played: Played) -> None:
    (played.settings.home / "strange").write_bytes(b"left")


def second_job(played: Played) -> None:
    played.entry("drained").job_ids.add(played.jobs["paused"])


def other_key(played: Played) -> None:
    played.entry("drained").key = "another"


def comes_back(played: Played) -> None:
    played.entry("paused").deleted = True


def truncate(played: Played) -> None:
    played.blob(FILES["student.onnx"]).write_bytes(b"the stu")


def other_result(played: Played) -> None:
    played.do("UPDATE jobs SET result = :other WHERE id = :job", other='{"summary": "x"}', job=played.jobs["drained"])


def other_student(played: Played) -> None:
    source = played.settings.home / "source"
    source.write_bytes(b"another student")
    other, size = BlobStore(played.settings.blobs).put(source)
    source.unlink()
    played.do(
        "UPDATE artifacts SET digest = :other, size = :size WHERE name = 'student.onnx' AND job_id = :job",
        other=other, size=size, job=played.jobs["drained"],
    )  # fmt: skip


def one_checkpoint_twice(played: Played) -> None:
    played.do(
        "UPDATE checkpoints SET path = (SELECT max(path) FROM checkpoints WHERE job_id = :job) WHERE job_id = :job",
        job=played.jobs["drained"],
    )


METRIC = "metrics WHERE job_id = :job AND step = 2"
DAMAGES: dict[str, tuple[Callable[[Played], None], str]] = {
    "the client's own": (lambda played: played.ledger.blame("a 500"), r"^a 500$"),
    "lost": (lost, r"was acknowledged and is lost"),
    "two jobs for a key": (second_job, r"^key \w+ gave \["),
    "another key": (other_key, r"was acknowledged under another and is stored under"),
    "no key": (change("drained", "DELETE FROM idempotency_keys WHERE job_id = :job"), r"was made without a key"),
    "deleted and there": (comes_back, r"was deleted and is there again"),
    "a lost cancel": (
        lambda played: played.ledger.answers.append(Answer(played.jobs["drained"], "cancel", None)),
        r"^cancel job_\w+ was acknowledged and is lost",
    ),
    "cancelled unasked": (lambda played: played.ledger.asked.clear(), r": cancelled, and nobody asked for it"),
    "a gap in the history": (
        change("drained", "UPDATE jobs SET last_event = last_event + 1 WHERE id = :job"), r"do not count up to",
    ),
    "succeeded twice": (append("succeeded"), r"succeeded from succeeded"),
    "two final events": (append("failed"), r"2 final events instead of 1"),
    "an event after the end": (append("stage_started", stage="x"), r"\(stage_started\) of a succeeded job"),
    "an event of another attempt": (
        change("drained", "UPDATE events SET attempt = 2 WHERE id = 3 AND job_id = :job"), r"is of attempt 2, not 1",
    ),
    "another status than told": (
        change("drained", "UPDATE jobs SET status = 'failed' WHERE id = :job"), r"was succeeded, as its user was told",
    ),
    "another status than its history's": (
        change("drained", "UPDATE jobs SET status = 'failed' WHERE id = :job"),
        r"is failed, its history says succeeded",
    ),
    "an attempt too many": (
        change("drained", "UPDATE jobs SET attempt = 4 WHERE id = :job"), r"has attempt 4, its history says 3",
    ),
    "not terminal": (
        change("drained", "UPDATE jobs SET status = 'running' WHERE id = :job"), r"is running, not terminal",
    ),
    "a lease left": (
        change("drained", "UPDATE jobs SET lease_expires_at = 1 WHERE id = :job"), r"still has a lease",
    ),
    "failed for no reason": (
        lambda played: setattr(played.entry("poison"), "poison", False), r": failed: .*worker_lost",
    ),
    "a poison job tried too often": (
        lambda played: setattr(played.done, "poison_failures", 2), r"is poison and was tried 3 times instead of 2",
    ),
    "a poison job that did no harm": (
        lambda played: setattr(played.entry("paused"), "poison", True), r"is poison and succeeded",
    ),
    "artifacts of a cancelled job": (
        lambda played: played.do(
            "UPDATE artifacts SET job_id = :cancelled WHERE job_id = :job",
            cancelled=played.jobs["cancelled"], job=played.jobs["drained"],
        ),
        r"is cancelled and has artifacts",
    ),
    "two winners": (
        change("drained", "UPDATE attempts SET outcome = 'succeeded' WHERE number = 1 AND job_id = :job"),
        r"attempts \[1, 3\] succeeded, its last is 3",
    ),
    "a file too few": (
        change("drained", "DELETE FROM artifacts WHERE name = 'student.onnx' AND job_id = :job"),
        r"artifacts are not those of 'plain': \['student.onnx'\]",
    ),
    "published by a loser": (
        change("drained", "UPDATE artifacts SET created_at = created_at - 1000 WHERE job_id = :job"),
        r"was not published by attempt 3",
    ),
    "half an artifact": (truncate, r": student.onnx is damaged"),
    "an artifact gone": (lambda played: played.blob(FILES["student.onnx"]).unlink(), r": student.onnx is missing"),
    "another attempt's result": (other_result, r"come from another attempt than its result"),
    "other bytes": (other_student, r": student.onnx differs from that of an undisturbed run"),
    "a point missing": (change("drained", f"DELETE FROM {METRIC}"), r"1 points are missing, such as"),
    "a point too many": (
        change("drained", "UPDATE metrics SET step = 99 WHERE job_id = :job AND step = 2"), r"1 points are too many",
    ),
    "another value": (
        change("drained", "UPDATE metrics SET value = 0.123 WHERE job_id = :job AND step = 2"),
        r"1 points have other values",
    ),
    "drained without a checkpoint": (
        lambda played: played.done.drained.append((played.jobs["drained"], 1, time.time() + 1)),
        r"attempt 1 was drained within",
    ),
    "a checkpoint given up": (
        change("drained", "UPDATE events SET data = json_set(data, '$.step', 2)"
                          " WHERE type = 'resumed_from_checkpoint' AND job_id = :job"),
        r"went on from \('distill-1', 0, 2\), saved was \[\('distill-1', 0, 3\)\]",
    ),
    "told twice": (
        change("drained", "UPDATE events SET attempt = 3, type = 'stage_started', data = '{\"stage\": \"distill-1\"}'"
                          " WHERE type = 'resumed_from_checkpoint' AND job_id = :job"),
        r"attempt 3 told stage_started 2 times",
    ),
    "a file that nobody needs": (stray, r"left behind: strange"),
    "a checkpoint's file gone": (
        lambda played: [path.unlink() for path in played.settings.jobs.rglob("6.pt")] and None, r"a row names .*6\.pt",
    ),
    "one checkpoint twice": (one_checkpoint_twice, r"2 checkpoints of one job are"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_noticed_for_what_it_is(played: Played, name: str) -> None:
    damage, sentence = DAMAGES[name]
    damage(played)
    found = played.violations()
    assert any(re.search(sentence, violation) for violation in found), found


def history(*lines: tuple[float, int, str] | tuple[float, int, str, dict[str, Any]]) -> list[Event]:
    return [Event(id, *line[:3], line[3] if len(line) > 3 else {}) for id, line in enumerate(lines, start=1)]


def at(step: int, id: int = 1) -> dict[str, Any]:
    return {"id": id, "stage": "distill-1", "epoch": 0, "step": step}


@pytest.mark.parametrize(
    ("end", "seconds", "sentence"),
    [
        ("cancelled", 1, None),
        ("succeeded", 1, None),
        ("succeeded", 30, "succeeded 30.0 s after cancel_requested"),
        ("failed", 30, "failed 30.0 s after cancel_requested"),
        ("requeued", 1, "requeued in spite of cancel_requested"),
        ("paused", 1, "paused in spite of cancel_requested"),
    ],
)
def test_a_request_is_granted_or_its_attempt_ends_by_itself(end: str, seconds: float, sentence: str | None) -> None:
    events = history((0, 0, "submitted"), (1, 1, "claimed"), (2, 1, "cancel_requested"), (2 + seconds, 1, end))
    found = list(requests(events, {"cancel", "pause"}, 20))
    assert found == [] if sentence is None else sentence in found[0]


def test_cancel_outranks_pause() -> None:
    events = history((0, 1, "claimed"), (1, 1, "pause_requested"), (2, 1, "cancel_requested"), (3, 1, "cancelled"))
    assert list(requests(events, {"cancel", "pause"}, 20)) == []
    assert list(requests(events, {"cancel"}, 20)) == ["event 2: pause_requested, and nobody asked for it"]


def test_only_the_last_checkpoint_of_an_attempt_may_be_where_another_is() -> None:
    once = [(1.0, 1, "checkpoint", at(30, 1)), (2.0, 1, "checkpoint", at(60, 2))]
    assert list(repetitions(history(*once, (3.0, 1, "checkpoint", at(60, 3))))) == []
    again = [*once, (3.0, 1, "checkpoint", at(60, 3)), (4.0, 1, "checkpoint", at(90, 4))]
    assert list(repetitions(history(*again))) == ["attempt 1 told of its checkpoint at ('distill-1', 0, 60) twice"]


def test_a_drain_saves_unless_nothing_began_or_it_had_to_be_ended() -> None:
    claimed, began = (0.0, 1, "claimed"), (1.0, 1, "stage_started", {"stage": "distill-1"})
    saved, left = (2.0, 1, "checkpoint", at(30)), (8.0, 1, "requeued", {"reason": "drain"})
    assert list(drain(history(claimed, began, saved, left), 1, told=1.5, patience=7)) == []
    assert list(drain(history(claimed, left), 1, told=1.5, patience=7)) == []
    assert list(drain(history(claimed, began, saved, left), 1, told=0.5, patience=7)) == []
    assert list(drain(history(claimed, began, left), 1, told=0.5, patience=7)) == []
    assert len(list(drain(history(claimed, began, saved, left), 1, told=2.5, patience=7))) == 1


def test_a_checkpoint_that_was_unread_once_is_gone_on_from() -> None:
    first = [(0.0, 1, "claimed"), (1.0, 1, "checkpoint", at(30, 1)), (2.0, 1, "checkpoint", at(60, 2))]
    later = [(3.0, 2, "claimed"), (4.0, 2, "requeued"), (5.0, 3, "claimed")]
    events = [*first, *later]
    assert list(unread(history(*events, (6.0, 3, "resumed_from_checkpoint", at(60))), 2)) == []
    assert len(list(unread(history(*events, (6.0, 3, "resumed_from_checkpoint", at(30))), 2))) == 1
    assert len(list(unread(history(*first, later[0], (4.0, 2, "checkpoint_rejected", {"id": 2})), 2))) == 1


def test_a_shown_status_may_only_change_by_a_retry() -> None:
    ended = [(0.0, 0, "submitted"), (1.0, 0, "cancelled")]
    assert list(shown(history(*ended), "cancelled", "cancelled")) == []
    assert list(shown(history(*ended, (2.0, 0, "retried"), (3.0, 1, "succeeded")), "cancelled", "succeeded")) == []
    assert len(list(shown(history(*ended, (3.0, 1, "succeeded")), "cancelled", "succeeded"))) == 1
    assert len(list(shown(history(*ended), "succeeded", "cancelled"))) == 1
