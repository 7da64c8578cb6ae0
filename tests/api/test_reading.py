"""A job's document is remembered for the row that it was made of, and made anew for every other."""

from typing import Any

import httpx
import pytest
from sqlalchemy import update

from api import reading
from storage.tables import Job
from tests.api.conftest import Api, submit

CHANGES: dict[str, Any] = {
    "name": "renamed",
    "stage": "distill-1",
    "request": "cancel",
    "attempt": 7,
    "progress": {"stage": "distill-1", "epoch": 1, "epochs": 2, "step": 3, "steps": 4},
    "error": {"code": "diverged", "kind": "user", "message": "…"},
    "choices": {"device": "cpu"},
    "updated_at": 5.0,
    "started_at": 6.0,
    "finished_at": 7.0,
    "status": "paused",
    "result": {"student": {"accuracy": 0.5}},
    "plan": {"total_steps": 1},
    "spec": {"labels": {"team": "vision"}},
}


def write(api: Api, job_id: str, changes: dict[str, Any]) -> None:
    """As no other code does: the row's version stays."""
    with api.database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(changes))


@pytest.mark.parametrize("column", CHANGES)
def test_whatever_changes_is_shown(api: Api, client: httpx.Client, column: str) -> None:
    job_id = submit(client)["id"]
    before = client.get(f"/jobs/{job_id}")
    assert client.get(f"/jobs/{job_id}").content == before.content
    with api.database.read() as session:
        earlier = getattr(session.get_one(Job, job_id), column)
    write(api, job_id, {column: CHANGES[column]})
    after = client.get(f"/jobs/{job_id}", headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    changed = {name for name, value in after.json().items() if value != before.json()[name]}
    assert column in changed
    write(api, job_id, {column: earlier})
    again = client.get(f"/jobs/{job_id}")
    assert (again.content, again.headers["ETag"]) == (before.content, before.headers["ETag"])


def test_a_place_in_the_queue_is_that_of_now(api: Api, client: httpx.Client) -> None:
    first, second = submit(client)["id"], submit(client)["id"]
    place = client.get(f"/jobs/{second}").json()["queue"]["position"]
    client.post(f"/jobs/{first}/cancel").raise_for_status()
    assert client.get(f"/jobs/{second}").json()["queue"]["position"] == place - 1


def test_what_is_remembered_is_bounded(api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reading._document.cache_clear()
    job_id = submit(client)["id"]
    client.get(f"/jobs/{job_id}")
    once = client.get(f"/jobs/{job_id}")
    found = reading._document.cache_info()
    assert (found.hits >= 1, found.currsize, found.maxsize) == (True, 1, reading.MOST)
    monkeypatch.setattr(reading, "LARGE", 10)
    reading._document.cache_clear()
    assert client.get(f"/jobs/{job_id}").content == once.content
    assert reading._document.cache_info().currsize == 0
