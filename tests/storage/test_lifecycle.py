"""Every change in every status, every request in every status, and the history they leave."""

import threading
import time

import pytest
from sqlalchemy import select

from kdcore.spec import JobSpec
from storage import actions, queries
from storage.database import Database, now
from storage.errors import ConflictError, NotFoundError
from storage.lifecycle import TERMINAL, TRANSITIONS, Status, add_event, move
from storage.tables import MOST_TEACHERS

STATUSES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
CHANGES = {  # change: (from, to), written down a second time on purpose
    "claimed": ({"queued"}, "running"),
    "requeued": ({"running"}, "queued"),
    "paused": ({"queued", "running"}, "paused"),
    "resumed": ({"paused"}, "queued"),
    "cancelled": ({"queued", "paused", "running"}, "cancelled"),
    "succeeded": ({"running"}, "succeeded"),
    "failed": ({"running"}, "failed"),
    "retried": ({"failed", "cancelled"}, "queued"),
}
REFUSED = "refused"
REQUESTS = {  # situation: what cancel, pause, resume, retry lead to
    "queued": ("cancelled", "paused", "queued", "queued"),
    "running": ("running+cancel", "running+pause", REFUSED, REFUSED),
    "running+pause": ("running+cancel", "running+pause", REFUSED, REFUSED),
    "running+cancel": ("running+cancel", REFUSED, REFUSED, REFUSED),
    "paused": ("cancelled", "paused", "queued", REFUSED),
    "succeeded": (REFUSED, REFUSED, REFUSED, REFUSED),
    "failed": (REFUSED, REFUSED, REFUSED, "queued"),
    "cancelled": ("cancelled", REFUSED, REFUSED, "queued"),
}


def situation(jobs, job_id):
    status, request = jobs.state(job_id)
    return f"{status}+{request}" if request else status


def test_the_table_is_the_design_s():
    assert {change: (set(sources), target) for change, (sources, target) in TRANSITIONS.items()} == CHANGES
    assert set(STATUSES) == set(Status)
    assert {"succeeded", "failed", "cancelled"} == TERMINAL


def test_every_change_in_every_status(jobs, database):
    for change, (sources, target) in CHANGES.items():
        for status in STATUSES:
            job_id = jobs.put(status)
            before, history = jobs.get(job_id), jobs.events(job_id)
            with database.write() as session:
                moved = move(session, job_id, change)
            after = jobs.get(job_id)
            assert moved == (status in sources), (change, status)
            assert after.status == (target if moved else status), (change, status)
            assert after.version == before.version + moved, (change, status)
            assert jobs.events(job_id) == history + [change] * moved, (change, status)
            if moved:
                assert (after.finished_at is not None) == (target in TERMINAL), (change, status)
                assert (after.worker_id, after.lease_expires_at, after.request) == (None, None, None), (change, status)


@pytest.mark.parametrize("before", REQUESTS)
def test_requests(jobs, before):
    for action, expected in zip(("cancel", "pause", "resume", "retry"), REQUESTS[before], strict=True):
        job_id = jobs.put(before)
        row = jobs.get(job_id)
        if expected == REFUSED:
            with pytest.raises(ConflictError):
                jobs.ask(job_id, action)
        else:
            jobs.ask(job_id, action)
        assert situation(jobs, job_id) == (before if expected == REFUSED else expected), action
        if expected in (REFUSED, before):
            assert jobs.get(job_id).version == row.version, f"{action} changed nothing, yet the version grew"
        else:
            history = jobs.events(job_id)
            jobs.ask(job_id, action)  # asking again is answered, and changes nothing
            assert situation(jobs, job_id) == expected, action
            assert jobs.events(job_id) == history, action


def test_a_conflict_says_what_would_be_allowed(jobs):
    job_id = jobs.put("succeeded")
    with pytest.raises(ConflictError, match="cannot retry a succeeded job; only cancelled or failed ones"):
        jobs.ask(job_id, "retry")


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry"])
def test_other_owners_jobs_do_not_exist(jobs, action):
    job_id = jobs.put("queued", owner="alice")
    for id, owner in ((job_id, "bob"), ("job_unknown", "alice")):
        with pytest.raises(NotFoundError, match=id):
            jobs.ask(id, action, owner)
    assert jobs.state(job_id) == ("queued", None)


def test_retry_starts_afresh_and_keeps_what_was_learnt(jobs):
    fence = jobs.running()
    jobs.checkpoint(fence, "a.pt")
    jobs.end(fence, "failed")
    jobs.set(fence.job_id, failures=2, spent_seconds=50.0, choices={"device": "cpu"})
    jobs.ask(fence.job_id, "retry")
    job = jobs.get(fence.job_id)
    assert (job.error, job.failures, job.spent_seconds, job.finished_at) == (None, 0, 0.0, None)
    assert (job.attempt, job.choices) == (1, {"device": "cpu"})
    assert len(jobs.checkpoints(fence.job_id)) == 1
    assert jobs.claim().attempt == 2


def test_delete_takes_terminal_jobs_with_all_that_is_theirs(jobs, database):
    for status in STATUSES:
        job_id = jobs.put(status, key=status, labels={"team": "red"})
        with pytest.raises(NotFoundError), database.write() as session:
            actions.remove(session, job_id, "bob")
        if status in TERMINAL:
            with database.write() as session:
                actions.remove(session, job_id, "alice")
            with pytest.raises(NotFoundError), database.write() as session:
                actions.remove(session, job_id, "alice")
            left = [name for name, rows in jobs.everything().items() if any(job_id in row for row in rows)]
            assert left == [], status
        else:
            with pytest.raises(ConflictError, match=f"a {status} job cannot be deleted"), database.write() as session:
                actions.remove(session, job_id, "alice")
            assert jobs.get(job_id).status == status


@pytest.mark.parametrize("before", [0, 1, 15])
def test_a_teacher_that_another_job_waits_for_cannot_be_deleted(jobs, database, before):
    teacher = jobs.put("succeeded")
    student = jobs.submit(teachers=[{"weights": None}] * before + [{"weights": {"job": teacher}}])
    with pytest.raises(ConflictError, match="to learn from this job's teacher"), database.write() as session:
        actions.remove(session, teacher, "alice")
    jobs.ask(student, "cancel")
    with database.write() as session:
        actions.remove(session, teacher, "alice")


def test_a_student_that_another_job_begins_with_cannot_be_deleted(jobs, database):
    first = jobs.put("succeeded")
    second = jobs.submit(teachers=[{"weights": None}], student={"weights": {"job": first}})
    with pytest.raises(ConflictError, match="to begin with its student"), database.write() as session:
        actions.remove(session, first, "alice")
    jobs.ask(second, "cancel")
    with database.write() as session:
        actions.remove(session, first, "alice")


def test_no_spec_has_more_teachers_than_are_looked_at():
    assert JobSpec.model_json_schema()["properties"]["teachers"]["maxItems"] == MOST_TEACHERS


def test_one_of_many_deletes_finds_the_job(jobs, database, at_once):
    job_id = jobs.put("failed")

    def delete(_):
        with database.write() as session:
            actions.remove(session, job_id, "alice")
        return "deleted"

    results = at_once(8, delete)
    assert results.count("deleted") == 1
    assert sum(isinstance(result, NotFoundError) for result in results) == 7


def test_equal_requests_at_once_leave_one(jobs, at_once):
    fence = jobs.running()
    assert at_once(12, lambda _: jobs.ask(fence.job_id, "cancel")) == [None] * 12
    assert jobs.events(fence.job_id) == ["submitted", "claimed", "cancel_requested"]


def test_cancel_and_pause_at_once_end_in_cancel(jobs, at_once):
    for _ in range(5):
        fence = jobs.running()
        results = at_once(8, lambda i, fence=fence: jobs.ask(fence.job_id, ("cancel", "pause")[i % 2]))
        assert jobs.state(fence.job_id) == ("running", "cancel")
        assert all(result is None or isinstance(result, ConflictError) for result in results)
        assert results[::2] == [None] * 4


def test_a_cancel_that_meets_a_claim_is_never_lost(jobs, at_once):
    for _ in range(10):
        job_id = jobs.submit()
        claimed = at_once(2, lambda i, id=job_id: jobs.ask(id, "cancel") if i else jobs.try_claim())[0]
        assert jobs.state(job_id) == (("running", "cancel") if claimed else ("cancelled", None))
        if claimed:
            jobs.end(claimed, "cancelled")


def test_event_ids_have_no_gaps_and_appear_in_order(jobs, database, at_once):
    fence = jobs.running()
    done, seen = threading.Event(), []

    def write(index):
        for number in range(15):
            try:
                with database.write() as session:
                    add_event(session, fence, "note", {"by": index})
                    if number % 5 == 4:
                        raise KeyError  # rolled back: its id goes to another
            except KeyError:
                pass

    def watch():
        while not done.is_set():
            with database.read() as session:
                new = queries.list_events(session, fence.job_id, after=seen[-1] if seen else 0, limit=7)
            seen.extend(event.id for event in new)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert at_once(6, write) == [None] * 6
    finally:
        time.sleep(0.05)
        done.set()
        watcher.join(10)
    assert len(jobs.events(fence.job_id)) == 2 + 6 * 12
    assert seen == list(range(1, len(seen) + 1)), "a watcher missed an event"


def test_the_clock_is_the_database_s(database: Database, jobs):
    job = jobs.get(jobs.submit())
    assert abs(job.created_at - time.time()) < 5
    with database.read() as session:
        assert abs(session.scalar(select(now())) - time.time()) < 5
