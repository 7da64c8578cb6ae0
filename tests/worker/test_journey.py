"""One job through all that can happen to it, and out the other end as if nothing had. Both forms."""

import signal
import subprocess
import time
from hashlib import sha256

import psycopg

from kdcore.reporter import RecordingReporter
from storage import queries
from storage.blobs import BlobStore

from .conftest import SOON, SPEC, Rig, alive


def test_a_job_survives_what_can_happen(rig: Rig, undisturbed: tuple[str, RecordingReporter]) -> None:
    first = rig.start()
    job_id = rig.submit(SPEC)
    if rig.settings.broker is None:
        is_paused(rig, job_id)
        loses_its_training(rig, first, job_id)
    else:
        loses_the_database(rig, job_id)
    loses_its_supervisor(rig, first, job_id)
    is_drained(rig, first, job_id)
    loses_its_worker(rig, rig.start(), job_id)
    last = rig.start()
    succeeds(rig, job_id, undisturbed)
    assert rig.stop(last) < 10
    rig.nothing_left(5)
    with rig.database.read() as session:
        assert last.pid not in {row.pid for row in queries.workers.present(session, 60)}


def is_paused(rig: Rig, job_id: str) -> None:
    """At once, with a checkpoint, and the worker is free."""
    rig.until_training(job_id)
    rig.ask(job_id, "pause")
    assert rig.until_status(job_id, "paused").failures == 0
    assert rig.last(job_id, "paused").at - rig.last(job_id, "pause_requested").at < SOON
    rig.until(lambda: rig.idle() == 1)
    with rig.database.read() as session:
        checkpoint = queries.list_checkpoints(session, job_id)[0]
    content = (rig.settings.home / checkpoint.path).read_bytes()
    assert (f"sha256:{sha256(content).hexdigest()}", len(content)) == (checkpoint.digest, checkpoint.size)
    rig.ask(job_id, "resume")


def loses_its_training(rig: Rig, worker: subprocess.Popen[bytes], job_id: str) -> None:
    """A system failure that names the signal."""
    attempt = rig.until_training(job_id).attempt
    rig.trainings(worker)[0].send_signal(signal.SIGKILL)
    rig.until(lambda: rig.job(job_id).attempt == attempt + 1)
    error = rig.last(job_id, "requeued").data["error"]
    assert (error["code"], error["kind"]) == ("killed", "system")
    assert "SIGKILL" in error["message"]


def loses_the_database(rig: Rig, job_id: str) -> None:
    """For less than the lease: training goes on as if nothing had been."""
    rig.until_training(job_id)
    url = rig.settings.database
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        time.sleep(3)
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    before = len(rig.events(job_id))
    rig.until(lambda: len(rig.events(job_id)) > before)
    assert rig.job(job_id).attempt == 1


def loses_its_supervisor(rig: Rig, worker: subprocess.Popen[bytes], job_id: str) -> None:
    """Training dies with it, and the job need not wait for its lease."""
    attempt = rig.until_training(job_id).attempt
    training = rig.trainings(worker)[0]
    rig.child(worker).send_signal(signal.SIGKILL)
    rig.until(lambda: not alive(training), 5)
    rig.until(lambda: rig.job(job_id).attempt == attempt + 1)
    error = rig.last(job_id, "requeued").data["error"]
    assert (error["code"], error["message"]) == ("worker_lost", "the process that supervised training died")


def is_drained(rig: Rig, worker: subprocess.Popen[bytes], job_id: str) -> None:
    """SIGTERM: back to the queue at no cost, and nothing of the worker is left."""
    failures = rig.until_training(job_id).failures
    assert rig.stop(worker) < rig.settings.drain_seconds + 5
    job = rig.job(job_id)
    assert job.status == "queued"
    assert job.failures <= failures  # 0 with the first checkpoint
    assert rig.last(job_id, "requeued").data == {"reason": "drain"}
    rig.nothing_left(5)
    assert rig.idle() == 0


def loses_its_worker(rig: Rig, worker: subprocess.Popen[bytes], job_id: str) -> None:
    """The orphaned child gives the job back by itself and goes."""
    rig.until_training(job_id)
    worker.kill()
    rig.until(lambda: rig.job(job_id).status == "queued")
    assert rig.last(job_id, "requeued").data == {"reason": "drain"}
    rig.nothing_left(10)


def succeeds(rig: Rig, job_id: str, undisturbed: tuple[str, RecordingReporter]) -> None:
    """To the byte as the library alone would, no point missing or twice, artifacts whole."""
    digest, reporter = undisturbed
    job = rig.until_status(job_id, "succeeded", "failed")
    assert (job.status, job.error) == ("succeeded", None)
    assert rig.student(job_id) == digest
    recorded: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for stage, step, values in reporter.points:
        for name, value in values.items():
            recorded.setdefault((stage, name), []).append((step, value))
    assert {(series.stage, series.name): series.points for series in rig.series(job_id)} == recorded
    assert job.progress is not None
    assert (job.progress["fraction"], job.stage, job.device) == (1.0, None, "cpu")
    assert job.result is not None
    with rig.database.read() as session:
        artifacts = queries.list_artifacts(session, job_id)
    assert {"student.onnx", "student.pt2", "model.json", "teacher-1.safetensors"} <= {a.name for a in artifacts}
    for artifact in artifacts:
        content = BlobStore(rig.settings.blobs).path(artifact.digest, artifact.size).read_bytes()
        assert artifact.digest == f"sha256:{sha256(content).hexdigest()}"
    assert not (rig.settings.jobs / job_id / f"attempt-{job.attempt}" / "out").exists()
    assert "stage distill-1" in rig.log(job_id, job.attempt)
