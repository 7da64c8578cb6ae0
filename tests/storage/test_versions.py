"""Workers of several versions at one queue."""

from dataclasses import replace

from sqlalchemy import update

from storage import attempts, queries, workers
from storage.tables import Worker
from storage.workers import WorkerCard

CARD = WorkerCard("wrk_one", "here", 1, "cpu", "a CPU", 2**30, "0", 1)


def claim(jobs, version):
    with jobs.database.write() as session:
        job = attempts.claim(session, "w", ("auto", "cpu"), 30.0, spec_version=version)
        return job.id if job is not None else None


def test_a_worker_claims_the_best_job_that_it_reads(jobs):
    newest = jobs.submit(spec_version=3, priority=9)
    newer = jobs.submit(spec_version=2, priority=8)
    first, second = jobs.submit(spec_version=1), jobs.submit(spec_version=1)
    assert claim(jobs, 1) == first
    assert claim(jobs, 2) == newer
    assert claim(jobs, 2) == second
    assert claim(jobs, 2) is None
    assert jobs.state(newest) == ("queued", None)
    assert jobs.get(newest).attempt == 0
    assert claim(jobs, 3) == newest
    assert claim(jobs, 3) is None


def reason(jobs, job_id):
    with jobs.database.read() as session:
        return queries.explain_waits(session.connection(), [job_id], 60)[job_id].reason


def test_a_job_says_that_no_worker_reads_its_spec(jobs):
    job_id, older = jobs.submit(spec_version=2), jobs.submit(spec_version=1)
    with jobs.database.write() as session:
        workers.register(session, CARD)
    assert reason(jobs, job_id) == "no worker reads spec version 2; upgrade the workers"
    assert reason(jobs, older) == "about to start"
    with jobs.database.write() as session:
        session.execute(update(Worker).values(spec_version=None))  # one of the first release
    assert reason(jobs, job_id) == "no worker reads spec version 2; upgrade the workers"
    assert reason(jobs, older) == "about to start"
    with jobs.database.write() as session:
        workers.register(session, replace(CARD, id="wrk_two", spec_version=2))
        workers.set_status(session, "wrk_two", "busy")
    assert reason(jobs, job_id) == "the worker is busy"
    with jobs.database.write() as session:
        workers.set_status(session, "wrk_two", "idle")
    assert reason(jobs, job_id) == "about to start"
