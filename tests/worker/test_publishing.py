"""Files before rows, and no sweep between them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kdcore.plan import make_plan
from kdcore.spec import parse_spec, spec_digest, spec_document
from storage import attempts, queries, submissions
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import BlobError
from storage.lifecycle import Fence
from storage.retention import sweep
from storage.settings import Settings
from storage.tables import Job
from worker.ledger import Ledger
from worker.publishing import publish

from .conftest import OWNER, SPEC


@pytest.fixture
def running(settings: Settings, database: Database) -> tuple[Ledger, Job]:
    """A job that has trained, and is to be published."""
    parsed = parse_spec(SPEC)
    with database.write() as session:
        job_id = submissions.submit(
            session, owner=OWNER, spec=spec_document(parsed), spec_digest=spec_digest(parsed),
            plan=make_plan(parsed).model_dump(mode="json"), max_queued=1,
        )  # fmt: skip
        job = attempts.claim(session, "wrk_here", ("auto", "cpu"), 60.0)
        assert job is not None
    out = settings.home / "out"
    out.mkdir()
    (out / "result.json").write_text(json.dumps({"of": job_id}))
    (out / "student.onnx").write_bytes(b"onnx")
    return Ledger(database, settings, Fence(job_id, job.attempt)), job


def swept(monkeypatch: pytest.MonkeyPatch, settings: Settings, database: Database, times: int) -> list[int]:
    """Before so many publications a sweep finds all blobs old: the worker was frozen for so long."""
    left, freed = [times], []
    original = BlobStore.keeping

    @contextmanager
    def keeping(self: BlobStore, blobs: Any) -> Iterator[None]:
        if left[0]:
            left[0] -= 1
            for _, path in self.all():
                os.utime(path, (1e9, 1e9))
            freed.append(sweep(database, settings).bytes)
        with original(self, blobs):
            yield

    monkeypatch.setattr(BlobStore, "keeping", keeping)
    return freed


def test_what_a_sweep_took_before_it_was_named_is_put_again(
    settings: Settings, database: Database, running: tuple[Ledger, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, job = running
    freed = swept(monkeypatch, settings, database, times=2)
    out = settings.home / "out"
    publish(ledger, job, out, {"a": 1})
    assert all(freed)
    assert len(freed) == 2
    with database.read() as session:
        artifacts = queries.list_artifacts(session, job.id)
        assert session.get_one(Job, job.id).status == "succeeded"
    assert [artifact.name for artifact in artifacts] == ["result.json", "student.onnx"]
    for artifact in artifacts:
        assert BlobStore(settings.blobs).path(artifact.digest, artifact.size).is_file()
    assert not out.exists()


def test_a_disk_that_keeps_nothing_fails_the_attempt_and_not_the_job(
    settings: Settings, database: Database, running: tuple[Ledger, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, job = running
    swept(monkeypatch, settings, database, times=3)
    with pytest.raises(BlobError, match="missing"):
        publish(ledger, job, settings.home / "out", {"a": 1})
    with database.read() as session:
        assert session.get_one(Job, job.id).status == "running"
        assert not queries.list_artifacts(session, job.id)


def test_a_sweep_waits_for_what_is_being_published(
    settings: Settings, database: Database, running: tuple[Ledger, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were read before the commit and files deleted after it: the job's result was gone."""
    ledger, job = running
    freed = []
    original = Ledger.write

    def write(self: Ledger, action: Any) -> Any:
        for _, path in BlobStore(settings.blobs).all():
            os.utime(path, (1e9, 1e9))
        freed.append(sweep(database, settings).bytes)
        return original(self, action)

    monkeypatch.setattr(Ledger, "write", write)
    publish(ledger, job, settings.home / "out", {"a": 1})
    assert freed == [0]
    with database.read() as session:
        for artifact in queries.list_artifacts(session, job.id):
            assert BlobStore(settings.blobs).path(artifact.digest, artifact.size).is_file()
