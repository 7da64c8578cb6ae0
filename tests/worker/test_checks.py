"""Uploads from end to end: sent by the client, checked by a worker, used by a job; and what interrupts that."""

import hashlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import worker.check
from distillery import ApiError, Client, UploadFailed
from kdcore.config import SPEC_VERSION
from kdcore.data import UploadConfig
from kdcore.errors import TrainingError
from kdcore.models.mlp import MLPConfig
from storage import attempts, references, uploads
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import ConflictError
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job
from tests.api.conftest import serving
from tests.worker.conftest import Rig
from worker.files import dataset_files
from worker.ledger import Ledger
from worker.wire import Inbox

MODEL = {"type": "mlp", "hidden": [16]}
OPTIONS = {"model": MODEL, "input_shape": [1, 8, 8], "classes": [str(digit) for digit in range(10)]}
PART = 65_536
PATIENCE = 240.0  # seconds: a busy machine takes a minute to import torch


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "teacher.safetensors"
    save_file(MLPConfig(type="mlp", hidden=[16]).build((1, 8, 8), 10, None).state_dict(), path)
    return path


@pytest.fixture
def client(rig: Rig) -> Iterator[Client]:
    """Of a real API beside the rig's workers."""
    rig.settings = rig.settings.model_copy(
        update={"min_free_bytes": 0, "poll_seconds": 0.05, "lease_seconds": 6.0, "max_part_bytes": PART}
    )
    with serving(rig.settings) as api, Client(api.url) as client:
        yield client


def pictures(path: Path) -> Path:
    """300 pictures, 8 by 8, of ten classes."""
    inputs = np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype(np.uint8)
    np.savez(path, inputs=inputs, labels=np.arange(300) % 10)
    return path


def spec(model_id: str, **changes: Any) -> dict[str, Any]:
    teacher = {"model": MODEL, "weights": {"model": model_id}}
    small = {"data": {"type": "digits"}, "student": {"model": {"type": "mlp", "hidden": [4]}}, "baseline": False}
    return small | {"teachers": [teacher], "stages": [{"epochs": 1}]} | changes


@pytest.mark.timeout(900)
def test_an_uploaded_teacher_is_checked_and_teaches(rig: Rig, client: Client, teacher: Path):
    rig.start()
    refuse_no_model(client, teacher.with_name("bad.safetensors"))
    upload = client.models.upload(teacher, "digits-teacher", options=OPTIONS)
    assert (upload["status"], upload["version"], upload["missing"]) == ("ready", 1, [])
    assert upload["profile"]["format"] == "safetensors"
    assert upload["digest"] == f"sha256:{hashlib.sha256(teacher.read_bytes()).hexdigest()}"
    assert not (rig.settings.uploads / upload["id"]).exists()
    other = {"model": {"type": "mlp", "hidden": [17]}, "weights": {"model": upload["id"]}}
    for method in (client.submit, client.plan):
        with pytest.raises(ApiError, match="checked against another model") as refused:
            method(spec(upload["id"], teachers=[other]))
        assert refused.value.errors[0]["loc"] == ["teachers", 0, "weights", "model"]
    dataset = client.datasets.upload(pictures(teacher.with_name("pictures.npz")))
    assert dataset["profile"]["samples"]["train"] + dataset["profile"]["samples"]["test"] == 300
    assert client.datasets.file(dataset["id"], dataset["files"][0]["name"])
    job = client.submit(spec(upload["id"], data={"type": "upload", "dataset": "pictures@1"}))
    with pytest.raises(ApiError, match="has not ended and reads") as refused:
        client.models.delete(upload["id"])
    assert refused.value.status == 409
    assert client.wait(job["id"], PATIENCE)["status"] == "succeeded"
    client.models.delete(upload["id"])
    client.datasets.delete(dataset["id"])
    with pytest.raises(ApiError, match="there is no model") as refused:
        client.submit(spec(upload["id"]))
    assert refused.value.errors[0]["loc"] == ["teachers", 0, "weights", "model"]


def refuse_no_model(client: Client, bad: Path) -> None:
    bad.write_bytes(b"no model at all" * 10_000)  # three parts
    with pytest.raises(UploadFailed, match="bad_model") as failed:
        client.models.upload(bad)
    found = client.models.get(failed.value.upload["id"])
    assert (found["status"], found["name"], found["error"]["kind"]) == ("failed", "bad", "user")
    with pytest.raises(ApiError, match="is failed, not ready"):
        client.submit(spec(found["id"]))


@pytest.mark.timeout(900)
def test_a_check_whose_worker_is_killed_is_taken_over(rig: Rig, client: Client, teacher: Path):
    first = rig.start()
    upload = client.models.upload(teacher, options=OPTIONS, wait=False)
    check_id = check_of(rig.database, upload["id"])
    rig.until(lambda: rig.job(check_id).status == "running")  # torch takes seconds to import
    for process in [*rig.trainings(first), rig.child(first)]:
        process.kill()
    first.send_signal(signal.SIGKILL)
    first.wait()
    rig.start()
    ready = client.models.wait(upload["id"], PATIENCE)
    assert ready["status"] == "ready"
    assert rig.job(check_id).attempt == 2


def check_of(database: Database, upload_id: str) -> str:
    with database.read() as session:
        return str(session.get_one(uploads.Upload, upload_id).check_id)


LIMITS = {"max_seconds": 60.0, "max_memory": None}
CHECK = {"spec_version": SPEC_VERSION, "name": "a", "priority": 0, "device": "cpu", "labels": {}, "limits": LIMITS}


def put_upload(
    database: Database,
    settings: Settings,
    content: bytes,
    *,
    kind: str = "model",
    options: Mapping[str, Any] | None = None,
    announced: str | None = None,
) -> str:
    """A complete upload in parts, as the API leaves it."""
    upload_id = uploads.new_id(uploads.PREFIXES[kind])
    with database.write() as session:
        upload = uploads.create(
            session, upload_id, kind=kind, owner="alice", name="a", file="a", size=len(content),
            part_size=PART, options=dict(options or {}), digest=announced,
        )  # fmt: skip
        for number in range(1, uploads.count_parts(upload) + 1):
            data = content[(number - 1) * PART : number * PART]
            path = settings.uploads / upload_id / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            relative = str(path.relative_to(settings.home))
            uploads.add_part(session, upload, number, size=len(data), digest=digest, path=relative)
        uploads.complete(session, upload, spec=CHECK, spec_digest="sha256:x", max_queued=10)
    return upload_id


def begin_check(database: Database, settings: Settings) -> tuple[Ledger, Inbox]:
    with database.write() as session:
        job = attempts.claim(session, "w1", ("auto", "cpu"), 60.0)
        assert job is not None
    return Ledger(database, settings, Fence(job.id, job.attempt)), cast(Inbox, SimpleNamespace(request=None))


def test_parts_are_joined_once_and_a_later_attempt_goes_on_from_there(
    settings: Settings, database: Database, teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    content = teacher.read_bytes()
    upload_id = put_upload(database, settings, content)
    ledger, inbox = begin_check(database, settings)

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("the process died here")

    with monkeypatch.context() as patch:
        patch.setattr(worker.check, "check_model", die)
        with pytest.raises(RuntimeError):
            worker.check.check_and_publish(ledger, inbox)
    assert not (settings.uploads / upload_id).exists()  # joined, and nothing but the blob is left
    ledger.release("killed", "it died")
    again, inbox = begin_check(database, settings)
    worker.check.check_and_publish(again, inbox)
    with database.read() as session:
        found = references.find_ready(session, "model", "a@1", "alice")
        assert found.upload.id == upload_id
        assert found.upload.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert found.profile is not None
        assert found.profile["format"] == "safetensors"
        assert session.get_one(Job, again.fence.job_id).attempt == 2


def test_parts_that_are_not_what_was_announced_or_had_arrived(settings: Settings, database: Database):
    content = bytes(range(256)) * 500
    put_upload(database, settings, content, announced="sha256:" + "0" * 64)
    with pytest.raises(TrainingError, match="2 parts make 128000 bytes with the digest sha256") as refused:
        worker.check.check_and_publish(*begin_check(database, settings))
    assert (refused.value.code, refused.value.kind) == ("digest_mismatch", "user")
    upload_id = put_upload(database, settings, content)
    (settings.uploads / upload_id / "2").write_bytes(b"\0" * (len(content) - PART))
    with pytest.raises(TrainingError, match="damaged on the service's disk: 2;") as refused:
        worker.check.check_and_publish(*begin_check(database, settings))
    assert (refused.value.code, refused.value.kind) == ("no_upload", "system")


def test_what_no_reader_foresaw_is_the_files_fault_and_not_tried_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    def stumble(*_: Any, **__: Any) -> None:
        raise ValueError("of a library\nin two lines")

    monkeypatch.setattr(worker.check, "check_model", stumble)
    put_upload(database, settings, bytes(100))
    with pytest.raises(TrainingError, match=r"cannot be read \(ValueError: of a library\)") as refused:
        worker.check.check_and_publish(*begin_check(database, settings))
    assert (refused.value.code, refused.value.kind) == ("bad_model", "user")


@pytest.mark.parametrize("announced", [True, False])
def test_a_part_that_is_gone_is_named_and_missing_again(settings: Settings, database: Database, announced: bool):
    content = bytes(range(256)) * 500
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    upload_id = put_upload(database, settings, content, announced=digest if announced else None)
    part = settings.uploads / upload_id / "2"
    part.unlink()
    ledger, inbox = begin_check(database, settings)
    with pytest.raises(TrainingError, match="no longer on the service's disk: 2;") as refused:
        worker.check.check_and_publish(ledger, inbox)
    assert (refused.value.code, refused.value.kind) == ("no_upload", "system")
    assert str(settings.home) not in refused.value.message
    with pytest.raises(TrainingError, match="missing: 2;"):  # the next attempt
        worker.check.check_and_publish(ledger, inbox)
    ledger.fail("no_upload", "as after the last attempt")
    with database.write() as session:
        upload = uploads.lock_upload(session, "model", upload_id, "alice")
        assert uploads.missing_parts(session, upload) == [2]
        with pytest.raises(ConflictError, match="are missing: 2"):
            uploads.complete(session, upload, spec={}, spec_digest="", max_queued=10)
        part.write_bytes(content[PART:])
        sent = f"sha256:{hashlib.sha256(content[PART:]).hexdigest()}"
        path = str(part.relative_to(settings.home))
        uploads.add_part(session, upload, 2, size=len(content) - PART, digest=sent, path=path)
        uploads.complete(session, upload, spec={}, spec_digest="", max_queued=10)
    again, inbox = begin_check(database, settings)
    with pytest.raises(TrainingError) as refused:
        worker.check.check_and_publish(again, inbox)
    assert refused.value.code == "bad_model"  # joined, and looked at
    with database.read() as session:
        assert session.get_one(uploads.Upload, upload_id).digest == digest


def test_the_bytes_of_a_dataset_are_compared_where_they_are_read(settings: Settings, database: Database):
    content, upload_id = b"a,b\n", uploads.new_id("ds")
    path = settings.home / "file"
    path.write_bytes(content)
    digest, size = BlobStore(settings.blobs).put(path)
    with database.write() as session:
        new = {"kind": "dataset", "owner": "alice", "name": "a", "file": "a", "part_size": PART}
        uploads.create(session, upload_id, **new, size=size, options={}).digest = digest  # type: ignore[arg-type]
    put_upload(database, settings, content)
    ledger, _ = begin_check(database, settings)
    reader: Any = SimpleNamespace(owner="alice"), SimpleNamespace(data=UploadConfig(dataset=upload_id))
    find = dataset_files(ledger, *reader, lambda: None)[upload_id]
    assert find().read_bytes() == content
    BlobStore(settings.blobs).path(digest, size).write_bytes(b"c,d\n")
    find = dataset_files(ledger, *reader, lambda: None)[upload_id]  # nothing is read
    with pytest.raises(TrainingError, match="the dataset's file is damaged") as refused:
        find()
    assert (refused.value.code, refused.value.kind) == ("no_dataset", "system")


def test_the_text_of_an_error_shows_no_path_of_the_service(settings: Settings, database: Database):
    upload_id = put_upload(database, settings, b"bytes")
    ledger, inbox = begin_check(database, settings)
    with pytest.raises(TrainingError):
        worker.check.check_and_publish(ledger, inbox)
    with database.read() as session:
        digest = str(session.get_one(uploads.Upload, upload_id).digest)
    blob = BlobStore(settings.blobs).path(digest, 5)
    blob.unlink()
    blob.symlink_to(blob)  # what reads it is told a path
    with pytest.raises(TrainingError) as refused:
        worker.check.check_and_publish(ledger, inbox)
    assert (refused.value.code, refused.value.kind) == ("no_upload", "system")
    assert str(settings.home) not in refused.value.message
