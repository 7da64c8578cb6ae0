"""The first release's service, ended in the middle of its work, goes on under this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from storage.settings import Settings
from tests.versions import digest, first_release, undisturbed

from .conftest import BOUND_SECONDS, eventually, start_deployed, start_embedded

if TYPE_CHECKING:
    from tests.e2e.conftest import Marked

__all__ = ["first_release", "undisturbed"]


def test_all_jobs_of_the_first_release_end_well(
    first_release: Settings, marked: Marked, subtests: pytest.Subtests, request: pytest.FixtureRequest
) -> None:
    settings = first_release.model_copy(update={"device": "cpu"})
    start = start_embedded if settings.database_url is None else start_deployed
    with httpx.Client(base_url=start(marked, settings), timeout=40) as http:
        jobs: dict[str, Any] = {job["name"]: job for job in http.get("/jobs").json()["data"]}
        assert jobs["small-digits"]["status"] == "succeeded"
        assert http.get(f"/jobs/{jobs['small-digits']['id']}/metrics").json()["data"]
        paused = jobs["paused"]["id"]
        assert jobs["paused"]["status"] == "paused"
        assert http.post(f"/jobs/{paused}/resume").status_code == 200

        def ended() -> bool:
            now = [http.get(f"/jobs/{job['id']}").json() for job in jobs.values()]
            assert not [job["error"] for job in now if job["error"] and job["status"] == "failed"]
            return all(job["status"] == "succeeded" for job in now)

        eventually(ended, BOUND_SECONDS, "every job succeeds")
        events = {
            name: {event["type"]: event["data"] for event in http.get(f"/jobs/{job['id']}/events").json()["data"]}
            for name, job in jobs.items()
        }
        assert events["lost"]["requeued"]["error"]["code"] == "worker_lost"
        at = events["paused"]["resumed_from_checkpoint"]
        assert (at["stage"], at["step"] > 0) == ("distill-1", True)
        told = events["paused"].get("choices_changed", {"before": {}, "now": {}})
        assert {name for name, value in told["before"].items() if told["now"][name] != value} <= {"cpu", "torch"}
        student = http.get(f"/jobs/{paused}/artifacts/student.safetensors").content
    with subtests.test("the bytes"):
        assert digest(student) == request.getfixturevalue("undisturbed")
