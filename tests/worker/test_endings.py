"""How jobs end that do not succeed: one worker, one job after the other."""

import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from storage import actions, attempts, schema
from storage.database import Database
from storage.lifecycle import Fence
from storage.tables import Job
from tests.conftest import embedded

from .conftest import ENDLESS, SOON, SPEC, Rig, alive, freeze


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, subprocess.Popen[bytes]]]:
    """An embedded worker."""
    settings = embedded(
        tmp_path_factory.mktemp("endings"), device="cpu", heartbeat_seconds=0.2, retry_backoff_seconds=0.0,
        max_log_bytes=8192,
    )  # fmt: skip
    database = Database(settings.database)
    schema.ensure(database)
    rig = Rig(settings, database)
    (settings.broker_folder / "messages").mkdir(parents=True)
    (settings.broker_folder / "messages" / WAITING).touch()
    try:
        yield rig, rig.start()
    finally:
        rig.close()
        rig.nothing_left(5)
        database.close()


WAITING = "1_2.of-another-worker.msg"
Busy = tuple[Rig, subprocess.Popen[bytes]]


def error_of(rig: Rig, spec: dict[str, Any]) -> tuple[str, str, str]:
    job = rig.until_status(rig.submit(spec), "failed", "succeeded")
    assert job.error is not None
    assert job.attempt == 1  # what would fail again is not tried again
    return job.error["kind"], job.error["code"], job.error["message"]


def test_a_job_runs_on_the_warm_spare_and_another_takes_its_place(busy: Busy) -> None:
    rig, worker = busy
    [spare] = rig.trainings(worker)
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    assert rig.trainings(worker)[0] == spare
    assert spare.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    rig.until(lambda: len(rig.trainings(worker)) == 2)
    rig.ask(job_id, "cancel")
    rig.until_status(job_id, "cancelled")
    assert rig.last(job_id, "cancelled").at - rig.last(job_id, "cancel_requested").at < SOON
    rig.until(lambda: not alive(spare), 5)


def test_what_waits_for_others_stays_in_the_broker(busy: Busy) -> None:
    rig, _ = busy
    assert (rig.settings.broker_folder / "messages" / WAITING).exists()


def test_divergence_names_stage_step_and_term(busy: Busy) -> None:
    rig, _ = busy
    optimizer = {"type": "sgd", "lr": 1000.0}
    stages = [{"epochs": 5, "optimizer": optimizer, "losses": [{"type": "logit_mse"}]}]
    kind, code, message = error_of(rig, SPEC | {"stages": stages})
    assert (kind, code) == ("user", "diverged")
    assert "distill-1" in message
    assert "step" in message


def test_missing_data_names_the_files(busy: Busy) -> None:
    rig, _ = busy
    kind, code, message = error_of(rig, SPEC | {"data": {"type": "mnist"}})
    assert (kind, code) == ("user", "bad_data")
    assert "train-images-idx3-ubyte" in message


def test_time_limit(busy: Busy) -> None:
    rig, _ = busy
    kind, code, message = error_of(rig, ENDLESS | {"limits": {"max_seconds": 2}})
    assert (kind, code) == ("user", "time_limit")
    assert "max_seconds" in message


def test_memory_limit(busy: Busy) -> None:
    rig, _ = busy
    kind, code, message = error_of(rig, ENDLESS | {"limits": {"max_memory": "64MiB"}})
    assert (kind, code) == ("user", "out_of_memory")
    assert "max_memory" in message
    assert "not even batch_size 1 is sure to fit" in message


def test_a_hang_is_tried_again_and_a_hung_job_can_be_cancelled(busy: Busy) -> None:
    rig, worker = busy
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    long_ago = Job.stepped_at - 2 * rig.settings.stall_seconds  # nobody waits ten minutes here
    with rig.database.write() as session:  # whoever is stopped while it writes keeps SQLite from all others
        freeze(rig.trainings(worker)[0])
        session.execute(update(Job).where(Job.id == job_id).values(stepped_at=long_ago))
    rig.until(lambda: rig.job(job_id).attempt == 2)
    assert rig.last(job_id, "requeued").data["error"]["code"] == "stalled"
    rig.until_training(job_id)
    with rig.database.write():
        freeze(rig.trainings(worker)[0])
    rig.ask(job_id, "cancel")
    rig.until_status(job_id, "cancelled")
    assert rig.last(job_id, "cancelled").at - rig.last(job_id, "cancel_requested").at < SOON


def test_a_stale_attempt_stops_itself(busy: Busy) -> None:
    """Somebody else took the job while this worker thought it held it: it lets go, and changes nothing."""
    rig, worker = busy
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    training = rig.trainings(worker)[0]
    with rig.database.write() as session:
        lost = {"code": "worker_lost", "kind": "system", "message": "in this test"}
        attempts.release(session, Fence(job_id, 1), lost, max_failures=3, backoff_seconds=0)
        other = attempts.claim(session, "another", ("auto", "cpu"), 60)
        assert other is not None
        fence = Fence(other.id, other.attempt)
    rig.until(lambda: not alive(training), 5)
    rig.until(lambda: rig.idle() == 1)
    job = rig.job(job_id)
    assert (job.status, job.attempt, job.worker_id) == ("running", 2, "another")
    assert not [event for event in rig.events(job_id) if event.attempt == 1 and event.id > fence_event(rig, fence)]
    with rig.database.write() as session:
        attempts.yield_job(session, fence, "cancel")


def fence_event(rig: Rig, fence: Fence) -> int:
    return next(e.id for e in rig.events(fence.job_id) if e.type == "claimed" and e.attempt == fence.attempt)


def test_a_poisoned_job_fails_in_the_end_and_its_log_says_why(busy: Busy) -> None:
    rig, _ = busy
    job_id = rig.submit(SPEC, lambda session, id: session.execute(
        update(Job).where(Job.id == id).values(choices={"device": "abacus"})
    ))  # fmt: skip
    job = rig.until_status(job_id, "failed", "succeeded")
    assert job.error is not None
    assert (job.attempt, job.error["kind"], job.error["code"]) == (3, "system", "crashed")
    assert "ValidationError" in job.error["message"]
    assert "Traceback" in rig.log(job_id, 3)
    with rig.database.write() as session:
        actions.remove(session, job_id, "tester")
