"""The client against the real API."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distillery import ApiError, Client, ConnectionFailed, DownloadFailed, JobFailed
from distillery.cli import main
from distillery.errors import dotted
from storage import attempts
from storage.lifecycle import add_event

if TYPE_CHECKING:
    from tests.distillery.conftest import Api, Wire

KEY = "a-key-of-sixteen-characters"
SPEC: dict[str, Any] = {
    "name": "small",
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [16]}}],
    "student": {"model": {"type": "mlp", "hidden": [4]}},
    "labels": {"team": "vision"},
}


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, KEY) as client:
        yield client


def test_a_mapping_and_a_yaml_file_are_submitted(client: Client, tmp_path: Path) -> None:
    job = client.submit(SPEC)
    assert (job["status"], job["spec"]["name"]) == ("queued", "small")
    assert client.get(job["id"])["id"] == job["id"]
    file = tmp_path / "job.yaml"
    file.write_text("data: {type: digits}\nteachers: [{model: {type: mlp}}]\nstudent: {model: {type: mlp}}\nseed: 3\n")
    job = client.submit(file)
    assert job["spec"]["seed"] == 3
    assert client.submit(str(file))["id"] != job["id"]


def test_the_same_key_gives_the_same_job(client: Client) -> None:
    assert client.submit(SPEC, "k1")["id"] == client.submit(SPEC, "k1")["id"]
    assert client.submit(SPEC)["id"] != client.submit(SPEC)["id"]
    with pytest.raises(ApiError) as caught:
        client.submit(SPEC | {"seed": 1}, "k1")
    assert (caught.value.status, caught.value.code) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("changes", [{"seed": "x"}, {"seed": "x", "stages": [{"epochs": -1}], "nonsense": 1}])
def test_each_fault_is_printed_once(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: Any
) -> None:
    monkeypatch.setenv("DISTILLERY_URL", api.url)
    monkeypatch.setenv("DISTILLERY_API_KEY", KEY)
    file = tmp_path / "job.json"
    file.write_text(json.dumps(SPEC | changes))
    assert main(["submit", str(file)]) == 4
    said = capsys.readouterr().err
    assert said.startswith("distillery: ")
    assert "(422 invalid_spec)" in said
    with Client(api.url, KEY) as client, pytest.raises(ApiError) as refused:
        client.submit(SPEC | changes)
    assert len(refused.value.errors) == len(changes)
    for fault in refused.value.errors:
        assert said.count(f"{dotted(fault['loc'])}: {fault['message']}") == 1, said


def test_the_plan_stores_nothing(client: Client) -> None:
    assert client.plan(SPEC)["total_steps"] > 0
    assert list(client.list()) == []


def test_a_bad_spec_tells_each_fault_with_the_way_to_it(client: Client) -> None:
    with pytest.raises(ApiError, match=r"student\.model\.hidden") as caught:
        client.submit(SPEC | {"student": {"model": {"type": "mlp", "hidden": "x"}}, "seed": -1})
    assert caught.value.status == 422
    assert caught.value.request_id
    assert {tuple(fault["loc"]) for fault in caught.value.errors} == {("student", "model", "hidden"), ("seed",)}


def test_refusals_carry_their_status_and_code(api: Api, client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.get("job_" + "0" * 26)
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    job = client.submit(SPEC)
    with pytest.raises(ApiError) as caught:
        client.delete(job["id"])
    assert (caught.value.status, caught.value.code) == (409, "conflict")
    with Client(api.url, "another-key-that-is-wrong") as stranger, pytest.raises(ApiError) as caught:
        stranger.get(job["id"])
    assert caught.value.status == 401


def test_url_and_key_come_from_the_environment(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLERY_URL", api.url)
    monkeypatch.setenv("DISTILLERY_API_KEY", KEY)
    with Client() as client:
        assert list(client.list()) == []


def test_a_list_fetches_its_pages(client: Client) -> None:
    ids = [client.submit(SPEC | {"name": f"job {i}"})["id"] for i in range(5)]
    assert [job["id"] for job in client.list(page_size=2)] == ids[::-1]
    assert [job["name"] for job in client.list(name="job 3", labels={"team": "vision"})] == ["job 3"]
    assert list(client.list(labels={"team": "other"})) == []
    client.cancel(ids[0])
    assert [job["id"] for job in client.list(status="cancelled")] == ids[:1]


def test_pause_resume_cancel_retry_and_delete(client: Client) -> None:
    id = client.submit(SPEC)["id"]
    assert client.pause(id)["status"] == "paused"
    assert client.resume(id)["status"] == "queued"
    assert client.cancel(id)["status"] == "cancelled"
    assert client.retry(id)["status"] == "queued"
    client.cancel(id)
    client.delete(id)
    assert list(client.list()) == []


def test_waiting_ends_with_the_job_or_with_the_time(api: Api, client: Client, tmp_path: Path) -> None:
    id = client.submit(SPEC)["id"]
    with pytest.raises(TimeoutError, match="still queued"):
        client.wait(id, timeout=0.2)
    fence = api.claim(id)
    timer = threading.Timer(0.3, api.succeed, (fence, {"a.bin": b"a"}, tmp_path))
    timer.start()
    began = time.monotonic()
    assert client.wait(id, timeout=20)["result"]["summary"] == "it worked"
    assert time.monotonic() - began < 5
    timer.join()


def test_waiting_for_a_job_that_fails_raises_with_its_error(api: Api, client: Client) -> None:
    id = client.submit(SPEC)["id"]
    fence = api.claim(id)
    with api.database.write() as session:
        attempts.fail(session, fence, {"code": "diverged", "message": "too fast", "kind": "user"})
    with pytest.raises(JobFailed, match="too fast") as caught:
        client.wait(id, timeout=20)
    assert caught.value.job["error"]["kind"] == "user"
    assert client.wait(id, timeout=20, check=False)["status"] == "failed"


def test_metrics_and_logs_of_a_job_that_never_ran_are_empty(client: Client) -> None:
    id = client.submit(SPEC)["id"]
    assert client.metrics(id, stage="distill-1", max_points=10)["data"] == []
    assert client.logs(id) == ""


def test_a_history_is_read_to_its_end_and_from_where_one_left_off(api: Api, client: Client) -> None:
    id = client.submit(SPEC)["id"]
    api.claim(id)
    client.cancel(id)
    seen = [(event.id, event.type) for event in islice(client.events(id), 3)]
    assert seen == [(1, "submitted"), (2, "claimed"), (3, "cancel_requested")]
    assert next(client.events(id, after=2)).type == "cancel_requested"


def test_a_stream_that_is_cut_goes_on_without_gap_or_repetition(api: Api, wire: Wire, tmp_path: Path) -> None:
    with Client(api.url, KEY) as direct:
        id = direct.submit(SPEC)["id"]
    fence = api.claim(id)
    with api.database.write() as session:
        for number in range(200):
            add_event(session, fence, "note", {"number": number})
    api.succeed(fence, {"a.bin": b"a"}, tmp_path)
    wire.cuts = [700, 3_000, 100, 9_000]
    with Client(wire.url, KEY) as client:
        events = list(client.events(id))
    assert [event.id for event in events] == list(range(1, 204))
    assert events[-1].type == "succeeded"
    assert wire.connections == 5


def test_a_stream_past_the_end_is_empty(api: Api, client: Client, tmp_path: Path) -> None:
    id = client.submit(SPEC)["id"]
    client.cancel(id)
    assert [event.type for event in client.events(id)] == ["submitted", "cancelled"]
    assert list(client.events(id, after=2)) == []


@pytest.fixture
def finished(api: Api, client: Client, tmp_path: Path) -> tuple[str, bytes]:
    """A job with a large file and an empty one."""
    content = os.urandom(600_000)
    id = client.submit(SPEC)["id"]
    api.succeed(api.claim(id), {"student.onnx": content, "empty.txt": b""}, tmp_path)
    return id, content


def test_files_are_downloaded_whole_and_checked(client: Client, finished: tuple[str, bytes], tmp_path: Path) -> None:
    id, content = finished
    paths = client.download(id, tmp_path / "out")
    assert sorted(path.name for path in paths) == ["empty.txt", "student.onnx"]
    assert (tmp_path / "out" / "student.onnx").read_bytes() == content
    assert (tmp_path / "out" / "empty.txt").read_bytes() == b""
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(DownloadFailed, match=r"student\.onnx"):
        client.download(id, tmp_path, ["none.bin"])


def test_a_download_that_is_cut_goes_on_where_it_ended(wire: Wire, finished: tuple[str, bytes], tmp_path: Path) -> None:
    id, content = finished
    wire.cuts = [200_000, 200_000, 300_000]
    with Client(wire.url, KEY) as client:
        (path,) = client.download(id, tmp_path / "out", ["student.onnx"])
    assert path.read_bytes() == content
    assert wire.connections == 3


def test_a_download_goes_on_with_what_an_earlier_call_left(
    api: Api, wire: Wire, finished: tuple[str, bytes], tmp_path: Path
) -> None:
    id, content = finished
    wire.cuts = [200_000, *[0] * 40]
    with Client(wire.url, KEY) as client, pytest.raises(ConnectionFailed):
        client.download(id, tmp_path / "out", ["student.onnx"])
    assert not (tmp_path / "out" / "student.onnx").exists()
    (part,) = (tmp_path / "out").iterdir()
    left = part.stat().st_size
    assert 100_000 < left < 300_000
    wire.cuts = [*[0] * wire.connections, 450_000]  # less than the whole file
    with Client(wire.url, KEY) as client:
        (path,) = client.download(id, tmp_path / "out", ["student.onnx"])
    assert path.read_bytes() == content


def test_bytes_that_are_not_what_the_digest_says_are_not_kept(
    api: Api, client: Client, finished: tuple[str, bytes], tmp_path: Path
) -> None:
    id, content = finished
    (blob,) = [path for path in api.settings.blobs.rglob("*") if path.is_file() and path.stat().st_size == len(content)]
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DownloadFailed, match="digest"):
        client.download(id, tmp_path / "out", ["student.onnx"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_there_already_is_not_fetched_again(
    client: Client, finished: tuple[str, bytes], tmp_path: Path
) -> None:
    id, _ = finished
    (path,) = client.download(id, tmp_path / "out", ["student.onnx"])
    before = path.stat().st_ino
    client.download(id, tmp_path / "out", ["student.onnx"])
    assert path.stat().st_ino == before
    path.write_bytes(b"another student")
    client.download(id, tmp_path / "out", ["student.onnx"])
    assert path.stat().st_size == 600_000
