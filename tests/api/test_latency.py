"""Students by latency: the API plans with the calibration of a worker that could take the job."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import delete

from storage import calibrations
from storage.tables import Calibration
from tests.api.conftest import SPEC, Api, said
from tests.speed import SPEED

FAST = SPEC | {"student": {"max_latency_ms": 0.01, "family": "mlp"}}


@pytest.fixture(autouse=True)
def _nothing_measured(api: Api) -> Iterator[None]:
    yield
    with api.database.write() as session:
        session.execute(delete(Calibration))


def measured(api: Api, times: float = 1.0, host: str = "host", device: str = "cpu", **other: Any) -> None:
    """A machine so many times as slow as `SPEED`."""
    rates = [rate.model_copy(update={"seconds": rate.seconds * times}) for rate in SPEED.rates]
    speed = SPEED.model_copy(update={"rates": rates}).model_dump(mode="json") | other
    with api.database.write() as session:
        calibrations.store(session, host, device, speed)


def picked(client: httpx.Client, spec: dict[str, Any] = FAST) -> int:
    answer = client.post("/jobs/plan", json=spec)
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["student_choice"]["parameters"]
    return found


def test_without_a_calibration_the_field_and_the_mend_are_named(api: Api, client: httpx.Client):
    for path in ("/jobs", "/jobs/plan"):
        problem = said(client.post(path, json=FAST), 422, "invalid_spec")
        assert problem["errors"][0]["loc"] == ["student", "max_latency_ms"]
        assert "`distillery calibrate`" in problem["errors"][0]["message"]
    measured(api, form=2)  # of another version
    measured(api, device="cpu", host="other", rates=[])
    said(client.post("/jobs", json=FAST), 422, "invalid_spec")
    said(client.post("/jobs", json=FAST | {"device": ["cpu"]}), 422, "invalid_spec")


def test_the_job_is_stored_with_what_was_picked_and_why(api: Api, client: httpx.Client):
    measured(api)
    answer = client.post("/jobs", json=FAST)
    assert answer.status_code == 201
    job = answer.json()
    choice = job["plan"]["student_choice"]
    assert (choice["by"], choice["parameters"]) == ("max_latency_ms", job["plan"]["student"]["parameters"])
    assert 0 < choice["latency_ms"] <= 0.01
    assert "at most 0.01 ms" in choice["reason"]
    model = job["spec"]["student"]["model"]
    measured(api, times=4)
    assert client.get(f"/jobs/{job['id']}").json()["spec"]["student"]["model"] == model
    assert client.post("/jobs", json=job["spec"]).json()["spec"]["student"]["model"] == model  # named by now


def test_the_same_key_is_the_same_job_whatever_was_measured_since(api: Api, client: httpx.Client):
    measured(api)
    spec = SPEC | {"student": {"max_latency_ms": 0.01}}
    key = {"Idempotency-Key": "once"}
    first = client.post("/jobs", json=spec, headers=key)
    measured(api, times=5)
    assert picked(client, spec) < first.json()["plan"]["student"]["parameters"]
    again = client.post("/jobs", json=spec, headers=key)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    other = spec | {"student": {"max_latency_ms": 0.011}}
    said(client.post("/jobs", json=other, headers=key), 422, "idempotency_key_reused")
    named = spec | {"student": {"max_latency_ms": 0.01, "model": {"type": "mlp", "hidden": [3]}}}
    said(client.post("/jobs", json=named, headers=key), 422, "idempotency_key_reused")


def test_whose_calibration_counts(api: Api, client: httpx.Client):
    measured(api, host="elsewhere")
    fast = picked(client)
    measured(api, times=5, host="host")
    slow = picked(client)
    assert slow < fast  # the newest
    measured(api, host="elsewhere")
    assert picked(client) == fast
    with api.worker():  # on `host`: a machine where somebody works counts before one where nobody does
        assert picked(client) == slow
    measured(api, times=25, host="gpu", device="cuda")
    slowest = picked(client)
    assert slowest < slow  # a worker with a GPU takes every job
    cuda = FAST | {"device": "cuda"}
    assert picked(client, cuda) == slowest
    with api.database.write() as session:
        session.execute(delete(Calibration).where(Calibration.device == "cuda"))
    problem = said(client.post("/jobs", json=cuda), 422, "invalid_spec")
    assert problem["errors"][0]["loc"] == ["student", "max_latency_ms"]
