"""What workers do with a claimed job, and that only the running attempt can."""

import contextlib
import threading
import time

import pytest
from sqlalchemy import select

from storage import actions, attempts, records, uploads
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence, add_event, hold
from storage.tables import Attempt, Metric

ERROR = {"code": "crashed", "kind": "system", "message": "the process died"}
ARTIFACT = records.NewArtifact("student.onnx", "sha256:aa", 3, "application/octet-stream")
FENCED = {
    "heartbeat": lambda s, f: attempts.heartbeat(s, f, 30.0),
    "succeed": lambda s, f: attempts.succeed(s, f, {"summary": "late"}),
    "fail": lambda s, f: attempts.fail(s, f, ERROR),
    "yield cancel": lambda s, f: attempts.yield_job(s, f, "cancel"),
    "yield pause": lambda s, f: attempts.yield_job(s, f, "pause"),
    "yield drain": lambda s, f: attempts.yield_job(s, f, "drain"),
    "release": lambda s, f: attempts.release(s, f, ERROR, max_failures=3, backoff_seconds=1.0),
    "add_event": lambda s, f: add_event(s, f, "note", {}),
    "add_events": lambda s, f: records.add_events(s, f, [("note", {})]),
    "report": lambda s, f: records.report(s, f, stage="late", points=[records.Point("late", "loss", 1, 0.5)]),
    "store_choices": lambda s, f: records.store_choices(s, f, {"device": "cuda"}),
    "rewind": lambda s, f: records.rewind(s, f, {}),
    "record_checkpoint": lambda s, f: records.record_checkpoint(
        s, f, stage="late", epoch=1, step=1, path="p", digest="d", size=1
    ),
    "set_aside_checkpoint": lambda s, f: records.set_aside_checkpoint(s, f, 1, "bad"),
    "publish": lambda s, f: records.publish(s, f, [ARTIFACT]),
    "hold": lambda s, f: hold(s, f),
    "join": lambda s, f: uploads.join(s, f, "ds_none", "sha256:x"),
    "lose_parts": lambda s, f: uploads.lose_parts(s, f, "ds_none", [1]),
}


def release(jobs, fence, *, max_failures=3, backoff_seconds=2.0):
    with jobs.database.write() as session:
        attempts.release(session, fence, ERROR, max_failures=max_failures, backoff_seconds=backoff_seconds)


def give_up(jobs, fence, reason):
    with jobs.database.write() as session:
        attempts.yield_job(session, fence, reason)


def outcomes(jobs, job_id):
    with jobs.database.read() as session:
        rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).all()
    assert all((row.outcome is None) == (row.finished_at is None) for row in rows)
    return [row.outcome for row in rows]


def test_stale_writes_change_nothing(jobs, database):
    """Of an attempt that was replaced, and of one whose job has ended, paused or was deleted."""
    replaced = jobs.running()
    jobs.checkpoint(replaced, "a.pt")
    with database.write() as session:
        records.report(session, replaced, points=[records.Point("distill-1", "loss", 1, 0.5)])
    give_up(jobs, replaced, "drain")
    assert jobs.claim() == Fence(replaced.job_id, 2)
    stale = [replaced, Fence(replaced.job_id, 3), Fence("job_none", 1)]
    stale += [Fence(jobs.put(status), 1) for status in ("succeeded", "failed", "cancelled", "queued", "paused")]
    before = jobs.everything()
    for name, write in FENCED.items():
        for fence in stale:
            with pytest.raises(StaleAttemptError), database.write() as session:
                write(session, fence)
        assert jobs.everything() == before, name


def test_the_running_attempt_may_do_all_of_it(jobs, database):
    """The other half: what the test above refuses is refused for the fence alone."""
    for name, write in FENCED.items():
        fence = jobs.running()
        jobs.checkpoint(fence, "a.pt")
        before = jobs.everything()
        with database.write() as session:
            write(session, fence)
        assert (jobs.everything() == before) == (name in ("hold", "join", "lose_parts")), name  # nothing to change


def test_every_fenced_function_is_tested():
    """A new function that takes a fence belongs into `FENCED`."""
    takers = {
        name
        for module in (attempts, records, uploads)
        for name, found in vars(module).items()
        if callable(found) and not name.startswith("_") and "fence" in getattr(found, "__annotations__", {})
    }
    assert takers - {"move"} == {name.split()[0].replace("yield", "yield_job") for name in FENCED}


def test_heartbeat_renews_and_tells(jobs, database):
    fence = jobs.running()
    jobs.set(fence.job_id, lease_expires_at=1.0, stepped_at=time.time() - 50)
    version = jobs.get(fence.job_id).version
    with database.write() as session:
        pulse = attempts.heartbeat(session, fence, 40.0)
    assert pulse.request is None
    assert 45 < pulse.idle_seconds < 60
    assert 35 < jobs.get(fence.job_id).lease_expires_at - time.time() < 45
    assert jobs.get(fence.job_id).version == version, "a heartbeat is nothing to see"
    jobs.ask(fence.job_id, "pause")
    with database.write() as session:
        assert attempts.heartbeat(session, fence, 40.0).request == "pause"
        records.report(session, fence)
        assert attempts.heartbeat(session, fence, 40.0).idle_seconds < 5


def test_success_publishes_all_or_nothing(jobs, database):
    fence = jobs.running()
    with contextlib.suppress(KeyError), database.write() as session:
        records.publish(session, fence, [ARTIFACT])
        attempts.succeed(session, fence, {"summary": "fine"})
        raise KeyError
    assert jobs.state(fence.job_id) == ("running", None)
    assert jobs.everything()["artifacts"] == []
    jobs.ask(fence.job_id, "cancel")  # too late: the work is done
    with database.write() as session:
        records.publish(session, fence, [ARTIFACT])
        attempts.succeed(session, fence, {"summary": "fine"})
    job = jobs.get(fence.job_id)
    assert (job.status, job.request, job.result, job.stage) == ("succeeded", None, {"summary": "fine"}, None)
    assert len(jobs.everything()["artifacts"]) == 1
    assert outcomes(jobs, fence.job_id) == ["succeeded"]


def test_failures_are_tried_again_until_the_limit(jobs):
    fence = jobs.running()
    waits = []
    for _ in range(3):
        release(jobs, fence, max_failures=4)
        job = jobs.get(fence.job_id)
        assert job.status == "queued"
        waits.append(job.available_at - time.time())
        jobs.set(fence.job_id, available_at=0.0)
        fence = jobs.claim()
    assert waits == pytest.approx([0, 2, 4], abs=1.5)
    release(jobs, fence, max_failures=4)
    job = jobs.get(fence.job_id)
    assert (job.status, job.failures) == ("failed", 4)
    assert job.error == ERROR | {"message": "the process died (attempt 4 in a row without progress)"}
    assert outcomes(jobs, fence.job_id) == ["requeued"] * 3 + ["failed"]


def test_a_checkpoint_starts_the_count_anew_and_drain_never_counts(jobs):
    fence = jobs.running()
    for number in range(6):
        jobs.checkpoint(fence, f"{number}.pt")
        release(jobs, fence, max_failures=2)
        assert jobs.get(fence.job_id).failures == 1
        fence = jobs.claim()
    for _ in range(6):
        give_up(jobs, fence, "drain")
        assert jobs.state(fence.job_id) == ("queued", None)
        fence = jobs.claim()
    assert jobs.get(fence.job_id).failures == 1


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_failure_grants_what_was_asked(jobs, request_, status):
    fence = jobs.running()
    jobs.set(fence.job_id, failures=2)
    jobs.ask(fence.job_id, request_)
    release(jobs, fence, max_failures=3)
    assert jobs.state(fence.job_id) == (status, None)


@pytest.mark.parametrize("pending", [None, "pause", "cancel"])
@pytest.mark.parametrize("reason", ["drain", "pause", "cancel"])
def test_giving_up_grants_the_request_that_outranks_the_reason(jobs, reason, pending):
    fence = jobs.running()
    if pending:
        jobs.ask(fence.job_id, pending)
    give_up(jobs, fence, reason)
    rank = {None: 0, "drain": 1, "pause": 2, "cancel": 3}
    granted = max(reason, pending, key=rank.get)
    assert jobs.state(fence.job_id) == ({"drain": "queued", "pause": "paused", "cancel": "cancelled"}[granted], None)


@pytest.mark.parametrize("end", ["drain", "pause", "release"])
def test_a_cancel_that_arrives_while_an_attempt_ends_is_never_lost(jobs, database, end):
    fence = jobs.running()
    finish = (lambda: release(jobs, fence)) if end == "release" else (lambda: give_up(jobs, fence, end))
    thread = threading.Thread(target=finish)
    with database.write() as session:
        actions.request(session, fence.job_id, "alice", "cancel")
        thread.start()
        time.sleep(0.3)  # the attempt looks at the job now, before the request is committed
    thread.join(20)
    assert jobs.state(fence.job_id) == ("cancelled", None)


def test_time_is_summed_over_attempts(jobs, database):
    fence = jobs.running()
    for number in (1, 2):
        with database.write() as session:
            session.get_one(Attempt, (fence.job_id, number)).started_at -= 100
        release(jobs, fence)
        assert jobs.get(fence.job_id).spent_seconds == pytest.approx(100 * number, abs=5)
        jobs.set(fence.job_id, available_at=0.0)
        fence = jobs.claim()


def test_a_lost_attempt_is_charged_until_its_lease_ran_out(jobs, database):
    fence = jobs.running()
    with database.write() as session:
        attempt = session.get_one(Attempt, (fence.job_id, 1))
        attempt.started_at -= 36_000
        began = attempt.started_at
    jobs.set(fence.job_id, lease_expires_at=began + 90)
    release(jobs, fence)
    assert jobs.get(fence.job_id).spent_seconds == pytest.approx(90, abs=0.01)


def test_of_a_finish_and_a_take_over_one_wins(jobs, at_once):
    for _ in range(8):
        fence = jobs.running()
        won = at_once(2, lambda i, f=fence: jobs.end(f, "succeeded") if i else release(jobs, f))
        losers = [result for result in won if result is not None]
        assert len(losers) == 1
        assert isinstance(losers[0], StaleAttemptError)
        assert jobs.get(fence.job_id).status == ("queued" if won[0] is None else "succeeded")
        jobs.set(fence.job_id, available_at=time.time() + 1e6)


def test_stale_points_do_not_mix_in(jobs, database):
    old = jobs.running()
    give_up(jobs, old, "drain")
    new = jobs.claim()
    with pytest.raises(StaleAttemptError), database.write() as session:
        records.report(session, old, points=[records.Point("distill-1", "loss", 1, 9.0)])
    with database.write() as session:
        records.report(session, new, points=[records.Point("distill-1", "loss", 1, 1.0)])
    with database.read() as session:
        assert [(m.attempt, m.value) for m in session.scalars(select(Metric))] == [(2, 1.0)]


def test_the_pause_after_many_failures_is_bounded(jobs):
    """It doubled without end: with a high limit a job that had failed 58 times would have waited for ages."""
    fence = jobs.running()
    jobs.set(fence.job_id, failures=58)
    with jobs.database.write() as session:
        attempts.release(session, fence, ERROR, max_failures=100, backoff_seconds=2.0, longest_backoff_seconds=7.0)
    job = jobs.get(fence.job_id)
    assert job.failures == 59
    assert 6.5 < job.available_at - job.updated_at < 7.5
