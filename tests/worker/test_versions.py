"""A worker beside other versions: what it does not read it leaves, and under another schema it ends."""

import time
from contextlib import closing

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from kdcore import checkpoint
from kdcore.reporter import RecordingReporter
from storage import queries, workers
from storage.database import Database
from storage.settings import Settings
from storage.tables import Checkpoint, Job
from storage.workers import WorkerCard
from tests.versions import NEXT, rewrite, schema_at
from worker.keeper import EXIT_SCHEMA
from worker.slot import Slot

from .conftest import ENDLESS, SPEC, Rig


def of_next_version(session: Session, job_id: str) -> None:
    """As a newer API would store it: first in the queue, with a field that nobody here knows."""
    document = session.get_one(Job, job_id).spec | {"spec_version": NEXT, "unheard_of": True}
    session.execute(update(Job).where(Job.id == job_id).values(spec=document, priority=100))


def make_later(rig: Rig, job_id: str) -> tuple[Checkpoint, Checkpoint]:
    """Rewrite the newest checkpoint as a newer worker would have written it; it and the one before."""
    with rig.database.write() as session:
        newest, before = queries.list_checkpoints(session, job_id)
        path = rig.settings.home / newest.path
        rewrite(path, version=checkpoint.VERSION + 1, unheard_of=1)
        mine = Checkpoint.job_id == job_id, Checkpoint.id == newest.id
        session.execute(update(Checkpoint).where(*mine).values(digest=checkpoint.file_digest(path)))
    return newest, before


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)  # with what a form changes: tests/storage
def test_a_later_spec_waits_and_a_later_checkpoint_is_set_aside(
    rig: Rig, undisturbed: tuple[str, RecordingReporter]
) -> None:
    first = rig.start()
    later = rig.submit(SPEC, then=of_next_version)
    job_id = rig.submit(SPEC)
    rig.until(lambda: len(rig.until_training(job_id) and checkpoints(rig, job_id)) == 2)
    rig.stop(first)
    newest, before = make_later(rig, job_id)
    rig.start()
    job = rig.until_status(job_id, "succeeded", "failed")
    assert (job.status, job.error) == ("succeeded", None)
    rejected = rig.last(job_id, "checkpoint_rejected").data
    assert rejected["id"] == newest.id
    versions = f"is of version {checkpoint.VERSION + 1}, and this release reads version {checkpoint.VERSION}"
    assert f"{versions}; go on with the release that wrote it" in rejected["reason"]
    at = rig.last(job_id, "resumed_from_checkpoint").data
    assert (at["epoch"], at["step"]) == (before.epoch, before.step)
    assert rig.student(job_id) == undisturbed[0]

    rig.until(lambda: rig.idle() == 1)
    waiting = rig.job(later)
    assert (waiting.status, waiting.attempt) == ("queued", 0)
    with rig.database.read() as session:
        wait = queries.explain_waits(session.connection(), [waiting.id], 60)[waiting.id]
    assert wait.reason == f"no worker reads spec version {NEXT}; upgrade the workers"


def checkpoints(rig: Rig, job_id: str) -> list[Checkpoint]:
    with rig.database.read() as session:
        return queries.list_checkpoints(session, job_id)


@pytest.mark.parametrize("settings", ["deployed"], indirect=True)  # the next test looks at both forms
def test_a_worker_whose_schema_is_changed_under_it_drains_and_ends(rig: Rig) -> None:
    """It went on: training, claiming and taking jobs back, with tables that another version had changed."""
    worker = rig.start()
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    with schema_at(rig.database, "from_the_future"):
        rig.until(lambda: worker.poll() is not None, rig.settings.drain_seconds + 30)
        assert worker.returncode == EXIT_SCHEMA
        job = rig.job(job_id)
        assert (job.status, job.failures) == ("queued", 0)
        assert rig.last(job_id, "requeued").data == {"reason": "drain"}
        assert len(checkpoints(rig, job_id)) == 2
        said = (rig.settings.home / "worker-0.txt").read_text()
        assert said.count('"schema_changed"') == 1
        assert "went to revision from_the_future while this process, which needs" in said
        rig.nothing_left(10)


def test_a_slot_claims_nothing_under_another_schema(settings: Settings, database: Database) -> None:
    rig = Rig(settings.model_copy(update={"warm_spare": False}), database)
    card = WorkerCard("wrk_here", "here", 1, "cpu", "a CPU", 2**30, "0", 1)
    job_id = rig.submit(SPEC)
    with database.write() as session:
        workers.register(session, card)
    slot = Slot(rig.settings, card)
    with closing(slot), schema_at(database, "from_the_future"):
        began = time.monotonic()
        slot.work()
        assert time.monotonic() - began < 30
        assert (rig.job(job_id).status, rig.job(job_id).attempt) == ("queued", 0)
