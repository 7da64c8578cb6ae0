"""The API beside other versions: the first release's database behind it, a later release's specs, another schema."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import select, text, update

from storage import schema
from storage.database import Database
from storage.settings import Settings
from storage.tables import IdempotencyKey, Job
from tests.versions import NAMES, NEXT, begin_next_version, first_release, schema_at, written

from .conftest import Api, eventually, said, serving, submit

__all__ = ["first_release"]


@contextmanager
def upgraded(settings: Settings) -> Iterator[tuple[Api, httpx.Client, dict[str, str]]]:
    """An API of today over the first release's database; its jobs by name."""
    database = Database(settings.database)
    schema.migrate(database)
    with database.read() as session:
        keys = {row.key.removeprefix("key-"): row.job_id for row in session.scalars(select(IdempotencyKey))}
    database.close()
    with serving(settings.model_copy(update={"min_free_bytes": 0})) as api, api.client() as client:
        yield api, client, keys


def repeat(client: httpx.Client, name: str, more: str = "") -> httpx.Response:
    headers = {"Content-Type": "application/yaml", "Idempotency-Key": f"key-{name}"}
    return client.post("/jobs", content=written(name) + more, headers=headers)


def test_a_post_that_was_answered_by_the_first_release_is_known_again(
    first_release: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this release, and by one whose specs have one more field with a default: their digests are others."""
    with upgraded(first_release) as (_, client, jobs):
        for _ in range(2):
            for name in NAMES:
                answer = repeat(client, name)
                assert answer.status_code == 201, answer.text
                assert answer.json()["id"] == jobs[name]
            said(repeat(client, "waits", "seed: 4\n"), 422, "idempotency_key_reused")
            begin_next_version(monkeypatch)
        said(repeat(client, "waits", "patience: 4\n"), 422, "idempotency_key_reused")


def test_a_key_whose_job_a_later_version_accepted_is_no_fault_of_the_client(first_release: Settings) -> None:
    with upgraded(first_release) as (api, client, jobs):
        with api.database.write() as session:
            job = session.get_one(Job, jobs["waits"])
            session.execute(
                update(Job)
                .where(Job.id == job.id)
                .values(spec=job.spec | {"spec_version": NEXT, "patience": 3}, spec_digest="sha256:2")
            )
            session.execute(
                update(IdempotencyKey).where(IdempotencyKey.job_id == job.id).values(spec_digest="sha256:2")
            )
        problem = said(repeat(client, "waits"), 503, "other_version")
        assert "a later version accepted" in problem["detail"]
        shown = client.get(f"/jobs/{jobs['waits']}").json()
        assert shown["queue"]["reason"] == "no worker is running"
        with api.worker():
            shown = client.get(f"/jobs/{jobs['waits']}").json()
            assert shown["queue"]["reason"] == f"no worker reads spec version {NEXT}; upgrade the workers"


def test_a_teacher_of_an_older_version_is_taken_though_its_model_had_fewer_fields(first_release: Settings) -> None:
    with upgraded(first_release) as (api, client, jobs):
        with api.database.write() as session:
            older = copy.deepcopy(session.get_one(Job, jobs["ends"]).spec)
            del older["teachers"][0]["model"]["dropout"]  # as if it were one that came later
            session.execute(update(Job).where(Job.id == jobs["ends"]).values(spec=older))
        model = {"type": "mlp", "hidden": [16]}
        assert submit(client, teachers=[{"model": model, "weights": {"job": jobs["ends"]}}])["status"] == "queued"
        other = [{"model": model | {"dropout": 0.5}, "weights": {"job": jobs["ends"]}}]
        response = client.post("/jobs", json=submit_body(teachers=other))
        assert "has another model" in said(response, 422, "invalid_spec")["detail"]


def submit_body(**changes: object) -> dict[str, object]:
    model = {"model": {"type": "mlp"}}
    return {"data": {"type": "digits"}, "teachers": [model], "student": model, **changes}


def test_an_api_whose_schema_is_changed_under_it_writes_nothing_more(settings: Settings) -> None:
    """It went on: with another version's tables its sweep could have taken that version's files for nobody's."""
    quick = {"min_free_bytes": 0, "sweep_seconds": 0.1, "sweep_grace_seconds": 0, "reconcile_seconds": 0.1}
    with serving(settings.model_copy(update=quick)) as api, api.client() as client:
        job = submit(client)
        fence = api.claim(job["id"])
        with api.database.write() as session:
            session.execute(update(Job).where(Job.id == fence.job_id).values(lease_expires_at=1e12))
        with schema_at(api.database, "from_the_future"):
            for request in (
                client.post("/jobs", json=submit_body()),
                client.post(f"/jobs/{job['id']}/cancel"),
                client.delete(f"/jobs/{job['id']}"),
            ):
                problem = said(request, 503, "other_version")
                assert "nothing was stored" in problem["detail"]
                assert "from_the_future" in problem["detail"]
                assert int(request.headers["Retry-After"]) > 0
            shown = client.get(f"/jobs/{job['id']}").json()
            assert (shown["status"], shown["request"]) == ("running", None)
            assert ["schema"] in [error["loc"] for error in client.get("/readyz").json()["errors"]]
            orphan = api.settings.jobs / "job_of_another_version"
            orphan.mkdir(parents=True)
            with api.database.engine.begin() as connection:
                connection.execute(text("UPDATE jobs SET lease_expires_at = 1"))
            time.sleep(1.0)  # ten turns of the reconciler and of the sweep
            assert client.get(f"/jobs/{job['id']}").json()["status"] == "running"
            assert orphan.exists()
        assert submit(client)["status"] == "queued"
        eventually(lambda: client.get(f"/jobs/{job['id']}").json()["status"] == "queued" and not orphan.exists(), 20)


def test_the_revision_is_that_of_the_code_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It was read from the disk anew: an old process over a new version's files and database called itself ready."""
    before = schema.head()
    monkeypatch.setattr(schema, "MIGRATIONS", tmp_path_factory.mktemp("of_the_next_version"))
    assert schema.head() == before
