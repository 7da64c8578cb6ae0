"""From which checkpoint an attempt goes on, and which ones it leaves alone."""

import errno
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from kdcore import checkpoint
from kdcore.config import SPEC_VERSION
from kdcore.errors import TrainingError
from kdcore.spec import parse_spec, spec_digest, spec_document
from storage import attempts, queries, records, submissions
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job, Metric
from worker.ledger import Ledger
from worker.places import attempt_folder
from worker.resuming import find_resume

from .conftest import OWNER, SPEC

POINT = records.Point("teacher-1", "loss", 7, 0.5)


@pytest.fixture
def ledger(settings: Settings, database: Database) -> Ledger:
    """Of an attempt with two checkpoints, at step 1 and 2 of the teacher's training, and a point beyond them."""
    spec = parse_spec(SPEC)
    with database.write() as session:
        submissions.submit(
            session, owner=OWNER, spec=spec_document(spec), spec_digest=spec_digest(spec), plan={}, max_queued=10
        )
        job = attempts.claim(session, "worker-1", ("auto", "cpu"), 60.0, spec_version=SPEC_VERSION)
    assert job is not None
    ledger = Ledger(database, settings, Fence(job.id, job.attempt))
    for step in (1, 2):
        content = {"spec_digest": spec_digest(spec), "state": {"stage": 0, "step": step}}
        path, digest = checkpoint.save(attempt_folder(settings, ledger.fence) / "checkpoints", content)
        row = {"path": str(path.relative_to(settings.home)), "digest": digest, "size": path.stat().st_size}
        with database.write() as session:
            records.record_checkpoint(session, ledger.fence, stage="teacher-1", epoch=0, step=step, **row)
    with database.write() as session:
        records.report(session, ledger.fence, points=[POINT])
    return ledger


def find(ledger: Ledger) -> Path | None:
    with ledger.database.read() as session:
        job = session.get_one(Job, ledger.fence.job_id)
    return find_resume(ledger, job, parse_spec(SPEC))


def held(ledger: Ledger) -> tuple[list[str], list[int], int]:
    """The names of the checkpoints, newest first, the steps that have a point, and how many events there are."""
    with ledger.database.read() as session:
        rows = queries.list_checkpoints(session, ledger.fence.job_id)
        steps = list(session.scalars(select(Metric.step)))
        return [Path(row.path).name for row in rows], steps, session.get_one(Job, ledger.fence.job_id).last_event


@pytest.mark.parametrize("method", ["open", "resolve"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM])
def test_a_checkpoint_that_cannot_be_read_now_is_left_for_another_try(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    before, whole = held(ledger), getattr(Path, method)

    def fails(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".pt":
            raise OSError(number, "the disk is away")
        return whole(path, *args, **options)

    with monkeypatch.context() as disk:
        disk.setattr(Path, method, fails)
        with pytest.raises(TrainingError) as caught:
            find(ledger)
    assert caught.value.kind == "system"
    assert caught.value.code == ("out_of_memory" if number == errno.ENOMEM else "disk")
    assert held(ledger) == before
    found = find(ledger)
    assert found is not None
    assert found.name == "checkpoint-002.pt"
    assert held(ledger) == (before[0], [], before[2])


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_checkpoint_that_is_gone_or_damaged_is_set_aside_for_the_one_before(ledger: Ledger, damage: str) -> None:
    path = attempt_folder(ledger.settings, ledger.fence) / "checkpoints" / "checkpoint-002.pt"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[::-1])
    found = find(ledger)
    assert found is not None
    assert found.name == "checkpoint-001.pt"
    assert held(ledger)[:2] == (["checkpoint-001.pt"], [])
