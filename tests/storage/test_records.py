"""What a running attempt writes down."""

import math
from contextlib import suppress

import pytest
from sqlalchemy import update

from storage import attempts, queries, records
from storage.records import Point
from storage.tables import Checkpoint


def report(jobs, fence, *points, **values):
    with jobs.database.write() as session:
        records.report(session, fence, points=points, **values)


def series(jobs, job_id, **filters):
    with jobs.database.read() as session:
        found = queries.list_series(session, job_id, **filters)
    return {(one.stage, one.name): one.points for one in found}


def paths(jobs, job_id):
    return [row.path.rsplit("/", 1)[1] for row in jobs.checkpoints(job_id)]


def test_a_report_says_where_the_job_is(jobs):
    fence = jobs.running()
    version = jobs.get(fence.job_id).version
    report(jobs, fence, stage="distill-1", progress={"fraction": 0.5})
    report(jobs, fence)  # what is not said stays
    job = jobs.get(fence.job_id)
    assert (job.stage, job.progress, job.version) == ("distill-1", {"fraction": 0.5}, version + 2)


def test_only_movement_counts_as_movement(jobs):
    fence = jobs.running()
    jobs.set(fence.job_id, stepped_at=1.0)
    report(jobs, fence, moved=False)
    assert jobs.get(fence.job_id).stepped_at == 1.0
    report(jobs, fence)
    assert jobs.get(fence.job_id).stepped_at > 1e9


def test_points_come_back_as_reported(jobs):
    fence = jobs.running()
    report(jobs, fence, Point("a", "loss", 2, 0.25), Point("a", "loss", 1, 1 / 3), Point("b", "loss", 2**40, -1e300))
    report(jobs, fence, Point("a", "accuracy", 1, 1.0))
    assert series(jobs, fence.job_id) == {
        ("a", "accuracy"): [(1, 1.0)],
        ("a", "loss"): [(1, 1 / 3), (2, 0.25)],
        ("b", "loss"): [(2**40, -1e300)],
    }


def test_a_repeated_point_is_replaced_and_a_nan_is_a_gap(jobs):
    fence = jobs.running()
    report(jobs, fence, Point("a", "loss", 1, 1.0), Point("a", "loss", 2, math.nan), Point("a", "loss", 3, math.inf))
    report(jobs, fence, Point("a", "loss", 1, 2.0), Point("a", "loss", 4, 4.0))
    assert series(jobs, fence.job_id) == {("a", "loss"): [(1, 2.0), (4, 4.0)]}


def test_of_a_point_that_comes_twice_in_one_report_the_last_counts(jobs):
    fence = jobs.running()
    report(jobs, fence, Point("a", "loss", 1, 1.0), Point("a", "loss", 2, 2.0), Point("a", "loss", 1, 3.0))
    assert series(jobs, fence.job_id) == {("a", "loss"): [(1, 3.0), (2, 2.0)]}


def test_rewind_drops_what_will_be_reported_again(jobs, database):
    fence, other = jobs.running(), jobs.running()
    for target in (fence, other):
        report(jobs, target, *[Point(stage, "loss", step, 0.0) for stage in ("a", "b", "c") for step in (1, 2, 3)])
    with database.write() as session:
        records.rewind(session, fence, {"a": None, "b": 2})
    assert series(jobs, fence.job_id) == {
        ("a", "loss"): [(1, 0.0), (2, 0.0), (3, 0.0)],
        ("b", "loss"): [(1, 0.0), (2, 0.0)],
    }
    with database.write() as session:
        records.rewind(session, fence, {})
    assert series(jobs, fence.job_id) == {}
    assert len(series(jobs, other.job_id)) == 3


def test_the_first_attempt_chooses_for_all(jobs, database):
    fence = jobs.running(device="auto")
    with database.write() as session:
        assert records.store_choices(session, fence, {"device": "cpu", "threads": 2})["threads"] == 2
    with database.write() as session:
        attempts.yield_job(session, fence, "drain")
    again = jobs.claim()
    with database.write() as session:
        assert records.store_choices(session, again, {"device": "cuda", "threads": 8}) == {
            "device": "cpu",
            "threads": 2,
        }
    assert jobs.get(fence.job_id).device == "cpu"


def test_two_checkpoints_are_kept_and_the_rest_may_go(jobs):
    fence = jobs.running()
    jobs.set(fence.job_id, failures=2)
    assert jobs.checkpoint(fence, "1.pt", step=1) == []
    assert jobs.get(fence.job_id).failures == 0
    assert jobs.checkpoint(fence, "2.pt", step=2) == []
    assert jobs.checkpoint(fence, "3.pt", step=3) == [f"jobs/{fence.job_id}/attempt-1/checkpoints/1.pt"]
    assert paths(jobs, fence.job_id) == ["3.pt", "2.pt"]
    assert jobs.events(fence.job_id)[-3:] == ["checkpoint"] * 3
    newest = jobs.checkpoints(fence.job_id)[0]
    assert (newest.id, newest.step, newest.stage, newest.attempt, newest.size) == (3, 3, "distill-1", 1, 10)


def test_a_checkpoint_that_is_said_again_is_the_same_one(jobs):
    fence = jobs.running()
    jobs.checkpoint(fence, "1.pt")
    jobs.checkpoint(fence, "2.pt")
    assert jobs.checkpoint(fence, "2.pt") == []  # sent again, since the first answer was lost
    assert paths(jobs, fence.job_id) == ["2.pt", "1.pt"]
    assert jobs.events(fence.job_id).count("checkpoint") == 2
    jobs.end(fence, "failed")
    jobs.ask(fence.job_id, "retry")
    assert jobs.checkpoint(jobs.claim(), "2.pt") == [f"jobs/{fence.job_id}/attempt-1/checkpoints/1.pt"]


def test_a_file_that_the_first_release_named_twice_is_not_given_away(jobs, database):
    fence = jobs.running()
    jobs.checkpoint(fence, "1.pt")
    jobs.checkpoint(fence, "2.pt")
    twice = jobs.checkpoints(fence.job_id)[0].path
    with database.write() as session:
        session.execute(update(Checkpoint).where(Checkpoint.job_id == fence.job_id).values(path=twice))
    assert jobs.checkpoint(fence, "3.pt") == []
    assert paths(jobs, fence.job_id) == ["3.pt", "2.pt"]


def test_a_bad_checkpoint_is_forgotten(jobs, database):
    fence = jobs.running()
    jobs.checkpoint(fence, "1.pt")
    jobs.checkpoint(fence, "2.pt")
    with database.write() as session:
        records.set_aside_checkpoint(session, fence, 2, "truncated")
    assert paths(jobs, fence.job_id) == ["1.pt"]
    assert jobs.events(fence.job_id)[-1] == "checkpoint_rejected"
    with database.write() as session:
        records.set_aside_checkpoint(session, fence, 2, "truncated")  # sent again
    assert jobs.events(fence.job_id).count("checkpoint_rejected") == 1


def tell(jobs, fence, tried, *, lost=False):
    """The id that is returned; with `lost`, the transaction is not committed."""
    told = None
    with suppress(ZeroDivisionError), jobs.database.write() as session:
        told = records.add_events(session, fence, [("stage_started", {"stage": "a"}), ("noted", {})], tried)
        if lost:
            raise ZeroDivisionError
    return told


def test_events_are_told_once_whether_a_try_was_committed_or_not(jobs):
    fence = jobs.running()
    told = tell(jobs, fence, None, lost=True)
    jobs.ask(fence.job_id, "pause")  # takes the number that the events would have had
    told = tell(jobs, fence, told)
    once = ["submitted", "claimed", "pause_requested", "stage_started", "noted"]
    assert jobs.events(fence.job_id) == once
    assert tell(jobs, fence, told) == told
    assert jobs.events(fence.job_id) == once
    assert tell(jobs, fence, None) == told + 2  # the same words, told as something new
    assert jobs.events(fence.job_id) == [*once, *once[-2:]]


def test_publishing_again_replaces(jobs, database):
    fence = jobs.running()
    first = [records.NewArtifact(name, "sha256:aa", 1, "text/plain") for name in ("b", "a")]
    with database.write() as session:
        records.publish(session, fence, first)
    with database.write() as session:
        records.publish(session, fence, first[:1])
        found = queries.list_artifacts(session, fence.job_id)
        assert [(a.name, a.digest, a.size) for a in found] == [("b", "sha256:aa", 1)]
        assert found[0].created_at > 1e9
    with database.write() as session:
        records.publish(session, fence, [])
        assert queries.list_artifacts(session, fence.job_id) == []


@pytest.mark.parametrize("number", [1, 600])
def test_a_batch_of_any_size(jobs, number):
    fence = jobs.running()
    report(jobs, fence, *[Point("a", "loss", step, float(step)) for step in range(number)])
    assert len(series(jobs, fence.job_id)["a", "loss"]) == number
