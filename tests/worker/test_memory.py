"""A job that needs more memory than there is: whose fault it is, and which worker takes it."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from kdcore.memory import Need
from storage.tables import Job
from worker.memory import machine_memory, oom_kills, ran_out

from .conftest import ENDLESS, SPEC, Rig

HUGE = {"total": 2**60, "optimizer": 2**59}
GREEDY: dict[str, Any] = SPEC | {
    "teachers": [{"model": {"type": "mlp", "hidden": [65536]}, "train": {"epochs": 30, "batch_size": 1293}}],
    "stages": [{"epochs": 1}],
    "limits": {"max_memory": "1500MiB"},
}
ALLOCATING = SPEC | {  # tensors so large that every step takes new memory for them
    "teachers": [{"model": {"type": "mlp", "hidden": [32768]}, "train": {"epochs": 100_000, "batch_size": 1293}}]
}
EMBEDDED = pytest.mark.parametrize("settings", ["embedded"], indirect=True)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that allows 16 MiB of memory: what is moved into it and goes on allocating is killed."""
    name = f"distillery-test-{secrets.token_hex(4)}"
    root = Path("/sys/fs/cgroup")
    folder, limit = (root / name, "memory.max") if (root / "cgroup.controllers").exists() else (
        root / "memory" / name, "memory.limit_in_bytes")  # fmt: skip
    try:
        folder.mkdir()
        (folder / limit).write_text(str(16 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    for pid in (folder / "cgroup.procs").read_text().split():  # where a test failed
        (folder.parent / "cgroup.procs").write_text(pid)
    folder.rmdir()


@EMBEDDED
def test_a_job_that_the_kernel_ends_for_memory_is_not_tried_again_where_its_plan_needs_too_much(
    rig: Rig, group: Path
) -> None:
    worker = rig.start()
    job_id = rig.submit(ALLOCATING, _needing_too_much)
    rig.until(lambda: (rig.job(job_id).progress or {}).get("step", 0) > 2)
    (training,) = rig.trainings(worker)
    (group / "cgroup.procs").write_text(str(training.pid))
    job = rig.until_status(job_id, "failed", "queued", "succeeded")
    assert (job.status, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert (job.error["kind"], job.error["code"]) == ("user", "out_of_memory")
    assert "the kernel ended training" in job.error["message"]
    assert "not even batch_size 1 is sure to fit" in job.error["message"]


@EMBEDDED
def test_a_job_that_fits_and_is_ended_for_memory_all_the_same_is_tried_again(rig: Rig, group: Path) -> None:
    worker = rig.start()
    job_id = rig.submit(ALLOCATING)
    rig.until(lambda: (rig.job(job_id).progress or {}).get("step", 0) > 2)
    (training,) = rig.trainings(worker)
    (group / "cgroup.procs").write_text(str(training.pid))
    rig.until(lambda: rig.job(job_id).attempt == 2)
    error = rig.last(job_id, "requeued").data["error"]
    assert (error["kind"], error["code"]) == ("system", "killed")


@EMBEDDED
def test_a_job_that_somebody_kills_is_tried_again_whatever_it_needs(rig: Rig) -> None:
    worker = rig.start()
    job_id = rig.submit(ENDLESS, _needing_too_much)
    rig.until_training(job_id)
    os.kill(rig.trainings(worker)[0].pid, signal.SIGKILL)
    rig.until(lambda: rig.job(job_id).attempt == 2)
    error = rig.last(job_id, "requeued").data["error"]
    assert (error["kind"], error["code"]) == ("system", "killed")


def ended(rig: Rig, spec: dict[str, Any]) -> Job:
    job_id = rig.submit(spec)
    return rig.until(lambda: (job := rig.job(job_id)).status in ("failed", "succeeded") and job, 180)


def _needing_too_much(session: Any, job_id: str) -> None:
    plan = session.get_one(Job, job_id).plan
    values = {"plan": plan | {"memory": plan["memory"] | HUGE}}
    session.execute(update(Job).where(Job.id == job_id).values(values))


@EMBEDDED
@pytest.mark.timeout(400)
def test_the_batch_size_that_the_memory_limit_names_fits(rig: Rig) -> None:
    rig.start()
    job = ended(rig, GREEDY)
    assert job.error is not None, "it fitted: make it greedier"
    assert (job.error["kind"], job.error["code"], job.attempt) == ("user", "out_of_memory", 1)
    assert "limits.max_memory is 1572864000; batch_size " in job.error["message"]
    named = int(job.error["message"].removesuffix(" would fit").rsplit(" ", 1)[1])
    assert named >= 64
    (teacher,) = GREEDY["teachers"]
    modest = GREEDY | {"teachers": [teacher | {"train": {"epochs": 6, "batch_size": named}}]}
    job = ended(rig, modest)
    assert job.status == "succeeded", job.error


def test_the_kernels_count(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 7\noom_kill_other 9\n")
    assert oom_kills(tmp_path / "vmstat") == 7
    (tmp_path / "vmstat").write_text("nr_free_pages 5\n")
    assert oom_kills(tmp_path / "vmstat") is None
    assert oom_kills(tmp_path / "none") is None


def test_both_must_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    need = Need({}, 1, total=100)
    monkeypatch.setattr("worker.memory.oom_kills", lambda: 3)
    assert ran_out(need, 99, 2)
    assert not ran_out(need, 100, 2)
    assert not ran_out(need, 99, 3)
    assert not ran_out(None, 99, 2)
    assert ran_out(need, 99, None)
    assert machine_memory() > 2**28
