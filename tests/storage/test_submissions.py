"""Accepting jobs: once per key, all or nothing."""

import pytest

from storage import actions
from storage.errors import KeyReusedError, QueueFullError


def test_a_submission_leaves_a_complete_job(jobs):
    job_id = jobs.submit(name="mine", priority=3, device="cpu", labels={"team": "red", "run": "7"}, owner="bob")
    job = jobs.get(job_id)
    assert (job.owner, job.name, job.status, job.priority, job.device) == ("bob", "mine", "queued", 3, "cpu")
    assert (job.attempt, job.version, job.request, job.started_at, job.result) == (0, 1, None, None, None)
    assert job.spec["labels"] == {"team": "red", "run": "7"}
    assert jobs.events(job_id) == ["submitted"]
    assert len(jobs.everything()["job_labels"]) == 2


def test_a_key_gives_the_same_job_whatever_became_of_it(jobs):
    job_id = jobs.put("succeeded", key="k")
    assert jobs.submit(key="k") == job_id
    assert jobs.submit(key="k", most=1) == job_id
    assert len(jobs.everything()["jobs"]) == 1


def test_a_key_belongs_to_one_spec_and_one_owner(jobs):
    job_id = jobs.submit(key="k")
    with pytest.raises(KeyReusedError) as caught:
        jobs.submit(key="k", digest="sha256:two")
    assert caught.value.job_id == job_id
    assert jobs.submit(key="k", owner="bob", digest="sha256:two") != job_id
    assert jobs.submit(key="other", digest="sha256:two") != job_id
    assert jobs.submit() != jobs.submit()


def test_a_key_lives_as_long_as_its_job(jobs, database):
    job_id = jobs.put("cancelled", key="k")
    with database.write() as session:
        actions.remove(session, job_id, "alice")
    assert jobs.submit(key="k", digest="sha256:two") != job_id


def test_a_full_queue_takes_no_more(jobs):
    for status in ("running", "paused", "succeeded"):
        jobs.put(status)
    kept = jobs.submit(key="k", most=2)
    jobs.submit(most=2)
    with pytest.raises(QueueFullError, match="2 jobs are queued"):
        jobs.submit(most=2)
    assert jobs.submit(key="k", most=2) == kept, "a repeated submission is no new job"
    jobs.claim()
    jobs.submit(most=2)


def test_twenty_equal_submissions_at_once_are_one_job(jobs, at_once):
    results = at_once(20, lambda _: jobs.submit(key="same", labels={"a": "b"}))
    assert len(set(results)) == 1, results
    rows = jobs.everything()
    assert [len(rows[name]) for name in ("jobs", "idempotency_keys", "job_labels", "events")] == [1, 1, 1, 1]
    assert jobs.get(results[0]).status == "queued"


def test_one_key_for_two_specs_at_once_goes_to_one(jobs, at_once):
    results = at_once(16, lambda i: jobs.submit(key="same", digest=f"sha256:{i % 2}"))
    ids = {result for result in results if isinstance(result, str)}
    refused = [result for result in results if isinstance(result, KeyReusedError)]
    assert len(ids) == 1, results
    assert len(refused) == 8, results
    assert {error.job_id for error in refused} == ids
    assert len(jobs.everything()["jobs"]) == 1


def test_a_key_whose_job_is_just_being_deleted_is_free_or_taken(jobs, database, at_once):
    for round_ in range(5):
        old = jobs.put("failed", key=f"k{round_}")

        def work(index, old=old, key=f"k{round_}"):
            if index:
                return jobs.submit(key=key)
            with database.write() as session:
                return actions.remove(session, old, "alice")

        results = at_once(6, work)
        assert results[0] is None
        assert not [r for r in results[1:] if not isinstance(r, (str, QueueFullError))], results
        assert len({r for r in results[1:] if isinstance(r, str) and r != old}) <= 1
