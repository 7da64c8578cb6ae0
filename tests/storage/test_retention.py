"""What is swept, and above all what is not."""

import os
import threading
import time

import pytest
from sqlalchemy import inspect

from storage import attempts, queries, records, submissions, upload_removal, uploads, workers
from storage.blobs import BlobStore
from storage.errors import NotFoundError
from storage.ids import new_id
from storage.retention import sweep, used_bytes

OLD = 10 * 86_400.0


class Disk:
    """Real files of jobs, as workers leave them; all old enough to be swept."""

    def __init__(self, jobs, settings):
        self.jobs, self.settings, self.store = jobs, settings, BlobStore(settings.blobs)

    def write(self, relative, size=100, *, young=False):
        path = self.settings.home / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        if not young:
            os.utime(path, (1e9, 1e9))
            for parent in list(path.parents)[:3]:
                os.utime(parent, (1e9, 1e9))
        return path

    def checkpoint(self, fence, name, size=100):
        relative = f"jobs/{fence.job_id}/attempt-{fence.attempt}/checkpoints/{name}"
        with self.jobs.database.write() as session:
            records.record_checkpoint(
                session, fence, stage="a", epoch=1, step=1, path=relative, digest="sha256:x", size=size
            )
        return self.write(relative, size)

    def put(self, content, *, young=False):
        source = self.settings.home / "source"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(content)
        digest, size = self.store.put(source)
        path = self.store.path(digest, size)
        if not young:
            os.utime(path, (1e9, 1e9))
        return records.NewArtifact("student.onnx", digest, size, "application/octet-stream"), path

    def succeed(self, content, *, age=0.0, fence=None):
        fence = fence or self.jobs.running()
        artifact, path = self.put(content)
        with self.jobs.database.write() as session:
            records.publish(session, fence, [artifact])
            attempts.succeed(session, fence, {})
        self.jobs.set(fence.job_id, finished_at=time.time() - age)
        return fence.job_id, path


@pytest.fixture
def disk(jobs, settings):
    return Disk(jobs, settings)


def run(disk, **values):
    return sweep(disk.jobs.database, disk.settings.model_copy(update=values))


def test_an_empty_service_has_nothing_to_sweep(disk):
    assert run(disk).bytes == 0


def test_days(disk, jobs):
    ended = {}
    for status in ("failed", "cancelled", "succeeded"):
        for age in (6.5, 7.5):
            fence = jobs.running()
            path = disk.checkpoint(fence, "a.pt")
            jobs.end(fence, status)
            jobs.set(fence.job_id, finished_at=time.time() - age * 86_400)
            ended[status, age] = path
    done = run(disk)
    assert (done.checkpoints, done.bytes) == (3, 300)
    assert {key for key, path in ended.items() if path.exists()} == {(s, a) for s, a in ended if a == 6.5}


@pytest.mark.parametrize("situation", ["running", "paused", "queued"])
def test_what_a_job_needs_stays_however_old(disk, jobs, situation):
    fence = jobs.running()
    kept = [disk.checkpoint(fence, name) for name in ("a.pt", "b.pt")]
    unnamed = disk.write(f"jobs/{fence.job_id}/attempt-1/checkpoints/.c.tmp")
    out = disk.write(f"jobs/{fence.job_id}/attempt-1/out/student.onnx")
    log = disk.write(f"jobs/{fence.job_id}/attempt-1/log.txt")
    if situation != "running":
        with jobs.database.write() as session:
            attempts.yield_job(session, fence, {"paused": "pause", "queued": "drain"}[situation])
    jobs.set(fence.job_id, created_at=1.0, updated_at=1.0, available_at=1.0)
    coming = disk.write(f"jobs/{fence.job_id}/attempt-2/checkpoints/d.pt")
    run(disk, keep_checkpoints_days=0.0, keep_artifacts_days=0.0, disk_quota_bytes=1)
    assert [path.exists() for path in (*kept, log, coming)] == [True] * 4
    assert len(jobs.checkpoints(fence.job_id)) == 2
    assert [unnamed.exists(), out.exists()] == [situation == "running"] * 2


def upload(disk, content, **values):
    """A model in one old part, not complete."""
    upload_id = new_id("mdl")
    part = disk.write(f"uploads/{upload_id}/1-a", len(content))
    with disk.jobs.database.write() as session:
        row = uploads.create(
            session, upload_id, kind="model", owner="alice", name="a", file="", size=len(content), part_size=100,
            options={}, **values,
        )  # fmt: skip
        uploads.add_part(session, row, 1, size=len(content), digest="d", path=f"uploads/{upload_id}/1-a")
    return upload_id, part


def complete(disk, upload_id):
    spec = {"name": "a", "priority": 10_000, "device": "cpu", "labels": {}}
    with disk.jobs.database.write() as session:
        row = uploads.lock_upload(session, "model", upload_id, "alice")
        uploads.complete(session, row, spec=spec, spec_digest="s", max_queued=100)
    return disk.jobs.claim()


def test_uploads_keep_their_bytes_and_leave_them_when_they_go(disk, jobs):
    upload_id, part = upload(disk, b"x" * 50)
    stray = [disk.write(f"uploads/{upload_id}/1-b"), disk.write("uploads/mdl_gone/1-a")]
    fence = complete(disk, upload_id)
    artifact, page = disk.put(b"page")
    whole, blob = disk.put(b"x" * 50)
    run(disk, keep_unfinished_uploads_days=0.0)
    assert [path.exists() for path in (part, *stray)] == [True, False, False]
    assert not blob.exists()  # nothing named it yet
    whole, blob = disk.put(b"x" * 50)
    artifact, page = disk.put(b"page")
    with jobs.database.write() as session:
        uploads.join(session, fence, upload_id, whole.digest)
        records.publish(session, fence, [artifact])
        attempts.succeed(session, fence, {"profile": {}})
    jobs.set(fence.job_id, finished_at=1.0)
    os.utime(part.parent, (1e9, 1e9))  # the stray one was deleted from it
    run(disk, keep_checkpoints_days=0.0, keep_artifacts_days=0.0, keep_unfinished_uploads_days=0.0, disk_quota_bytes=1)
    assert [blob.exists(), page.exists(), part.exists()] == [True, True, False]
    with jobs.database.write() as session:
        upload_removal.remove(session, uploads.lock_upload(session, "model", upload_id, "alice"))
    run(disk)
    assert [blob.exists(), page.exists()] == [False, False]


def test_what_a_check_found_is_read_when_it_is_asked_for(disk, jobs):
    upload_id, _ = upload(disk, b"x" * 50)
    fence = complete(disk, upload_id)
    with jobs.database.write() as session:
        attempts.succeed(session, fence, {"profile": {"tensors": 7}})
    with jobs.database.read() as session:
        (listed,), more = uploads.page_uploads(session, "model", "alice", limit=10, status="ready")
        assert not more
        assert {"plan", "spec", "result"} <= inspect(listed.check).unloaded
        assert uploads.get_upload(session, "model", upload_id, "alice").profile == {"tensors": 7}


def test_uploads_that_nobody_completes_go(disk, jobs):
    upload_id, part = upload(disk, b"x")
    assert run(disk).uploads == 0
    assert part.exists()
    assert run(disk, keep_unfinished_uploads_days=0.0).uploads == 1
    assert not part.exists()
    with jobs.database.read() as session, pytest.raises(NotFoundError):
        uploads.get_upload(session, "model", upload_id, "alice")


@pytest.mark.parametrize("joined", [False, True])
def test_uploads_that_failed_go_unless_they_are_checked_again(disk, jobs, joined):
    upload_id, part = upload(disk, b"x")
    fence = complete(disk, upload_id)
    artifact, blob = disk.put(b"x")
    if joined:
        with jobs.database.write() as session:
            uploads.join(session, fence, upload_id, artifact.digest)
    jobs.end(fence, "failed")
    bytes_left = blob if joined else part
    assert run(disk).uploads == 0
    assert bytes_left.exists()
    with jobs.database.write() as session:
        again = uploads.lock_upload(session, "model", upload_id, "alice")
        uploads.complete(session, again, spec={}, spec_digest="s", max_queued=100)
    assert run(disk, keep_unfinished_uploads_days=0.0).uploads == 0
    jobs.end(jobs.claim(), "failed")
    assert run(disk, keep_unfinished_uploads_days=0.0).uploads == 1
    assert not bytes_left.exists()
    assert jobs.everything()["jobs"] == []


def test_a_young_file_is_left_alone(disk, jobs):
    fence = jobs.running()
    jobs.end(fence, "failed")
    young = disk.write(f"jobs/{fence.job_id}/attempt-1/checkpoints/a.pt", young=True)
    folder = disk.write("jobs/job_gone/attempt-1/log.txt", young=True)
    run(disk)
    assert young.exists()
    assert folder.exists()
    run(disk, sweep_grace_seconds=0.0)
    assert not young.exists()
    assert not folder.parent.parent.exists()


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_host_whose_clock_is_off_deletes_nothing_that_is_young(disk, jobs, monkeypatch, hours):
    """What was put a moment ago is yet to be published; what is old is old by the files' own clock."""
    real = time.time
    fence = jobs.running()
    jobs.end(fence, "failed")
    _, young = disk.put(b"young", young=True)
    _, old = disk.put(b"old")
    half = disk.write("blobs/.0123.tmp", 9, young=True)
    log = disk.write("jobs/job_gone/attempt-1/log.txt", young=True)
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    run(disk)
    assert [young.exists(), half.exists(), log.exists(), old.exists()] == [True, True, True, False]


def test_folders_of_deleted_jobs_go_whole(disk, jobs):
    kept = jobs.running()
    log = disk.write(f"jobs/{kept.job_id}/attempt-1/log.txt")
    gone = disk.write("jobs/job_gone/attempt-1/checkpoints/a.pt", 70)
    disk.write("jobs/job_gone/attempt-1/log.txt", 30)
    stray = disk.write("jobs/README", 5)
    assert run(disk).bytes == 100
    assert not (disk.settings.jobs / "job_gone").exists()
    assert [log.exists(), gone.exists(), stray.exists()] == [True, False, True]


def test_blobs_that_no_artifact_names(disk):
    _, shared = disk.succeed(b"shared")
    disk.succeed(b"shared")
    _, orphan = disk.put(b"orphan")
    half = disk.write("blobs/.0123.tmp", 9)
    os.utime(half, (1e9, 1e9))
    assert run(disk).bytes == 6 + 9
    assert [shared.exists(), orphan.exists(), half.exists()] == [True, False, False]


def test_artifacts_stay_until_their_days_are_over(disk):
    _, old = disk.succeed(b"old", age=OLD)
    _, new = disk.succeed(b"new")
    run(disk)
    assert old.exists()
    assert run(disk, keep_artifacts_days=9.0).artifacts == 1
    assert [old.exists(), new.exists()] == [False, True]


@pytest.mark.parametrize("values", [{"keep_artifacts_days": 1.0}, {"disk_quota_bytes": 1}])
@pytest.mark.parametrize("before", [0, 1, 15])
def test_a_teacher_that_another_job_waits_for_stays(disk, jobs, values, before):
    teacher, path = disk.succeed(b"teacher", age=OLD)
    student = jobs.submit(teachers=[{"weights": None}] * before + [{"weights": {"job": teacher}}])
    jobs.submit(teachers=[{"weights": None}])
    jobs.submit(teachers=[{"weights": {"file": "a.safetensors"}}])
    assert run(disk, **values).artifacts == 0
    assert path.exists()
    jobs.ask(student, "cancel")
    assert run(disk, **values).artifacts == 1
    assert not path.exists()


def test_a_student_that_another_job_begins_with_stays(disk, jobs):
    first, path = disk.succeed(b"student", age=OLD)
    second = jobs.submit(teachers=[{"weights": None}], student={"weights": {"job": first}})
    assert run(disk, keep_artifacts_days=1.0).artifacts == 0
    assert path.exists()
    jobs.ask(second, "cancel")
    assert run(disk, keep_artifacts_days=1.0).artifacts == 1


@pytest.mark.parametrize("values", [{"keep_artifacts_days": 1.0}, {"disk_quota_bytes": 1}])
def test_a_teacher_that_a_submission_under_way_has_seen_stays(disk, jobs, database, values):
    teacher, path = disk.succeed(b"teacher", age=OLD)
    sweeping = threading.Thread(target=run, args=(disk,), kwargs=values)
    with database.write() as session:
        queries.get_job(session, teacher, "alice", keep=True)
        assert queries.list_artifacts(session, teacher)
        sweeping.start()
        time.sleep(0.3)  # the sweep looks now, before the submission is committed
        spec = {"name": "a-job", "priority": 0, "device": "auto", "labels": {}}
        spec["teachers"] = [{"weights": {"job": teacher}}]
        submissions.submit(session, owner="alice", spec=spec, spec_digest="d", plan={}, max_queued=9)
    sweeping.join(30)
    assert not sweeping.is_alive()
    assert path.exists()
    assert len(jobs.everything()["artifacts"]) == 1


def test_the_quota_takes_the_oldest_and_checkpoints_first(disk, jobs):
    ages = {}
    for age in (3, 2, 1):
        fence = jobs.running()
        checkpoint = disk.checkpoint(fence, "a.pt", 100)
        _, blob = disk.succeed(bytes([age]) * 100, age=age * 3600.0, fence=fence)
        ages[age] = (checkpoint, blob)
    running = disk.checkpoint(jobs.running(), "r.pt", 100)

    def there():
        return {age: (checkpoint.exists(), blob.exists()) for age, (checkpoint, blob) in ages.items()}

    assert run(disk, disk_quota_bytes=700).bytes == 0
    run(disk, disk_quota_bytes=600)
    assert there() == {3: (False, True), 2: (True, True), 1: (True, True)}
    done = run(disk, disk_quota_bytes=250)
    assert there() == {3: (False, False), 2: (False, False), 1: (False, True)}
    assert (done.checkpoints, done.artifacts) == (2, 2)
    run(disk, disk_quota_bytes=1)
    assert there()[1] == (False, False)
    assert running.exists()


def test_what_checks_found_is_not_taken_from_jobs(disk, jobs):
    upload_id, _ = upload(disk, b"x" * 50)
    fence = complete(disk, upload_id)
    artifact, page = disk.put(b"page" * 100)
    with jobs.database.write() as session:
        records.publish(session, fence, [artifact])
        attempts.succeed(session, fence, {"profile": {}})
    _, student = disk.succeed(b"student", age=3600.0)
    run(disk, disk_quota_bytes=100)
    assert [page.exists(), student.exists()] == [True, True]


def test_a_file_that_still_grows_in_an_old_folder_stays(disk):
    part = disk.write("uploads/mdl_coming/1-a")
    os.utime(part, None)
    os.utime(part.parent, (1e9, 1e9))
    run(disk)
    assert part.exists()


def test_shared_bytes_count_once(disk, jobs, database):
    for _ in range(3):
        disk.succeed(b"same")
    with database.read() as session:
        assert used_bytes(session) == 4


def test_sweeps_at_once_do_not_disturb_each_other(disk, jobs, at_once):
    for number in range(15):
        fence = jobs.running()
        disk.checkpoint(fence, "a.pt")
        jobs.end(fence, "failed")
        jobs.set(fence.job_id, finished_at=1.0)
        disk.write(f"jobs/job_gone{number}/attempt-1/log.txt")
        disk.put(bytes([number]))
    results = at_once(4, lambda _: run(disk))
    assert not [result for result in results if isinstance(result, Exception)], results
    assert sum(result.checkpoints for result in results) == 15
    assert list(disk.settings.jobs.glob("job_gone*")) == []
    assert list(disk.store.all()) == []
    assert jobs.everything()["checkpoints"] == []


def test_what_an_ended_attempt_left_half_written_goes_and_its_log_stays(disk, jobs):
    fence = jobs.running()
    kept = disk.checkpoint(fence, "checkpoint-001.pt")
    folder = f"jobs/{fence.job_id}/attempt-{fence.attempt}"
    log = disk.write(f"{folder}/log.txt")
    left = [disk.write(f"{folder}/{name}") for name in (".log.txt.tmp", "checkpoints/.checkpoint-x.tmp", "out/a.onnx")]
    sweep(jobs.database, disk.settings)
    assert all(path.exists() for path in (kept, log, *left))  # it still runs
    with jobs.database.write() as session:
        attempts.yield_job(session, fence, "drain")
    sweep(jobs.database, disk.settings)
    assert kept.exists()
    assert log.exists()
    assert not any(path.exists() for path in left)


def test_the_flag_of_a_worker_that_was_killed_while_it_drained_goes(disk, jobs):
    here, gone = "wrk_here", "wrk_gone"
    with jobs.database.write() as session:
        workers.register(session, workers.WorkerCard(here, "host", 1, "cpu", "a CPU", 2**30, "0", 1))
    flags = {id: disk.write(f"workers/{id}.draining") for id in (here, gone)}
    sweep(jobs.database, disk.settings)
    assert flags[here].exists()
    assert not flags[gone].exists()
