"""How long a pause waits for training, and a worker's end for a pause."""

import time

import psutil
import pytest

from storage.tables import Job

from .conftest import ENDLESS, Rig, freeze

pytestmark = pytest.mark.parametrize("settings", ["embedded"], indirect=True)
DRAIN_SECONDS = 1.0


@pytest.fixture
def hasty(rig: Rig) -> Rig:
    """Its workers wait for a second."""
    rig.settings = rig.settings.model_copy(update={"drain_seconds": DRAIN_SECONDS})
    return rig


def hang(rig: Rig, training: psutil.Process) -> None:
    """Not while it writes: that would keep SQLite from all others."""
    with rig.database.write():
        freeze(training)


def last_checkpoint(rig: Rig, job_id: str) -> float:
    return rig.last(job_id, "checkpoint").at


def test_a_pause_waits_for_a_checkpoint_that_takes_long(hasty: Rig) -> None:
    """It was killed while it wrote it, and what it had done since the one before was lost."""
    rig = hasty
    worker = rig.start()
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    (training,) = rig.trainings(worker)
    hang(rig, training)
    rig.ask(job_id, "pause")
    time.sleep(DRAIN_SECONDS + 2)
    assert rig.job(job_id).status == "running"
    training.resume()
    rig.until_status(job_id, "paused")
    assert last_checkpoint(rig, job_id) > rig.last(job_id, "pause_requested").at + DRAIN_SECONDS


def test_a_worker_that_ends_does_not_wait_for_a_pause_any_longer_than_for_a_drain(hasty: Rig) -> None:
    rig = hasty
    worker = rig.start()
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    hang(rig, rig.trainings(worker)[0])
    rig.ask(job_id, "pause")
    assert rig.stop(worker) < DRAIN_SECONDS + 10
    job = rig.job(job_id)
    assert (job.status, job.failures) == ("paused", 0)
    assert last_checkpoint(rig, job_id) < rig.last(job_id, "pause_requested").at


def test_a_pause_does_not_wait_for_what_has_nothing_to_save(hasty: Rig) -> None:
    rig = hasty
    rig.settings = rig.settings.model_copy(update={"warm_spare": True})
    worker = rig.start()
    (spare,) = rig.trainings(worker)
    freeze(spare)
    job_id = rig.submit(ENDLESS)
    rig.until_status(job_id, "running")
    rig.ask(job_id, "pause")
    job: Job = rig.until(lambda: (job := rig.job(job_id)).status == "paused" and job, DRAIN_SECONDS + 10)
    assert job.failures == 0
