"""What a worker reads and writes stays in its home and can be stored, whatever lies in its way."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from kdcore import checkpoint
from kdcore.checkpoint import file_digest
from kdcore.config import SPEC_VERSION
from kdcore.errors import TrainingError
from kdcore.plan import make_plan
from kdcore.spec import parse_spec, spec_digest, spec_document
from storage import attempts, records, submissions
from storage.blobs import BlobStore
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Checkpoint, Event, Job
from worker import files
from worker.ledger import Ledger
from worker.logfile import BoundedLog
from worker.resuming import find_resume

from .conftest import OWNER, SPEC


@pytest.fixture
def ledger(settings: Settings, database: Database) -> Ledger:
    """Of the first attempt of a job."""
    spec = parse_spec(SPEC)
    with database.write() as session:
        submissions.submit(
            session, owner=OWNER, spec=spec_document(spec), spec_digest=spec_digest(spec),
            plan=make_plan(spec).model_dump(mode="json"), max_queued=10,
        )  # fmt: skip
        job = attempts.claim(session, "worker-1", ("auto", "cpu"), 60.0, spec_version=SPEC_VERSION)
    assert job is not None
    return Ledger(database, settings, Fence(job.id, job.attempt))


def error_of(ledger: Ledger) -> Any:
    with ledger.database.read() as session:
        return session.scalar(select(Job.error).where(Job.id == ledger.fence.job_id))


def test_an_error_that_holds_what_no_database_stores_is_stored(ledger: Ledger) -> None:
    """A training process that dies may have printed anything; its last line becomes the job's error."""
    ledger.fail("crashed", "last words: \x00\udcff\ud800é")
    assert error_of(ledger)["message"] == "last words: \ufffd??é"


@pytest.mark.parametrize("kind", ["link", "pipe", "zero"])
def test_a_checkpoint_that_became_something_else_is_set_aside_unread(
    ledger: Ledger, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    """A pipe would be waited for, and a link to a device read without end."""
    outside = tmp_path_factory.mktemp("outside") / "checkpoint-001.pt"
    outside.write_bytes(b"precious")
    relative = Path("jobs") / ledger.fence.job_id / "attempt-1" / "checkpoints" / "checkpoint-001.pt"
    path = ledger.settings.home / relative
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if kind == "link" else "/dev/zero")
    row: dict[str, Any] = {"stage": "teacher-1", "epoch": 0, "step": 1, "digest": file_digest(outside), "size": 8}
    with ledger.database.write() as session:
        records.record_checkpoint(session, ledger.fence, path=str(relative), **row)
        job = session.get_one(Job, ledger.fence.job_id)
    assert find_resume(ledger, job, parse_spec(SPEC)) is None
    with ledger.database.read() as session:
        assert session.scalar(select(Checkpoint.id)) is None
        told = session.scalar(select(Event.data).where(Event.type == "checkpoint_rejected"))
    assert "no file of the service's home" in str(told)


def test_a_spoilt_checkpoint_is_set_aside_for_the_one_before(ledger: Ledger) -> None:
    """Which its digest tells: what was added at its end would not keep it from being read."""
    spec, folder = parse_spec(SPEC), ledger.settings.jobs / ledger.fence.job_id / "attempt-1" / "checkpoints"
    paths = []
    for step in (10, 20):
        content = {"spec_digest": spec_digest(spec), "state": {"stage": 0, "step": step}}
        path, digest = checkpoint.save(folder, content)
        paths.append(path)
        row: dict[str, Any] = {"stage": "teacher-1", "epoch": 0, "step": step, "digest": digest, "size": 8}
        with ledger.database.write() as session:
            relative = str(path.relative_to(ledger.settings.home))
            records.record_checkpoint(session, ledger.fence, path=relative, **row)
            job = session.get_one(Job, ledger.fence.job_id)
    older, newest = paths
    with newest.open("ab") as file:
        file.write(b"\x00")
    assert find_resume(ledger, job, spec) == older
    with ledger.database.read() as session:
        told = session.scalar(select(Event.data).where(Event.type == "checkpoint_rejected"))
        assert session.scalars(select(Checkpoint.step)).all() == [10]
    assert "do not have the digest they were saved with" in str(told)
    assert older.exists()


def test_a_damaged_teacher_teaches_nobody(ledger: Ledger, tmp_path: Path) -> None:
    """Its bytes are checked against their digest; as the disk may come back, it is a system error."""
    blobs, source = BlobStore(ledger.settings.blobs), tmp_path / "source"
    source.write_bytes(b"weights")
    digest, size = blobs.put(source)
    path, artifact = blobs.path(digest, size), records.NewArtifact(files.ARTIFACTS["teacher"], digest, size, "any/type")
    with ledger.database.write() as session:
        records.publish(session, ledger.fence, [artifact])
        job = session.get_one(Job, ledger.fence.job_id)
    model = SPEC["teachers"][0]["model"]
    taught = parse_spec(SPEC | {"teachers": [{"model": model, "weights": {"job": job.id}}]})

    def refused() -> tuple[str, str, str]:
        with pytest.raises(TrainingError) as caught:
            files.teacher_files(ledger, job, taught, lambda: None)
        return caught.value.kind, caught.value.code, caught.value.message

    path.write_bytes(b"Weights")
    kind, code, message = refused()
    assert (kind, code) == ("system", "no_teacher_weights")
    assert "are damaged" in message
    path.unlink()
    assert refused()[:2] == ("system", "no_teacher_weights")
    path.write_bytes(b"weights")
    assert files.teacher_files(ledger, job, taught, lambda: None) == {0: path}
    job.owner = "another"
    assert refused()[:2] == ("user", "no_teacher_weights")


def test_a_damaged_student_is_nobodys_beginning(ledger: Ledger, tmp_path: Path) -> None:
    blobs, source = BlobStore(ledger.settings.blobs), tmp_path / "source"
    source.write_bytes(b"weights")
    digest, size = blobs.put(source)
    path, artifact = blobs.path(digest, size), records.NewArtifact(files.ARTIFACTS["student"], digest, size, "any/type")
    with ledger.database.write() as session:
        records.publish(session, ledger.fence, [artifact])
        job = session.get_one(Job, ledger.fence.job_id)
    begun = parse_spec(SPEC | {"student": SPEC["student"] | {"weights": {"job": job.id}}})
    assert files.student_file(ledger, job, begun, lambda: None) == path
    assert files.student_file(ledger, job, parse_spec(SPEC), lambda: None) is None

    def refused() -> tuple[str, str]:
        with pytest.raises(TrainingError) as caught:
            files.student_file(ledger, job, begun, lambda: None)
        return caught.value.kind, caught.value.code

    path.write_bytes(b"Weights")
    assert refused() == ("system", "no_student_weights")
    job.owner = "another"
    assert refused() == ("user", "no_student_weights")


def test_a_checkpoint_beyond_the_home_is_set_aside_unread(ledger: Ledger, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / "checkpoint-001.pt"
    outside.write_bytes(b"precious")
    path = os.path.relpath(outside, ledger.settings.home)
    row: dict[str, Any] = {"stage": "teacher-1", "epoch": 0, "step": 1, "digest": file_digest(outside), "size": 8}
    with ledger.database.write() as session:
        records.record_checkpoint(session, ledger.fence, path=path, **row)
        job = session.get_one(Job, ledger.fence.job_id)
    assert find_resume(ledger, job, parse_spec(SPEC)) is None
    with ledger.database.read() as session:
        told = session.scalar(select(Event.data).where(Event.type == "checkpoint_rejected"))
    assert "no file of the service's home" in str(told)


@pytest.mark.parametrize("name", ["log.txt", ".log.txt.tmp"])
def test_a_log_is_never_written_through_a_link(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / name).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        BoundedLog(folder / "log.txt", 4096).write(b"x" * 10_000)
    assert precious.read_bytes() == b"precious"


def test_what_is_cut_from_a_log_comes_from_the_log(tmp_path: Path) -> None:
    """Not from whatever lies at its path by then: logs are served to their job's owner."""
    path = tmp_path / "log.txt"
    log = BoundedLog(path, 4096)
    log.write(b"mine\n" * 100)
    path.unlink()
    (tmp_path / "precious").write_bytes(b"precious\n" * 400)
    path.symlink_to(tmp_path / "precious")
    log.write(b"mine\n" * 2_000)
    assert b"precious" not in path.read_bytes()
    assert not path.is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious\n" * 400
