"""Jobs that need much memory go to workers that have it, where there are any; none waits for ever or in silence."""

from typing import Any

import pytest

from storage import attempts, workers
from storage.database import Database
from storage.queries import explain_waits
from storage.workers import WorkerCard
from tests.storage.conftest import Jobs

GIB = 2**30
LEASE = 30.0


def card(id: str, gib: int, device: str = "cpu") -> WorkerCard:
    return WorkerCard(id, "h", 1, device, "d", gib * GIB, "1", 1)


SMALL, LARGE, GPU = card("small", 8), card("large", 64), card("gpu", 16, "cuda")


def hire(database: Database, card: WorkerCard, status: str = "idle") -> None:
    with database.write() as session:
        workers.beat(session, card)
        workers.set_status(session, card.id, status)


def claim(database: Database, card: WorkerCard) -> str | None:
    with database.write() as session:
        takes = workers.takes(session, card, LEASE)
        job = attempts.claim(session, card.id, card.serves, LEASE, spec_version=1, takes=takes)
        return job.id if job is not None else None


def reason(database: Database, job_id: str) -> str:
    with database.read() as session:
        return explain_waits(session.connection(), [job_id], 60.0)[job_id].reason


def needing(jobs: Jobs, gib: float, copies: float = 0.0, **spec: Any) -> str:
    job_id = jobs.submit(**spec)
    jobs.set(job_id, plan={"memory": {"total": int((gib + copies) * GIB), "copies": int(copies * GIB)}})
    return job_id


def test_a_small_worker_leaves_what_a_larger_one_has_the_memory_for(jobs: Jobs, database: Database) -> None:
    hire(database, SMALL)
    hire(database, LARGE, "busy")
    hungry, modest = needing(jobs, 30, priority=9), needing(jobs, 7)
    assert reason(database, hungry) == "all workers with enough memory are busy"
    assert claim(database, SMALL) == modest  # also behind one that it leaves
    assert claim(database, SMALL) is None
    hire(database, LARGE)
    assert reason(database, hungry) == "about to start"
    assert claim(database, LARGE) == hungry


@pytest.mark.parametrize("gone", ["silent", "draining"])
def test_once_the_larger_worker_is_gone_the_small_one_tries(jobs: Jobs, database: Database, gone: str) -> None:
    hire(database, SMALL)
    hire(database, LARGE)
    hungry = needing(jobs, 30)
    assert claim(database, SMALL) is None
    with database.write() as session:
        if gone == "silent":
            workers.leave(session, LARGE.id)
        else:
            workers.set_status(session, LARGE.id, gone)
    assert claim(database, SMALL) == hungry


def test_what_no_worker_has_the_memory_for_is_tried_and_said(jobs: Jobs, database: Database) -> None:
    hire(database, SMALL)
    hire(database, LARGE, "busy")
    hungry = needing(jobs, 100)
    expected = "about to start; it may need 100.0 GiB, and the largest worker has 64.0 GiB"
    assert reason(database, hungry) == expected
    assert claim(database, SMALL) == hungry


def test_beside_a_gpu_copies_do_not_count(jobs: Jobs, database: Database) -> None:
    for each in (SMALL, LARGE, GPU):
        hire(database, each)
    job_id = needing(jobs, 7, copies=10, device="auto")
    assert claim(database, SMALL) is None
    assert claim(database, GPU) == job_id


@pytest.mark.parametrize(
    "plan", [{}, {"memory": None}, {"memory": {"total": "30 GiB"}}, {"memory": {"total": {"cpu": 3}, "copies": True}}]
)
def test_a_plan_that_does_not_say_so_or_says_it_otherwise_is_anybodys(
    jobs: Jobs, database: Database, plan: dict[str, Any]
) -> None:
    hire(database, SMALL)
    hire(database, LARGE)
    hungry, job_id = needing(jobs, 30, priority=9), jobs.submit()
    jobs.set(job_id, plan=plan)
    assert reason(database, job_id) == "about to start"
    assert claim(database, SMALL) == job_id
    assert claim(database, LARGE) == hungry


def test_who_rests_is_no_reason_to_leave_a_job(jobs: Jobs, database: Database) -> None:
    hire(database, SMALL)
    hire(database, LARGE, "resting")
    hungry = needing(jobs, 30)
    assert reason(database, hungry) == "all workers with enough memory are busy"
    assert claim(database, SMALL) == hungry
    waiting = jobs.submit()
    hire(database, SMALL, "resting")
    assert reason(database, waiting) == "no worker can train at the moment"
