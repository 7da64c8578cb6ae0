"""A script posts a job, polls it and downloads a student that works; the same tests over both forms."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnxruntime
import pytest
import yaml

from kdcore.data import DigitsConfig, Places

if TYPE_CHECKING:
    from tests.e2e.conftest import Running

SPEC: dict[str, Any] = {
    "name": "small-digits",
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [64]}, "train": {"epochs": 10}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
    "stages": [{"epochs": 60, "batch_size": 32, "optimizer": {"type": "adam", "lr": 1e-2}}],
    "baseline": False,
    "seed": 7,
}
ENDLESS = SPEC | {"name": "endless", "stages": [{"epochs": 100_000}], "tuning": {"compile": "never"}}
SECONDS = 90.0


def post(http: httpx.Client, spec: dict[str, Any]) -> str:
    answer = http.post("/jobs", content=yaml.safe_dump(spec), headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201, answer.text
    assert httpx.URL(answer.headers["Location"]).path == f"/jobs/{answer.json()['id']}"
    return str(answer.json()["id"])


def poll(http: httpx.Client, id: str, *statuses: str) -> dict[str, Any]:
    """The job once it has one of these statuses."""
    end = time.monotonic() + SECONDS
    while (job := http.get(f"/jobs/{id}", params={"wait": 10}).json())["status"] not in statuses:
        assert time.monotonic() < end, job
        assert job["status"] not in ("failed", "cancelled", "succeeded"), job
    return dict(job)


def poll_steps(http: httpx.Client, id: str, stage: str) -> dict[str, Any]:
    """The job once it has made steps in a stage."""
    end = time.monotonic() + SECONDS
    while True:
        job = http.get(f"/jobs/{id}").json()
        if job["stage"] == stage and (job["progress"] or {}).get("step"):
            return dict(job)
        assert time.monotonic() < end, job
        assert job["status"] in ("queued", "running"), job
        time.sleep(0.05)


def stream(http: httpx.Client, id: str) -> list[tuple[int | None, str, dict[str, Any]]]:
    """The whole history, as it happens: id, type and data of each event."""
    events, fields = [], {}
    with http.stream("GET", f"/jobs/{id}/events", headers={"Accept": "text/event-stream"}, timeout=SECONDS) as answer:
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif "event" in fields:
                id_ = int(fields["id"]) if "id" in fields else None
                events.append((id_, fields["event"], json.loads(fields["data"])))
                fields = {}
    return events


def download(http: httpx.Client, id: str, name: str) -> bytes:
    answer = http.get(f"/jobs/{id}/artifacts/{name}")
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the library makes of the job by itself, in a process of its own."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "job.yaml").write_text(yaml.safe_dump(SPEC))
    command = [sys.executable, "-m", "kdcore", str(folder / "job.yaml"), "--out", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def finished(service: Running) -> tuple[str, list[Any]]:
    """The job, run through the service, and its history as it was streamed meanwhile."""
    with httpx.Client(base_url=service.url, timeout=40) as http:
        id = post(http, SPEC)
        return id, stream(http, id)


def test_the_history_tells_the_whole_way_in_order(http: httpx.Client, finished: tuple[str, list[Any]]) -> None:
    id, events = finished
    stored = [(number, type) for number, type, _ in events if number is not None]
    assert [number for number, _ in stored] == list(range(1, len(stored) + 1))
    types = [type for _, type in stored]
    assert (types[0], types[1], types[-1]) == ("submitted", "claimed", "succeeded")
    assert [data["stage"] for _, type, data in events if type == "stage_started"] == ["teacher-1", "distill-1"]
    assert any(type == "progress" and number is None and data["fraction"] > 0 for number, type, data in events)
    assert poll(http, id, "succeeded")["attempt"] == 1
    after = {"Accept": "text/event-stream", "Last-Event-ID": str(stored[-1][0])}
    assert http.get(f"/jobs/{id}/events", headers=after).status_code == 204


def test_the_student_works_on_data_it_has_not_seen(
    http: httpx.Client, finished: tuple[str, list[Any]], tmp_path: Path
) -> None:
    id, _ = finished
    job = poll(http, id, "succeeded")
    test = DigitsConfig().load(Places(tmp_path)).test
    runtime = onnxruntime.InferenceSession(download(http, id, "student.onnx"), providers=["CPUExecutionProvider"])
    images = test.inputs.numpy().astype(np.float32) / 16
    accuracy = float((runtime.run(["logits"], {"input": images})[0].argmax(1) == test.labels.numpy()).mean())
    assert accuracy == pytest.approx(job["result"]["student"]["accuracy"])
    assert accuracy > 0.8


def test_artifacts_come_whole_in_parts_and_as_headers(http: httpx.Client, finished: tuple[str, list[Any]]) -> None:
    id, _ = finished
    for artifact in http.get(f"/jobs/{id}/artifacts").json()["data"]:
        url = f"/jobs/{id}/artifacts/{artifact['name']}"
        half = artifact["size"] // 2
        whole = http.get(url)
        parts = [http.get(url, headers={"Range": f"bytes={span}"}) for span in (f"0-{half - 1}", f"{half}-")]
        assert [part.status_code for part in parts] == [206, 206]
        assert b"".join(part.content for part in parts) == whole.content
        assert f"sha256:{hashlib.sha256(whole.content).hexdigest()}" == artifact["digest"]
        head = http.head(url)
        assert (int(head.headers["Content-Length"]), head.content) == (artifact["size"], b"")
        assert http.get(url, headers={"Range": f"bytes={artifact['size']}-"}).status_code == 416


def test_the_students_bytes_are_those_of_the_library_alone(
    http: httpx.Client, finished: tuple[str, list[Any]], alone: Path
) -> None:
    id, _ = finished
    result = json.loads((alone / "result.json").read_text())
    job = poll(http, id, "succeeded")
    # As much as each process found free, on disk the one with a cache; both keep all that this job's teacher says.
    room = {"keep_bytes": 0, "spill_bytes": 0}
    assert job["choices"] | room == result["choices"] | room
    assert min(job["choices"]["keep_bytes"], result["choices"]["keep_bytes"]) > 2**20
    assert job["result"]["student"]["accuracy"] == result["student"]["accuracy"]
    for name in ("student.safetensors", "teacher-1.safetensors", "student.onnx"):
        assert download(http, id, name) == (alone / name).read_bytes(), name


def test_what_the_service_keeps_is_for_its_user_alone(service: Running, finished: tuple[str, list[Any]]) -> None:
    made = list(service.settings.home.rglob("*"))
    assert {"log.txt", "blobs", "checkpoints"} <= {path.name for path in made}
    assert [path for path in made if path.lstat().st_mode & 0o077] == []


def test_a_paused_job_frees_its_worker_for_one_that_is_cancelled_and_then_ends_with_the_same_bytes(
    http: httpx.Client, finished: tuple[str, list[Any]], alone: Path
) -> None:
    """The other one takes the teacher that the first job trained."""
    id = post(http, SPEC)
    poll_steps(http, id, "distill-1")
    assert http.post(f"/jobs/{id}/pause").status_code == 200
    assert poll(http, id, "paused")["attempt"] == 1
    assert http.get(f"/jobs/{id}/checkpoints").json()["data"]

    teacher = {"model": SPEC["teachers"][0]["model"], "weights": {"job": finished[0]}}
    other = post(http, ENDLESS | {"teachers": [teacher]})
    poll_steps(http, other, "distill-1")
    assert http.post(f"/jobs/{other}/cancel").json()["request"] == "cancel"
    poll(http, other, "cancelled")
    events = http.get(f"/jobs/{other}/events").json()["data"]
    assert [event["data"]["stage"] for event in events if event["type"] == "stage_started"] == ["distill-1"]
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in events}
    assert (at["cancelled"] - at["cancel_requested"]).total_seconds() <= 5.0  # idle cores take less than one

    assert http.post(f"/jobs/{id}/resume").status_code == 200
    assert poll(http, id, "succeeded")["attempt"] == 2
    assert download(http, id, "student.safetensors") == (alone / "student.safetensors").read_bytes()


@pytest.mark.parametrize("service", ["embedded"], indirect=True)  # the command line knows no form
def test_the_command_line_submits_watches_and_downloads(service: Running, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(SPEC | {"name": "by-command", "stages": [{"epochs": 2}]}))

    def distillery(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distillery", *arguments]
        env = os.environ | {"DISTILLERY_URL": service.url}
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)

    submitted = distillery("submit", str(tmp_path / "job.json"), "--watch")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    id = submitted.stdout.splitlines()[0]
    assert "stage started distill-1" in submitted.stdout
    downloaded = distillery("download", id, "student.onnx", "--out", str(tmp_path / "out"))
    assert (downloaded.returncode, downloaded.stdout.strip()) == (0, str(tmp_path / "out" / "student.onnx"))
    assert distillery("pause", id).returncode == 4
    assert id in distillery("jobs", "--status", "succeeded", "--name", "by-command").stdout
    assert "stage distill-1" in distillery("logs", id).stdout
