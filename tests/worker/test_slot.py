"""What the slot, its spare and the keeper do where something else than training fails."""

import sys
import time
from pathlib import Path

import pytest

from storage import submissions, workers
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job, Worker
from storage.workers import WorkerCard
from worker import keeper, process, spare
from worker.keeper import Keeper
from worker.process import TrainingProcess
from worker.slot import Slot
from worker.spare import Spare

CARD = WorkerCard("wrk_here", "here", 1, "cpu", "a CPU", 2**30, "0", 1)
SPEC = {"name": "n", "priority": 0, "device": "auto", "labels": {}}


def no_process() -> TrainingProcess:
    raise BlockingIOError(11, "no process can be started")


def test_a_spare_that_cannot_be_started_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "TrainingProcess", no_process)
    Spare(wanted=True).ready()


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
def test_a_job_whose_process_cannot_be_started_does_not_wait_for_its_lease(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "TrainingProcess", no_process)
    with database.write() as session:
        id = submissions.submit(session, owner="o", spec=SPEC, spec_digest="d", plan={}, max_queued=9)
        workers.register(session, CARD)
    here = Slot(settings.model_copy(update={"max_failures": 1}), CARD)
    here.work()
    here.close()
    with database.read() as session:
        job = session.get_one(Job, id)
    assert (job.status, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert job.error["code"] == "supervision_failed"


def test_a_worker_leaves_though_a_reconciler_took_its_job_meanwhile(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as session:
        workers.register(session, CARD)
    (settings.home / "workers").mkdir(parents=True)
    monkeypatch.setattr(keeper, "held_by", lambda *_: [Fence("job_gone", 1)])
    Keeper(settings, CARD).stop()
    with database.read() as session:
        assert session.get(Worker, CARD.id) is None


def test_output_is_kept_even_if_a_helper_that_left_the_group_holds_the_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "python"
    helper.write_text("#!/bin/sh\nread line\nsetsid sh -c 'echo ready; sleep 1; echo late' &\nsleep 60\n")
    helper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(helper))
    monkeypatch.setattr(process, "_LOG_SECONDS", 0.1)
    training = TrainingProcess()
    log = tmp_path / "log.txt"
    training.assign(Fence("job_1", 1), log, 4096)
    until_logged(log, "ready\n")
    training.kill()
    until_logged(log, "ready\nlate\n")


def until_logged(log: Path, content: str) -> None:
    end = time.monotonic() + 30
    while log.read_text() != content:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
