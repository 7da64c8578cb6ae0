"""What the API shows of jobs, and that it stays quick with many."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, text
from sqlalchemy.dialects import postgresql, sqlite

from storage import attempts, queries, records, uploads, workers
from storage.errors import NotFoundError
from storage.figures import Durations, job_durations, queue_figures
from storage.ids import is_check
from storage.queries import explain_waits, thin
from storage.records import Point
from storage.tables import Job, Metric
from storage.workers import WorkerCard


def page(jobs, owner="alice", **filters):
    with jobs.database.read() as session:
        found, more = queries.page_jobs(session, owner, **{"limit": 10} | filters)
    return [job.id for job in found], more


def submit(jobs, number, **spec):
    ids = []
    for _ in range(number):
        ids.append(jobs.submit(**spec))
        time.sleep(0.0015)
    return ids


def test_pages_follow_each_other_though_jobs_come_and_go(jobs):
    ids = submit(jobs, 7)
    submit(jobs, 2, owner="bob")
    first, more = page(jobs, limit=3)
    assert (first, more) == (ids[:3:-1], True)
    submit(jobs, 1)
    jobs.ask(ids[3], "cancel")
    assert page(jobs, limit=3, after=first[-1]) == (ids[3:0:-1], True)
    assert page(jobs, limit=3, after=ids[1]) == (ids[:1], False)
    assert page(jobs, limit=3, after=ids[0]) == ([], False)
    assert page(jobs, "nobody") == ([], False)


def test_filters(jobs):
    red = jobs.submit(labels={"team": "red", "run": "1"}, name="a")
    blue = jobs.submit(labels={"team": "blue", "run": "1"}, name="b")
    jobs.ask(blue, "cancel")
    for filters, expected in (
        ({"status": "queued"}, {red}), ({"status": "cancelled"}, {blue}), ({"name": "a"}, {red}),
        ({"labels": [("run", "1")]}, {red, blue}), ({"labels": [("run", "1"), ("team", "blue")]}, {blue}),
        ({"labels": [("team", "green")]}, set()), ({"name": "a", "status": "cancelled"}, set()),
    ):  # fmt: skip
        assert set(page(jobs, **filters)[0]) == expected, filters


def test_one_job_for_its_owner(jobs, database):
    job_id = jobs.submit()
    with database.read() as session:
        assert queries.get_job(session, job_id, "alice").id == job_id
        for id, owner in ((job_id, "bob"), ("job_none", "alice")):
            with pytest.raises(NotFoundError):
                queries.get_job(session, id, owner)
        with pytest.raises(NotFoundError, match=r"no artifact '\.\./x'"):
            queries.get_artifact(session, job_id, "../x")


def test_events_go_on_after_the_last_one_seen(jobs, database):
    fence = jobs.running()
    jobs.ask(fence.job_id, "pause")
    with database.read() as session:
        seen = queries.list_events(session, fence.job_id, after=1, limit=1)
        assert [(e.id, e.type, e.attempt) for e in seen] == [(2, "claimed", 1)]
        assert [e.id for e in queries.list_events(session, fence.job_id, after=2, limit=9)] == [3]


def test_series_are_chosen_and_thinned(jobs, database):
    fence = jobs.running()
    points = [Point(s, n, step, step / 2) for s in ("a", "b") for n in ("loss", "kd") for step in range(1, 101)]
    with database.write() as session:
        records.report(session, fence, points=points)
    with database.read() as session:
        every = queries.list_series(session, fence.job_id)
        assert [(s.stage, s.name, len(s.points)) for s in every] == [
            ("a", "kd", 100), ("a", "loss", 100), ("b", "kd", 100), ("b", "loss", 100),
        ]  # fmt: skip
        [one] = queries.list_series(session, fence.job_id, stage="b", name="loss", after_step=40, max_points=3)
        assert one.points == [(41, 20.5), (71, 35.5), (100, 50.0)]
        assert queries.list_series(session, fence.job_id, after_step=100) == []


@given(st.integers(0, 500), st.integers(1, 500))
def test_thinning_is_even(length, most):
    points = [(step, float(step)) for step in range(length)]
    kept = thin(points, most)
    assert len(kept) == min(length, most)
    assert kept == sorted(set(kept))
    if length:
        assert kept[-1] == points[-1]
    if len(kept) > 1:
        gaps = {after[0] - before[0] for before, after in itertools.pairwise(kept)}
        assert kept[0] == points[0]
        assert max(gaps) - min(gaps) <= 1


def test_a_queued_job_says_why_it_waits(jobs, database):
    first, second = submit(jobs, 2)
    cuda = jobs.submit(device="cuda", priority=5)

    def why(job_id):
        with database.read() as session:
            wait = explain_waits(session.connection(), [job_id], 60.0)[job_id]
            return wait.position, wait.reason

    def hire(id, device, status):
        with database.write() as session:
            workers.beat(session, WorkerCard(id, "h", 1, device, "d", 1, "1", 1))
            workers.set_status(session, id, status)

    assert why(first) == (2, "no worker is running")
    hire("w1", "cpu", "busy")
    assert (why(first), why(second), why(cuda)) == (
        (2, "the worker is busy"),
        (3, "the worker is busy"),
        (1, "no worker with cuda"),
    )
    hire("w2", "cuda", "idle")
    assert why(cuda) == (1, "about to start")
    jobs.set(cuda, available_at=time.time() + 10)
    assert why(cuda)[1] in ("waiting 9 s after a failure", "waiting 10 s after a failure")
    hire("w2", "cuda", "busy")
    assert why(first) == (2, "all workers are busy")


def test_a_glance_at_many(jobs, database):
    fence, queued = jobs.running(), jobs.submit()
    with database.read() as session:
        seen = queries.glance(session, [fence.job_id, queued, "job_none"])
        assert queries.glance(session, []) == {}
    assert {id: one.status for id, one in seen.items()} == {fence.job_id: "running", queued: "queued"}
    jobs.ask(fence.job_id, "cancel")
    with database.read() as session:
        after = queries.glance(session, [fence.job_id])[fence.job_id]
    assert (after.request, after.version) == ("cancel", seen[fence.job_id].version + 1)


def test_figures(jobs, database):
    fence = jobs.running()
    with database.write() as session:
        records.report(session, fence, progress={"samples_per_second": 250.0})
    jobs.set(jobs.submit(), available_at=time.time() - 40)
    jobs.put("failed")
    with database.read() as session:
        figures = queue_figures(session)
    assert figures["jobs"] == {"running": 1, "queued": 1, "failed": 1}
    assert 38 < figures["oldest_queued_seconds"] < 50
    assert figures["samples_per_second"] == 250.0


def plan_of(database, session, query):
    """How the database would run a query."""
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[database.engine.dialect.name].dialect()
    words = "EXPLAIN QUERY PLAN" if dialect.name == "sqlite" else "EXPLAIN"
    statement = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    return "\n".join(str(row) for row in session.execute(text(f"{words} {statement}".replace(":", r"\:"))))


class Spy:
    """A session that keeps the first query it is given."""

    def __init__(self, session):
        self.session, self.query = session, None

    def __getattr__(self, name):
        real = getattr(self.session, name)

        def call(query, *args, **values):
            self.query = query if self.query is None else self.query
            return real(query, *args, **values)

        return call


def test_indexes_are_used_at_size(jobs, database):
    row = Job(priority=0, device="auto", spec={}, spec_digest="d", plan={"layers": "x" * 800})
    row = {key: value for key, value in vars(row).items() if not key.startswith("_")}
    row |= dict.fromkeys(("created_at", "updated_at", "available_at"), 1.0)
    rows = [
        {**row, "id": f"job_{i:026d}", "owner": f"o{i % 9}", "name": f"n{i % 50}", "status": status}
        for i in range(8_000)
        for status in ["queued" if i % 50 == 0 else "failed"]
    ]
    points = [
        {"job_id": f"job_{job:026d}", "stage": "a", "name": f"m{name}", "step": step, "attempt": 1, "value": 0.5}
        for job, name, step in itertools.product(range(10), range(4), range(150))
    ]
    with database.write() as session:
        session.execute(insert(Job), rows)
        session.execute(insert(Metric), points)
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
    last = f"job_{4000:026d}"
    calls = {
        "page": lambda s: queries.page_jobs(s, "o1", limit=20),
        "next page": lambda s: queries.page_jobs(s, "o1", limit=20, after=last),
        "page by status": lambda s: queries.page_jobs(s, "o1", limit=20, status="queued"),
        "page by name": lambda s: queries.page_jobs(s, "o1", limit=20, name="n7"),
        "claim": lambda s: attempts.claim(s, "w", ("auto", "cpu"), 30.0),
        "series": lambda s: queries.list_series(s, f"job_{3:026d}", stage="a", name="m1"),
        "events": lambda s: queries.list_events(s, last, after=3, limit=20),
    }
    for name, call in calls.items():
        with database.write() as session:
            spy = Spy(session)
            call(spy)
            plan = plan_of(database, session, spy.query)
        whole = "SCAN " if database.engine.dialect.name == "sqlite" else "Seq Scan on jobs"
        lines = [line for line in plan.splitlines() if whole in line and "SCAN anon" not in line]
        assert not lines, f"{name} reads a whole table:\n{plan}"
        assert "Seq Scan on metrics" not in plan, plan
        if name in ("page", "next page"):
            assert "TEMP B-TREE" not in plan, f"{name} sorts:\n{plan}"
            assert "Sort" not in plan, f"{name} sorts:\n{plan}"
    with database.read() as session:
        assert session.scalar(select(Job.id).where(Job.status == "running")) is not None


def test_a_check_of_an_upload_is_no_job(jobs, database):
    with database.write() as session:
        row = uploads.create(
            session, "mdl_a", kind="model", owner="alice", name="a", file="", size=1, part_size=1, options={}
        )
        uploads.add_part(session, row, 1, size=1, digest="d", path="uploads/mdl_a/1")
        spec = {"name": "a", "priority": 0, "device": "cpu", "labels": {}}
        uploads.complete(session, row, spec=spec, spec_digest="s", max_queued=9)
    check, done = jobs.claim(), jobs.put("succeeded")
    assert is_check(check.job_id)
    with database.write() as session:
        attempts.succeed(session, check, {"profile": {}})
    jobs.set(done, started_at=10.0, finished_at=12.0)
    assert page(jobs) == ([done], False)
    with database.read() as session:
        assert queue_figures(session)["jobs"] == {"succeeded": 1}
        assert job_durations(session, (1.0, 5.0)) == {"succeeded": Durations([0, 1], 1, 2.0)}
