"""What must not grow with the number of all jobs: rows looked at, statements, and time spent writing."""

import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import event, insert, text

from storage import actions, queries, retention
from storage.blobs import BlobStore
from storage.figures import job_durations
from storage.retention import sweep
from storage.tables import Job, JobLabel

JOBS = 8_000


@pytest.fixture
def said(database):
    """Collects the statements of a block, with their parameters."""

    @contextmanager
    def collecting():
        found = []

        def collect(connection, cursor, statement, parameters, context, many):
            found.append((statement, parameters))

        event.listen(database.engine, "before_cursor_execute", collect)
        try:
            yield found
        finally:
            event.remove(database.engine, "before_cursor_execute", collect)

    return collecting


def plan_of(database, statement, parameters):
    words = "EXPLAIN QUERY PLAN" if database.engine.dialect.name == "sqlite" else "EXPLAIN"
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"{words} {statement}", parameters).all()
    return "\n".join(str(row[-1]) for row in rows)


@pytest.fixture
def many(database):
    """Jobs as years leave them: nearly all have ended."""
    row = {"owner": "alice", "priority": 0, "device": "auto", "spec": {"teachers": [{}]}, "spec_digest": "d"}
    row |= {"plan": {"layers": "x" * 2_000}, "created_at": 1.0, "updated_at": 1.0, "available_at": 1.0}
    rows = [
        {**row, "id": f"job_{n:026d}", "name": f"n{n % 5}", "status": "queued" if n % 200 == 0 else "failed"}
        for n in range(JOBS)
    ]
    labels = [
        {"job_id": f"job_{n:026d}", "key": "team", "value": "rare" if n % 2_000 == 7 else "usual"} for n in range(JOBS)
    ]
    ended = {"started_at": 1.0, "finished_at": 3.0}
    with database.write() as session:
        session.execute(insert(Job), [one | (ended if one["status"] == "failed" else {}) for one in rows])
        session.execute(insert(JobLabel), labels)
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM ANALYZE")


def page(**filters):
    return lambda session: queries.page_jobs(session, "alice", limit=20, **filters)


LABEL, TWO = [("team", "rare")], [("team", "rare"), ("team", "usual")]
CALLS = {  # each with the index that SQLite, which knows nothing of how common a value is, must be led to
    "a label that few jobs carry": (page(labels=LABEL), "ix_job_labels_key_value"),
    "its next page": (page(labels=LABEL, after=f"job_{5_000:026d}"), "ix_job_labels_key_value (key=? AND value=? AND"),
    "two labels": (page(labels=TWO), "ix_job_labels_key_value"),
    "a name and a common status": (page(name="none", status="failed"), "ix_jobs_owner_name_status_id"),
    "deleting": (lambda session: actions.remove(session, f"job_{7:026d}", "alice"), "(status=?)"),
    "durations": (lambda session: job_durations(session, (1.0, 5.0)), "COVERING INDEX ix_jobs_times"),
}


def test_no_question_reads_all_jobs(database, many, said):
    for name, (call, index) in CALLS.items():
        with said() as statements, database.read() as session:
            call(session)
        plans = [plan_of(database, *one) for one in statements if one[0].lstrip().startswith("SELECT")]
        if database.engine.dialect.name == "sqlite":
            assert any(index in plan for plan in plans), f"{name}:\n{plans}"
            assert "SCAN jobs" not in "".join(plans), f"{name}:\n{plans}"
        else:
            assert "Seq Scan on jobs" not in "".join(plans), f"{name}:\n{plans}"


def test_labels_still_choose_and_order(jobs, database, many):
    with database.read() as session:
        rare = [7, 2_007, 4_007, 6_007]
        found, more = queries.page_jobs(session, "alice", limit=3, labels=LABEL)
        assert ([job.id for job in found], more) == ([f"job_{n:026d}" for n in rare[:0:-1]], True)
        found, more = queries.page_jobs(session, "alice", limit=3, labels=LABEL, after=found[-1].id)
        assert ([job.id for job in found], more) == ([f"job_{7:026d}"], False)
        assert queries.page_jobs(session, "alice", limit=3, labels=TWO) == ([], False)
        assert queries.page_jobs(session, "bob", limit=3, labels=LABEL) == ([], False)


def folders(settings, numbers):
    for number in numbers:
        (settings.jobs / f"job_{number:026d}" / "attempt-1").mkdir(parents=True)


def test_a_sweep_asks_for_the_folders_of_many_jobs_at_once(database, settings, many, said):
    counts = []
    for numbers in (range(10), range(10, 300)):
        folders(settings, numbers)
        with said() as statements:
            sweep(database, settings)
        counts.append(len(statements))
    assert counts[0] == counts[1]
    assert len(list(settings.jobs.iterdir())) == 300


def test_a_sweep_that_finds_nothing_writes_nothing(database, settings, many, said):
    with said() as statements:
        sweep(database, settings.model_copy(update={"keep_artifacts_days": 0.0, "disk_quota_bytes": 2**30}))
    assert not [one for one, _ in statements if one.startswith(("BEGIN IMMEDIATE", "DELETE", "UPDATE"))]


def test_the_quota_is_not_added_up_anew_for_each_job(database, settings, jobs, said):
    counts = []
    for number in (2, 20):
        for _ in range(number):
            fence = jobs.running()
            jobs.checkpoint(fence, "a.pt")
            jobs.end(fence, "failed")
        with said() as statements:
            assert sweep(database, settings.model_copy(update={"disk_quota_bytes": 1})).checkpoints == number
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_blobs_are_compared_with_rows_some_at_a_time(database, settings, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    store = BlobStore(settings.blobs)
    for number in range(7):
        source = settings.home / "source"
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(bytes([number]))
        store.put(source)
    assert sweep(database, settings.model_copy(update={"sweep_grace_seconds": 0.0})).bytes == 7
    assert list(store.all()) == []


def test_writers_on_sqlite_wait_for_their_turn_and_do_not_try_again_and_again(database, said):
    """Of sixteen that tried, some got no turn for seconds, and would have failed after fifteen."""
    if database.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL's writers do not exclude each other")

    def write():
        with database.write() as session:
            session.execute(text("SELECT 1"))

    second = threading.Thread(target=write)
    with said() as statements:
        with database.write() as session:
            session.execute(text("SELECT 1"))
            second.start()
            second.join(0.3)
            assert second.is_alive()
            assert [one for one, _ in statements if one.startswith("BEGIN")] == ["BEGIN IMMEDIATE"]
        second.join(10)
    assert not second.is_alive()
    assert [one for one, _ in statements if one.startswith("BEGIN")] == ["BEGIN IMMEDIATE"] * 2


def test_twenty_requests_at_once_find_their_connections_again(database, at_once):
    """Half of them opened one anew each time: sixteen a second under load, a process of PostgreSQL's for each."""
    opened, together = [], threading.Barrier(20)
    event.listen(database.engine, "connect", lambda *_: opened.append(1))

    def ask(_):
        with database.read() as session:
            session.execute(text("SELECT 1"))
            together.wait(30)

    for _ in range(3):
        assert at_once(20, ask) == [None] * 20
    assert len(opened) <= 20
