"""Which job a worker gets, and that it is the only one."""

import time

from sqlalchemy import select

from storage import attempts
from storage.tables import Attempt, Event, Job


def order(jobs, number, devices=("auto", "cpu")):
    return [jobs.claim(devices=devices).job_id for _ in range(number)]


def test_priority_then_age(jobs):
    low, first, second, high = (jobs.submit(priority=p) for p in (-5, 0, 0, 7) if time.sleep(0.002) is None)
    assert order(jobs, 4) == [high, first, second, low]
    assert jobs.try_claim() is None


def test_owners_take_turns_and_priority_outranks_that(jobs):
    greedy = []
    for _ in range(3):
        greedy.append(jobs.submit(owner="greedy"))
        time.sleep(0.002)
    modest = jobs.submit(owner="modest")
    assert order(jobs, 2) == [greedy[0], modest]
    urgent = jobs.submit(owner="greedy", priority=1)
    assert order(jobs, 1) == [urgent]


def test_devices(jobs):
    cuda, cpu, auto = (jobs.submit(device=device) for device in ("cuda", "cpu", "auto") if time.sleep(0.002) is None)
    assert order(jobs, 2) == [cpu, auto]
    assert jobs.try_claim() is None
    assert jobs.claim(devices=("auto", "cpu", "cuda")).job_id == cuda


def test_only_what_is_available_and_queued(jobs):
    for situation in ("paused", "running", "succeeded", "failed", "cancelled"):
        jobs.put(situation)
    later = jobs.submit()
    jobs.set(later, available_at=time.time() + 60)
    assert jobs.try_claim() is None
    jobs.set(later, available_at=time.time() - 1)
    assert jobs.claim().job_id == later


def test_a_claim_takes_attempt_lease_and_a_line_of_history(jobs, database):
    fence = jobs.running()
    job = jobs.get(fence.job_id)
    assert (job.status, job.attempt, job.worker_id) == ("running", 1, "w1")
    assert abs(job.lease_expires_at - time.time() - 30) < 3
    assert job.started_at is not None
    with database.write() as session:
        attempts.yield_job(session, fence, "drain")
    again = jobs.claim("w2", lease=60)
    second = jobs.get(fence.job_id)
    assert (again.attempt, second.started_at) == (2, job.started_at)
    assert jobs.events(fence.job_id) == ["submitted", "claimed", "requeued", "claimed"]
    with database.read() as session:
        rows = session.scalars(select(Attempt).order_by(Attempt.number)).all()
    assert [(r.number, r.worker_id, r.outcome) for r in rows] == [(1, "w1", "requeued"), (2, "w2", None)]


def test_eight_claimers_share_fifty_jobs(jobs, database, at_once):
    submitted = [jobs.submit(owner=f"o{i % 3}", priority=i % 2) for i in range(50)]

    def work(index):
        mine = []
        while True:
            fence = jobs.try_claim(f"w{index}")
            if fence is None:
                return mine
            mine.append(fence)

    results = at_once(8, work)
    assert all(isinstance(result, list) for result in results), results
    fences = [fence for result in results for fence in result]
    assert sorted(fence.job_id for fence in fences) == sorted(submitted)
    assert {fence.attempt for fence in fences} == {1}
    with database.read() as session:
        holders = dict(session.execute(select(Job.id, Job.worker_id)).all())
        claims = session.scalars(select(Event.job_id).where(Event.type == "claimed")).all()
    assert holders == {fence.job_id: f"w{index}" for index, result in enumerate(results) for fence in result}
    assert sorted(claims) == sorted(submitted)


def test_a_claim_that_dies_before_its_commit_took_nothing(jobs, database):
    job_id = jobs.submit()
    try:
        with database.write() as session:
            assert attempts.claim(session, "w1", ("auto",), 30.0) is not None
            raise KeyError
    except KeyError:
        pass
    assert jobs.state(job_id) == ("queued", None)
    assert jobs.claim().attempt == 1


def test_postgresql_claims_do_not_wait_for_each_other(jobs, database):
    if database.engine.dialect.name != "postgresql":
        return  # SQLite has one writer at a time
    first, second = (jobs.submit() for _ in range(2) if time.sleep(0.002) is None)
    with database.write() as session:
        session.execute(select(Job.id).where(Job.id == first).with_for_update())
        started = time.monotonic()
        assert jobs.claim().job_id == second
        assert jobs.try_claim() is None
        assert time.monotonic() - started < 5
