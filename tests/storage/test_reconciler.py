"""Lost jobs come back, unheard jobs are rung for, and neither too often."""

import threading
import time

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DataError, OperationalError

from storage import attempts, reconciler, workers
from storage.queue import Doorbell
from storage.reconciler import MOST_RINGS, reconcile
from storage.tables import Job
from storage.workers import WorkerCard


class CountingDoorbell(Doorbell):
    """The real doorbell, which also remembers whom it rang for."""

    def __init__(self, settings):
        super().__init__(settings)
        self.rung = []

    def ring(self, device):
        self.rung.append(device)
        return super().ring(device)


class AbsentDoorbell(CountingDoorbell):
    """A broker that is away."""

    def waiting(self, device):
        return None


@pytest.fixture
def doorbell(settings):
    return CountingDoorbell(settings)


@pytest.fixture
def once(database, doorbell, settings):
    return lambda bell=doorbell: reconcile(database, bell, settings)


def hire(database, device="cpu", status="idle", id="w1", memory=2**40):
    card = WorkerCard(id, "host", 1, device, "a device", memory, "1", 1)
    with database.write() as session:
        workers.beat(session, card)
        workers.set_status(session, id, status)
    return card


def wait_long(jobs, *job_ids):
    for job_id in job_ids:
        jobs.set(job_id, rung_at=time.time() - 61)


def test_a_job_whose_lease_ran_out_is_taken_back_once(jobs, once, database):
    lost, held = jobs.running(), jobs.running()
    jobs.set(lost.job_id, lease_expires_at=time.time() - 1)
    assert once().taken_back == [lost]
    assert once().taken_back == []
    assert jobs.events(lost.job_id) == ["submitted", "claimed", "requeued"]
    assert (jobs.get(lost.job_id).failures, jobs.get(held.job_id).status) == (1, "running")
    assert jobs.claim("w2").attempt == 2


def test_a_lease_runs_out_by_the_database_s_clock(jobs, once, monkeypatch):
    fence = jobs.running()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert once().taken_back == []
    jobs.set(fence.job_id, lease_expires_at=1.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert once().taken_back == [fence]


def test_taken_back_for_the_last_time_it_fails(jobs, once, settings):
    fence = jobs.running()
    jobs.set(fence.job_id, lease_expires_at=1.0, failures=settings.max_failures - 1)
    once()
    job = jobs.get(fence.job_id)
    assert (job.status, job.error["code"], job.error["kind"]) == ("failed", "worker_lost", "system")


def test_a_lost_job_s_request_is_granted(jobs, once):
    for request, status in (("cancel", "cancelled"), ("pause", "paused")):
        fence = jobs.running()
        jobs.ask(fence.job_id, request)
        jobs.set(fence.job_id, lease_expires_at=1.0)
        once()
        assert jobs.state(fence.job_id) == (status, None)


def test_many_reconcilers_take_each_job_back_once(jobs, database, settings, at_once):
    lost = [jobs.running() for _ in range(12)]
    renewed = lost.pop()
    for fence in lost:
        jobs.set(fence.job_id, lease_expires_at=1.0)
    results = at_once(4, lambda _: reconcile(database, CountingDoorbell(settings), settings).taken_back)
    assert sorted(f.job_id for taken in results for f in taken) == sorted(f.job_id for f in lost)
    assert {jobs.get(fence.job_id).failures for fence in lost} == {1}
    assert jobs.get(renewed.job_id).status == "running"


def test_a_heartbeat_that_comes_in_time_keeps_the_job(jobs, once, database):
    fence = jobs.running()
    jobs.set(fence.job_id, lease_expires_at=1.0)
    with database.write() as session:
        attempts.heartbeat(session, fence, 30.0)
    assert once().taken_back == []


def test_a_heartbeat_that_comes_while_the_reconciler_looks_keeps_the_job(jobs, database, settings, doorbell):
    fence, taken = jobs.running(), []
    jobs.set(fence.job_id, lease_expires_at=1.0)
    thread = threading.Thread(target=lambda: taken.extend(reconcile(database, doorbell, settings).taken_back))
    with database.write() as session:
        attempts.heartbeat(session, fence, 30.0)
        thread.start()
        time.sleep(0.3)  # it has seen the old lease; on SQLite it waits
    thread.join(20)
    assert taken == []
    assert jobs.state(fence.job_id) == ("running", None)


def test_a_row_that_somebody_holds_stops_neither_the_others_nor_the_rings(jobs, once, database):
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite locks no rows")
    hire(database)
    held, lost = jobs.running(), jobs.running()
    queued, waiting = jobs.submit(priority=9), jobs.submit()
    wait_long(jobs, queued, waiting)
    for fence, expired in ((held, 1.0), (lost, 2.0)):
        jobs.set(fence.job_id, lease_expires_at=expired)
    with database.write() as session:
        session.execute(select(Job.id).where(Job.id.in_([held.job_id, queued])).with_for_update())
        began = time.monotonic()
        done = once()
        assert time.monotonic() - began < 5
        assert done.taken_back == [lost]
        assert done.rung == 2  # for `waiting`, and for the one that came back
    assert once().taken_back == [held]


@pytest.mark.parametrize("answers", [True, False])
def test_a_job_that_cannot_be_taken_back_stops_the_others_only_where_the_database_is_away(
    jobs, once, database, monkeypatch, answers
):
    hire(database)
    broken, lost, waiting = jobs.running(), jobs.running(), jobs.submit()
    wait_long(jobs, waiting)
    for fence, expired in ((broken, 1.0), (lost, 2.0)):
        jobs.set(fence.job_id, lease_expires_at=expired)
    release = reconciler.release

    def refuse(session, fence, *arguments, **limits):
        if fence == broken:
            kind = DataError if answers else OperationalError
            raise kind("UPDATE", None, Exception("invalid input"))
        release(session, fence, *arguments, **limits)

    monkeypatch.setattr(reconciler, "release", refuse)
    if answers:
        done = once()
        assert (done.taken_back, done.rung) == ([lost], 2)
    else:
        with pytest.raises(OperationalError):
            once()


def test_rings_only_for_what_an_idle_worker_would_take(jobs, once, database):
    hire(database, memory=2**30)
    hire(database, memory=2**40, status="busy", id="w2")
    large, new = jobs.submit(), jobs.submit(spec_version=2)
    jobs.set(large, plan={"memory": {"total": 2**35, "copies": 0}})
    for status, rung in (("busy", 0), ("resting", 1), ("idle", 1)):
        hire(database, memory=2**40, status=status, id="w2")
        wait_long(jobs, large, new)
        assert once().rung == rung, status


def test_rings_for_what_nobody_heard(jobs, once, database, doorbell):
    job_id = jobs.submit()
    assert once().rung == 0, "there is nobody to hear it"
    hire(database)
    assert once().rung == 0, "its submitter rang a moment ago"
    wait_long(jobs, job_id)
    assert once().rung == 1
    assert once().rung == 0, "it backs off"
    assert doorbell.rung == ["auto"]
    assert doorbell.waiting("auto") == 1


def test_a_job_that_came_back_is_rung_for_at_once(jobs, once, database):
    hire(database)
    fence = jobs.running()
    with database.write() as session:
        attempts.yield_job(session, fence, "drain")
    assert once().rung == 1


def test_the_silence_grows_up_to_a_minute(jobs, database, settings, once):
    hire(database)
    job_id = jobs.submit()
    for rings, silence in ((0, 0.5), (1, 1), (3, 5), (10, 50.5)):
        for wait, rung in ((silence - 0.3, 0), (silence + 0.3, 1)):
            jobs.set(job_id, rings=rings, rung_at=time.time() - wait)
            assert once().rung == rung, (rings, wait)
    jobs.set(job_id, rings=10, rung_at=time.time() - 61)
    assert once().rung == 1
    assert jobs.get(job_id).rings == 10


@pytest.mark.parametrize("status", ["busy", "draining"])
def test_only_idle_workers_are_rung_for(jobs, once, database, status):
    hire(database, status=status)
    wait_long(jobs, jobs.submit())
    assert once().rung == 0


def test_no_flood_for_a_device_that_nobody_has(jobs, once, database, doorbell):
    hire(database, "cpu")
    wait_long(jobs, *[jobs.submit(device="cuda", priority=9) for _ in range(MOST_RINGS)], jobs.submit(device="cpu"))
    once()
    assert doorbell.rung == ["cpu"]
    hire(database, "cuda", id="w2")
    once()
    assert doorbell.rung == ["cpu"] + ["cuda"] * MOST_RINGS


def test_a_queue_that_holds_enough_gets_no_more(jobs, once, database, doorbell):
    hire(database)
    ids = [jobs.submit() for _ in range(30)]
    for _ in range(6):
        wait_long(jobs, *ids)
        once()
    assert doorbell.waiting("auto") < 2 * MOST_RINGS


def test_a_broker_that_is_away_costs_no_job_its_turn(jobs, once, database, settings):
    hire(database)
    job_id = jobs.submit()
    wait_long(jobs, job_id)
    absent = AbsentDoorbell(settings)
    assert (once(absent).rung, absent.rung, jobs.get(job_id).rings) == (0, [], 0)
    assert once().rung == 1


def test_of_many_reconcilers_one_rings(jobs, database, settings, at_once):
    hire(database)
    ids = [jobs.submit() for _ in range(5)]
    wait_long(jobs, *ids)
    jobs.set(ids[0], rings=10)
    assert sum(at_once(4, lambda _: reconcile(database, Doorbell(settings), settings).rung)) == 5


def test_workers_that_died_are_forgotten(jobs, once, database, settings):
    card = hire(database)
    with database.write() as session:
        session.get_one(workers.Worker, "w1").heartbeat_at -= settings.lease_seconds + 1
    wait_long(jobs, jobs.submit())
    assert once().rung == 0, "a silent worker hears nothing"
    with database.write() as session:
        session.get_one(workers.Worker, "w1").heartbeat_at = 1.0
    once()
    assert jobs.everything()["workers"] == []
    with database.write() as session:
        workers.beat(session, card)
        assert [w.id for w in workers.present(session, 10)] == ["w1"]
        workers.leave(session, "w1")
        assert workers.present(session, 10) == []
