"""The first release's service, ended in the middle of its work, goes on under this one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from storage.settings import Settings
from tests.versions import FIRST, first_release

from .conftest import BOUND_SECONDS, eventually, start_deployed, start_embedded

if TYPE_CHECKING:
    from tests.e2e.conftest import Marked

__all__ = ["first_release"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the paused job's student where nothing interrupts it, on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "kdcore", str(FIRST / "specs" / "paused.yaml"), "--out", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return digest((folder / "student.safetensors").read_bytes())


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_all_jobs_of_the_first_release_end_well(first_release: Settings, marked: Marked, undisturbed: str) -> None:
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
        assert "choices_changed" not in events["paused"]
        if undisturbed == json.loads((FIRST / "undisturbed.json").read_text())["student"]:  # else half is another's
            assert digest(http.get(f"/jobs/{paused}/artifacts/student.safetensors").content) == undisturbed
