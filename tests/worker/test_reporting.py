"""What training tells, as it arrives in storage. Both forms."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from kdcore import checkpoint
from kdcore.reporter import Progress, SavedCheckpoint
from storage import attempts, queries, submissions
from storage.database import Database
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job, Metric
from tests.conftest import OpenSettings
from tests.faults.proxy import Proxy
from worker import reporting
from worker.ledger import Ledger
from worker.reporting import StorageReporter


@pytest.fixture
def ledger(settings: Settings, database: Database) -> Ledger:
    """Of a running attempt."""
    return begin(settings, database)


@pytest.fixture
def far(open_settings: OpenSettings, tmp_path: Path) -> Iterator[tuple[Ledger, Proxy]]:
    """The ledger of a running attempt, and what lies between it and its PostgreSQL."""
    with open_settings("deployed", tmp_path) as settings:
        target = urlsplit(settings.database)
        with Proxy(target.hostname or "127.0.0.1", target.port or 5432) as proxy:
            database = Database(proxy.url(settings.database))
            yield begin(settings, database), proxy
            database.close()


def begin(settings: Settings, database: Database) -> Ledger:
    spec = {"name": "n", "priority": 0, "device": "auto", "labels": {}}
    with database.write() as session:
        submissions.submit(session, owner="o", spec=spec, spec_digest="d", plan={}, max_queued=9)
        job = attempts.claim(session, "w", ("auto",), 30)
        assert job is not None
    return Ledger(database, settings, Fence(job.id, 1))


def job_of(ledger: Ledger) -> Job:
    with ledger.database.read() as session:
        return session.get_one(Job, ledger.fence.job_id)


def steps(ledger: Ledger) -> list[int]:
    with ledger.database.read() as session:
        return list(session.scalars(select(Metric.step).order_by(Metric.step)))


def saved(ledger: Ledger, number: int) -> SavedCheckpoint:
    path = ledger.settings.home / f"checkpoint-{number}.pt"
    path.write_bytes(b"state")
    return SavedCheckpoint(path, "sha256:0", 5, "s", 1, number)


def test_everything_arrives_while_training_goes_on(ledger: Ledger) -> None:
    with StorageReporter(ledger, lambda: None) as reporter:
        reporter.stage("s")
        for step in range(1, 301):
            reporter.metrics("s", step, {"loss": step / 2})
        reporter.progress(Progress("s", 1, 2, 300, 600, 0.5, 1000.0, 3.0))
        reporter.event("noted", {"what": 1})
        end = time.monotonic() + 10
        while len(steps(ledger)) < 300:
            assert time.monotonic() < end
            time.sleep(0.02)
    job = job_of(ledger)
    assert job.stage == "s"
    assert job.progress is not None
    assert set(job.progress) == {
        "fraction", "epoch", "epochs", "step", "steps", "samples_per_second", "eta_seconds"
    }  # fmt: skip
    with ledger.database.read() as session:
        events = [event.type for event in queries.list_events(session, job.id, after=0, limit=99)]
    assert events == ["submitted", "claimed", "stage_started", "noted"]


def test_a_checkpoint_is_recorded_with_all_points_before_it(ledger: Ledger) -> None:
    with StorageReporter(ledger, lambda: None) as reporter:
        for number in range(1, 5):
            reporter.metrics("s", number, {"loss": 1.0})
            reporter.checkpoint(saved(ledger, number))
            assert steps(ledger) == list(range(1, number + 1))
    with ledger.database.read() as session:
        kept = queries.list_checkpoints(session, ledger.fence.job_id)
    assert [row.path for row in kept] == ["checkpoint-4.pt", "checkpoint-3.pt"]
    assert sorted(path.name for path in Path(ledger.settings.home).glob("*.pt")) == [
        "checkpoint-3.pt",
        "checkpoint-4.pt",
    ]


def test_what_was_committed_though_its_answer_was_lost_is_stored_once(
    far: tuple[Ledger, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "WRITE_SECONDS", 60.0)  # the thread shall not take the events away
    ledger, proxy = far
    with StorageReporter(ledger, lambda: None) as reporter:
        for number in range(1, 5):
            reporter.stage(f"stage-{number}")
            reporter.metrics("s", number, {"loss": 1.0})
            proxy.lose_commit_reply()
            reporter.checkpoint(saved(ledger, number))
            assert proxy.lost_replies == number
            checkpoint.prune(ledger.settings.home)
    with ledger.database.read() as session:
        events = queries.list_events(session, ledger.fence.job_id, after=0, limit=99)
        kept = [row.path for row in queries.list_checkpoints(session, ledger.fence.job_id)]
    assert [event.type for event in events] == ["submitted", "claimed", *4 * ["stage_started", "checkpoint"]]
    assert [event.data["stage"] for event in events[2::2]] == [f"stage-{number}" for number in range(1, 5)]
    assert steps(ledger) == [1, 2, 3, 4]
    assert kept == ["checkpoint-4.pt", "checkpoint-3.pt"]
    assert sorted(path.name for path in ledger.settings.home.glob("*.pt")) == sorted(kept)


def test_what_is_left_at_the_end_is_written(ledger: Ledger) -> None:
    with StorageReporter(ledger, lambda: None) as reporter:
        reporter.metrics("s", 1, {"loss": 1.0})
    assert steps(ledger) == [1]


def test_a_loop_is_told_at_once_when_its_attempt_is_stale(ledger: Ledger) -> None:
    ledger.give_up("drain")
    with StorageReporter(ledger, lambda: None) as reporter:
        reporter.metrics("s", 1, {"loss": 1.0})
        with pytest.raises(StaleAttemptError):
            poll_for(reporter, 10)
    assert steps(ledger) == []


def poll_for(reporter: StorageReporter, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reporter.requested()
        time.sleep(0.01)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "WRITE_SECONDS", 0.05)
    monkeypatch.setattr(reporting, "QUIET_SECONDS", 0.1)


def test_only_steps_prove_that_training_moves(ledger: Ledger, hasty: None) -> None:
    with StorageReporter(ledger, lambda: None) as reporter:
        reporter.stage("s")
        reporter.requested()
        began = until_moved(ledger, job_of(ledger).stepped_at)
        time.sleep(5 * reporting.QUIET_SECONDS)
        assert job_of(ledger).stepped_at == began
        reporter.requested()
        until_moved(ledger, began)


def test_before_the_first_step_reading_data_is_no_hang_but_not_for_ever(
    ledger: Ledger, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StorageReporter(ledger, lambda: None):
        until_moved(ledger, job_of(ledger).stepped_at)
    began = job_of(ledger).stepped_at
    monkeypatch.setattr(reporting, "LOADING_SECONDS", 0.0)
    with StorageReporter(ledger, lambda: None):
        time.sleep(5 * reporting.QUIET_SECONDS)
    assert job_of(ledger).stepped_at == began


def test_polls_while_data_is_read_prove_it_too_and_a_check_has_no_grace(ledger: Ledger, hasty: None) -> None:
    with StorageReporter(ledger, lambda: None) as reporter:
        reporter.requested()  # one file is compared; the next one may be fetched for long
        began = until_moved(ledger, job_of(ledger).stepped_at)
        until_moved(ledger, began)
    with StorageReporter(ledger, lambda: None, loading_seconds=0.0) as reporter:
        began = job_of(ledger).stepped_at
        time.sleep(5 * reporting.QUIET_SECONDS)
        assert job_of(ledger).stepped_at == began
        reporter.requested()
        until_moved(ledger, began)


def until_moved(ledger: Ledger, began: float | None) -> float | None:
    """When training moved on after `began`."""
    end = time.monotonic() + 10
    while (moved := job_of(ledger).stepped_at) == began:
        assert time.monotonic() < end
        time.sleep(0.02)
    return moved


def test_the_loop_waits_rather_than_fill_the_memory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "MOST_BUFFERED", 10)
    monkeypatch.setattr(reporting, "WRITE_SECONDS", 60.0)
    reporter = StorageReporter(ledger, lambda: None)
    for step in range(25):
        reporter.metrics("s", step, {"loss": 1.0})
    assert len(steps(ledger)) == 20
