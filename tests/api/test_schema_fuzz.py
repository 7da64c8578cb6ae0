"""Bad input by machine: Schemathesis reads the published OpenAPI document and sends a real server what fits and not.

`DISTILLERY_TEST_THOROUGH=1` looks for minutes instead of seconds, with another seed each time. A failure prints the
request as a curl command.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from api.streams import wait_for_change
from storage import records
from storage.records import Point
from tests.api.conftest import Api, serving, submit, with_owners
from tests.conftest import OpenSettings

THOROUGH = os.environ.get("DISTILLERY_TEST_THOROUGH") == "1"
SECONDS = 240 if THOROUGH else 10
WARNINGS = ["unmatched_filter", "unresolvable_reference", "dictionary_mismatch"]
if THOROUGH:  # the short run may meet a few absent jobs, or ask without a key, and nothing else
    WARNINGS += ["missing_auth", "missing_test_data"]
NAMES = ("student.onnx", "result.json", "with space.txt")
CONFIG = """
workers = 1
continue-on-failure = true
request-timeout = 20
max-stream-events = 1
{seed}

[auth.openapi.ApiKey]
bearer = "{key}"

[warnings]
fail-on = {warnings}

[dictionaries]
jobs = {{ values = {jobs} }}
succeeded = {{ values = {succeeded} }}
doomed = {{ values = {doomed} }}
names = {{ values = {names} }}
uploads = {{ values = {uploads} }}
unwanted = {{ values = {unwanted} }}

[parameters]
"path.upload_id" = {{ dictionary = "uploads", probability = 0.8 }}
"path.job_id" = {{ dictionary = "jobs", probability = 0.8 }}
"path.name" = {{ dictionary = "names", probability = 0.8 }}

[[operations]]
include-operation-id = ["submit_job", "plan_job"]
# What only the models' shapes or the data can tell is refused with 422 as well, and no JSON Schema can say it.
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-operation-id = ["list_jobs", "list_uploaded_datasets", "list_uploaded_models"]
# A cursor is opaque: any text is one by its schema, and none but those that were given out is taken.
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-operation-id = ["create_dataset", "create_model", "send_dataset", "send_model"]
# How large an upload may be is a setting, and a digest is seldom guessed.
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-operation-id = ["put_dataset_part", "put_model_part"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "413", "422"]

[[operations]]
include-operation-id = ["complete_dataset", "complete_model", "download_dataset_file", "download_model_file"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409"]

[[operations]]
include-operation-id = ["delete_dataset", "delete_model"]
parameters = {{ "path.upload_id" = {{ dictionary = "unwanted", probability = 0.8 }} }}

[[operations]]
include-operation-id = "download_artifact"
# How long a file is, and so which ranges begin behind its end, is not in the document.
checks.positive_data_acceptance.expected-statuses = ["2xx", "304", "404", "416"]

[[operations]]
include-operation-id = ["download_artifact", "head_artifact"]
parameters = {{ "path.job_id" = {{ dictionary = "succeeded", probability = 0.8 }} }}

[[operations]]
include-operation-id = "delete_job"
parameters = {{ "path.job_id" = {{ dictionary = "doomed", probability = 0.8 }} }}

[[operations]]
include-operation-id = "get_events"
headers = {{ Accept = "{accept}" }}
parameters = {{ "path.job_id" = {{ dictionary = "succeeded", probability = 0.8 }} }}
request-timeout = 5
"""


def prepare(api: Api, owner: str) -> dict[str, list[str]]:
    """Jobs in every status, with all that a job can have: their ids."""
    ids: dict[str, list[str]] = {"jobs": [], "succeeded": [], "doomed": [], "uploads": [], "unwanted": []}
    with api.client(owner) as client:
        for many in ("datasets", "models") * 10:
            for uses in ("uploads", "unwanted"):
                ids[uses].append(client.post(f"/{many}", json={"name": "a", "size": 9}).json()["id"])
        for status in ("queued", "paused", "running", "asked", "succeeded", "failed", "cancelled"):
            for _ in range(3):
                job_id = submit(client, labels={"team": "vision"})["id"]
                ids["jobs"].append(job_id)
                if status == "paused":
                    client.post(f"/jobs/{job_id}/pause")
                if status in ("queued", "paused"):
                    continue
                fence = api.claim(job_id)
                fill(api, fence)
                if status == "asked":
                    client.post(f"/jobs/{job_id}/cancel")
                elif status == "succeeded":
                    ids["succeeded"].append(job_id)
                    api.succeed(fence, dict.fromkeys(NAMES, b"0123456789"))
                elif status in ("failed", "cancelled"):
                    api.end(fence, {"failed": "failed", "cancelled": "cancel"}[status])
        for _ in range(20):
            job_id = submit(client)["id"]
            client.post(f"/jobs/{job_id}/cancel")
            ids["doomed"].append(job_id)
    return ids


def fill(api: Api, fence: Any) -> None:
    points = [Point("teacher-1", "train/loss", step, 1 / step) for step in range(1, 50)]
    api.report(fence, points=points, progress={"fraction": 0.1, "step": 40, "samples_per_second": 1.5})
    with api.database.write() as session:
        records.record_checkpoint(
            session, fence, stage="teacher-1", epoch=0, step=1, path="jobs/a", digest="sha256:00", size=9
        )
    folder = api.settings.jobs / fence.job_id / f"attempt-{fence.attempt}"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_bytes(b"stage teacher-1 \xff\n")


@pytest.mark.timeout(2 * SECONDS + 270)
@pytest.mark.parametrize(("form", "accept"), [("embedded", "application/json"), ("deployed", "text/event-stream")])
def test_the_service_keeps_to_its_document(
    form: str, accept: str, tmp_path: Path, open_settings: OpenSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_shortly(request: Any, watch: Any, seen: Any, seconds: float) -> None:
        await wait_for_change(request, watch, seen, min(seconds, 0.05))

    monkeypatch.setattr("api.routes.uploads.wait_for_change", wait_shortly)
    monkeypatch.setattr("api.routes.jobs.wait_for_change", wait_shortly)  # or each `wait` would take up to a minute
    changes = with_owners(lease_seconds=3600.0)
    with (
        structlog.testing.capture_logs() as lines,
        open_settings(form, tmp_path) as settings,
        serving(settings.model_copy(update=changes)) as api,
        api.worker(),
    ):
        config = tmp_path / "schemathesis.toml"
        key = api.settings.api_keys["owner-0"].get_secret_value()
        seed = "" if THOROUGH else "seed = 1"
        config.write_text(
            CONFIG.format(
                seed=seed, key=key, accept=accept, names=list(NAMES), warnings=WARNINGS, **prepare(api, "owner-0")
            )
        )
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            f"--config-file={config}",
            "run",
            f"{api.url}/openapi.json",
        ]
        command += [f"--max-time={SECONDS}", "--no-color"]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS + 180, check=False
        )
    if done.returncode != 0:
        pytest.fail(done.stdout.decode(errors="replace"), pytrace=False)
    assert [line for line in lines if line["log_level"] in ("error", "critical")] == []
