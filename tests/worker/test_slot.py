"""What the slot, its spare and the keeper do where something else than training fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import submissions, workers
from storage.database import Database
from storage.lifecycle import Fence
from storage.queue import Doorbell
from storage.settings import Settings
from storage.tables import Event, Job, Worker
from storage.workers import WorkerCard
from worker import keeper, process, spare
from worker.identity import drain_flag
from worker.keeper import Keeper
from worker.process import TrainingProcess
from worker.slot import Slot, _planned
from worker.spare import Spare

from .conftest import SPEC as DIGITS
from .conftest import Rig

EMBEDDED = pytest.mark.parametrize("settings", ["embedded"], indirect=True)
QUICK = DIGITS | {"stages": [{"epochs": 2}], "teachers": [DIGITS["teachers"][0] | {"train": {"epochs": 2}}]}
CARD = WorkerCard("wrk_here", "here", 1, "cpu", "a CPU", 2**30, "0", 1)
SPEC = {"name": "n", "priority": 0, "device": "auto", "labels": {}}


def no_process() -> TrainingProcess:
    raise BlockingIOError(11, "no process can be started")


def test_a_spare_that_cannot_be_started_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "TrainingProcess", no_process)
    Spare(wanted=True).ready()


def test_a_spare_that_died_is_not_taken() -> None:
    """While it waited: the kernel may have wanted its memory."""
    here = Spare(wanted=True)
    here.ready()
    assert here._process is not None
    died = here._process
    os.kill(died.pid, signal.SIGKILL)
    until(lambda: not died.alive())
    taken = here.take()
    try:
        assert taken.alive()
        assert taken.pid != died.pid
    finally:
        taken.kill()


def test_a_spare_that_keeps_dying_is_not_started_again_and_again() -> None:
    here = Spare(wanted=True)
    here.ready()
    assert here._process is not None
    here._process.kill()
    here.ready()
    assert here._process is None


def test_no_spare_where_none_is_wanted_and_none_is_left_behind() -> None:
    unwanted, wanted = Spare(wanted=False), Spare(wanted=True)
    unwanted.ready()
    assert unwanted._process is None
    wanted.ready()
    assert wanted._process is not None
    kept = wanted._process
    wanted.close()
    assert not psutil.pid_exists(kept.pid)


@EMBEDDED
def test_a_worker_that_can_start_no_process_gives_its_job_back_and_takes_no_other(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took one after the other and failed them all, while others trained."""
    monkeypatch.setattr(spare, "TrainingProcess", no_process)
    for _ in range(3):
        submit(database)
    with database.write() as session:
        workers.register(session, CARD)
    drain_flag(settings, CARD.id).parent.mkdir(parents=True)
    here = Slot(settings.model_copy(update={"max_failures": 1}), CARD)
    working = threading.Thread(target=here.work, daemon=True)
    working.start()
    until(lambda: status_of(database) == "resting")
    with database.write() as session:
        workers.beat(session, CARD)
    time.sleep(1.5)  # it has tried once more by then whether it can
    assert status_of(database) == "resting"
    drain_flag(settings, CARD.id).touch()
    working.join(5)
    assert not working.is_alive()
    here.close()
    with database.read() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
        requeued = session.scalars(select(Event).where(Event.type == "requeued")).one()
    assert [(job.status, job.attempt, job.failures) for job in jobs] == [("queued", 1, 0), *[("queued", 0, 0)] * 2]
    assert requeued.data["error"]["code"] == "supervision_failed"
    assert "no process can be started" in requeued.data["error"]["message"]


@EMBEDDED
def test_a_worker_whose_home_takes_no_files_rests_until_it_does_and_the_rest_is_the_jobs_fault(rig: Rig) -> None:
    rig.settings.jobs.write_text("a file where the folder belongs: also root cannot write into it")
    rig.start()
    job_id = rig.submit(QUICK, planned_otherwise)
    rig.until(lambda: statuses(rig) == ["resting"])
    assert (rig.job(job_id).status, rig.job(job_id).failures) == ("queued", 0)
    rig.settings.jobs.unlink()
    rig.until_status(job_id, "succeeded")
    assert rig.job(job_id).attempt == 2
    poison = rig.submit(QUICK, lambda _, id: (rig.settings.jobs / id).write_text("where its folder belongs"))
    job = rig.until_status(poison, "failed")
    assert job.error is not None
    assert (job.attempt, job.error["kind"], job.error["code"]) == (3, "system", "supervision_failed")
    claims = [event.at for event in rig.events(poison) if event.type == "claimed"]
    assert claims[1] - claims[0] > 1
    assert claims[2] - claims[1] > 2
    other = rig.submit(QUICK)
    assert rig.until_status(other, "succeeded", "failed").status == "succeeded"
    rig.until(lambda: statuses(rig) == ["idle"])


def planned_otherwise(session: Session, job_id: str) -> None:
    """As an API of another version might: the attempt makes a plan of its own."""
    plan = {"memory": {"total": "much"}, "stages": [{"name": "distill-1"}]}
    session.execute(update(Job).where(Job.id == job_id).values(plan=plan))


def test_what_a_plan_does_not_say_is_unknown() -> None:
    assert _planned({}) == (None, 0)
    assert _planned({"memory": None, "stages": []}) == (None, 0)
    assert _planned({"memory": {"weights": 1, "copies": "2"}, "stages": [{"batch_size": 3}]}) == (None, 0)
    memory = {"weights": 1, "copies": 2, "optimizer": 3, "data": 4, "total": 10}
    need, batch_size = _planned({"memory": memory | {"unheard_of": "x"}, "stages": [{"batch_size": 3}]})
    assert need is not None
    assert (need.total, batch_size) == (10, 3)


@pytest.mark.parametrize(("status", "rings"), [("idle", 1), ("busy", 0)])
def test_a_doorbell_that_a_worker_hears_for_another_is_passed_on(
    settings: Settings, database: Database, status: str, rings: int
) -> None:
    """Who took it and left the job made it wait for the reconciler, which rings less and less often."""
    drain_flag(settings, CARD.id).parent.mkdir(parents=True)
    submit(database, {"memory": {"total": 2**31, "copies": 0}})
    with database.write() as session:
        workers.register(session, CARD)
        workers.register(session, replace(CARD, id="wrk_large", memory_bytes=2**32))
        workers.set_status(session, "wrk_large", status)
    small = Slot(settings.model_copy(update={"warm_spare": False}), CARD)
    small.work()
    assert Doorbell(settings).waiting("auto") == rings
    small.close()


def submit(database: Database, plan: dict[str, Any] | None = None) -> str:
    with database.write() as session:
        return submissions.submit(session, owner="o", spec=SPEC, spec_digest="d", plan=plan or {}, max_queued=9)


def status_of(database: Database) -> str:
    with database.read() as session:
        return session.get_one(Worker, CARD.id).status


def statuses(rig: Rig) -> list[str]:
    with rig.database.read() as session:
        return [worker.status for worker in workers.present(session, 60)]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_s_parent_imports_no_torch() -> None:
    asked = "import sys, worker.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


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


def test_what_a_spare_has_paid_a_job_need_not() -> None:
    """The first plan of a process loads a part of torch, which takes it over a second."""
    asked = (
        "import sys, worker.attempt; from worker.training import _warm_up; from pathlib import Path;"
        "from kdcore.data import Places; from kdcore.plan import make_plan; from kdcore.spec import parse_spec;"
        "_warm_up(); before = set(sys.modules);"
        "model = {'model': {'type': 'mlp', 'hidden': [7], 'dropout': 0.5}};"
        "spec = parse_spec({'data': {'type': 'digits'}, 'teachers': [model], 'student': model});"
        "make_plan(spec); spec.data.load(Places(Path())); print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
