"""Artifacts, checkpoints, logs and metrics."""

import base64
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from storage import records
from storage.records import Point
from tests.api.conftest import Api, said, submit

DATA = bytes(range(256)) * 1000


@pytest.fixture
def url(files_api: Api, files_client: httpx.Client) -> str:
    """Of a published file of 256,000 bytes."""
    return publish(files_api, files_client)


def publish(api: Api, client: httpx.Client) -> str:
    job_id = submit(client)["id"]
    api.succeed(api.claim(job_id), {"student.onnx": DATA, "empty.bin": b"", "with space.txt": b"x"})
    return f"/jobs/{job_id}/artifacts/student.onnx"


def test_the_list_leads_to_the_bytes(api: Api, client: httpx.Client):
    url = publish(api, client)
    found = {artifact["name"]: artifact for artifact in client.get(url.rsplit("/", 1)[0]).json()["data"]}
    assert list(found) == ["empty.bin", "student.onnx", "with space.txt"]
    artifact = found["student.onnx"]
    assert artifact["url"] == url
    assert artifact["size"] == len(DATA)
    assert artifact["digest"] == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert artifact["created_at"].endswith("Z")
    for name in found:
        response = client.get(found[name]["url"])
        assert response.status_code == 200
        assert len(response.content) == found[name]["size"]


def test_a_download_is_whole_and_says_what_it_is(files_client: httpx.Client, url: str):
    response = files_client.get(url)
    digest = hashlib.sha256(DATA)
    assert response.status_code == 200
    assert response.content == DATA
    assert response.headers["content-length"] == str(len(DATA))
    assert response.headers["etag"] == f'"sha256:{digest.hexdigest()}"'
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == 'attachment; filename="student.onnx"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert {"private", "immutable"} <= set(response.headers["cache-control"].replace(" ", "").split(","))


def test_head_has_the_same_headers_and_no_body(files_client: httpx.Client, url: str):
    head, get = files_client.head(url), files_client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "repr-digest", "accept-ranges", "content-type", "last-modified"):
        assert head.headers[name] == get.headers[name]
    assert files_client.head(url, headers={"Range": "bytes=0-1"}).status_code == 200
    missing = files_client.head(f"{url}x")
    assert (missing.status_code, missing.content) == (404, b"")


@pytest.mark.parametrize(
    ("range", "first", "last"),
    [
        ("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=255990-", 255990, 255999), ("bytes=-5", 255995, 255999),
        ("bytes=0-99999999", 0, 255999), ("bytes=-99999999", 0, 255999), ("BYTES=1-2", 1, 2),
        (f"bytes=0-{'9' * 30}", 0, 255999),
    ],
)  # fmt: skip
def test_one_range_is_206(files_client: httpx.Client, url: str, range: str, first: int, last: int):
    response = files_client.get(url, headers={"Range": range})
    assert response.status_code == 206
    assert response.content == DATA[first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert response.headers["content-length"] == str(last - first + 1)
    assert response.headers["etag"] == files_client.head(url).headers["etag"]


@pytest.mark.parametrize(
    "range", ["bytes=256000-", "bytes=999999999999-", f"bytes={'9' * 30}-", "bytes=256000-256001", "bytes=-0"]
)
def test_a_range_behind_the_end_is_416(files_client: httpx.Client, url: str, range: str):
    response = files_client.get(url, headers={"Range": range})
    said(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize(
    "range", ["bytes=a-b", "bytes=5-2", "bytes=-", "items=0-1", "0-1", "bytes=0-1,5-6", "bytes 0-1"]
)
def test_what_is_no_single_range_is_answered_whole(files_client: httpx.Client, url: str, range: str):
    response = files_client.get(url, headers={"Range": range})
    assert (response.status_code, len(response.content)) == (200, len(DATA))


def test_if_range_and_if_none_match(files_client: httpx.Client, url: str):
    etag = files_client.head(url).headers["etag"]
    assert files_client.get(url, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert files_client.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200
    assert files_client.get(url, headers={"Range": "bytes=999999-", "If-Range": '"other"'}).status_code == 200
    same = files_client.get(url, headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)


def test_an_empty_file(files_client: httpx.Client, url: str):
    empty = url.replace("student.onnx", "empty.bin")
    response = files_client.get(empty)
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")
    said(files_client.get(empty, headers={"Range": "bytes=0-"}), 416, "range_not_satisfiable")


@pytest.mark.parametrize(
    "name", ["nothing.txt", "%2e%2e", "..%2fsecret", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a%2fb", "%00", "a%0ab", "a%5cb",
             "....", "%ff"]
)  # fmt: skip
def test_names_that_lead_nowhere_are_404(files_client: httpx.Client, url: str, name: str):
    said(files_client.get(url.replace("student.onnx", name)), 404, "not_found")


def test_a_file_that_is_gone_from_the_store_is_said_without_its_path(
    files_api: Api, files_client: httpx.Client, url: str
):
    digest = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    path = files_api.service.blobs.path(digest, len(DATA))
    path.rename(path.with_suffix(".away"))
    try:
        problem = said(files_client.get(url), 500, "artifact_damaged")
        assert str(files_api.settings.home) not in str(problem)
    finally:
        path.with_suffix(".away").rename(path)


def test_a_job_without_files_has_an_empty_list(client: httpx.Client):
    assert client.get(f"/jobs/{submit(client)['id']}/artifacts").json() == {"data": []}


def test_checkpoints_newest_first_without_their_paths(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    for step in (1, 2):
        with api.database.write() as session:
            records.record_checkpoint(
                session,
                fence,
                stage="teacher-1",
                epoch=0,
                step=step,
                path=f"jobs/secret-{step}",
                digest="sha256:00",
                size=9,
            )
    data = client.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [checkpoint["step"] for checkpoint in data] == [2, 1]
    assert set(data[0]) == {"id", "attempt", "stage", "epoch", "step", "size", "digest", "created_at"}


def test_logs_are_the_last_attempts_or_the_one_asked_for(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    assert client.get(f"/jobs/{job_id}/logs").text == ""
    for text in (b"first \xff\n", b"second\n"):
        fence = api.claim(job_id)
        folder = api.settings.jobs / job_id / f"attempt-{fence.attempt}"
        folder.mkdir(parents=True)
        (folder / "log.txt").write_bytes(text)
        api.end(fence, "drain")
    response = client.get(f"/jobs/{job_id}/logs")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "second\n"
    assert client.get(f"/jobs/{job_id}/logs?attempt=1").text == "first \ufffd\n"
    said(client.get(f"/jobs/{job_id}/logs?attempt=3"), 404, "not_found")
    said(client.get(f"/jobs/{job_id}/logs?attempt=0"), 422, "invalid_parameter")
    (folder / "log.txt").write_bytes(b"x" * api.settings.max_log_bytes + b"the end")
    long = client.get(f"/jobs/{job_id}/logs").text
    assert len(long) == api.settings.max_log_bytes
    assert long.endswith("the end")


def test_series_are_filtered_and_thinned(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    points = [Point(stage, name, step, step / 10) for stage in ("a", "b") for name in ("x", "y") for step in range(100)]
    api.report(fence, points=points)
    url = f"/jobs/{job_id}/metrics"
    series = client.get(url).json()["data"]
    assert [(one["stage"], one["name"], len(one["points"])) for one in series] == [
        ("a", "x", 100), ("a", "y", 100), ("b", "x", 100), ("b", "y", 100),
    ]  # fmt: skip
    assert series[0]["points"][1] == [1, 0.1]
    only = client.get(url, params={"stage": "b", "name": "y", "after_step": 49, "max_points": 3}).json()["data"]
    assert only == [{"stage": "b", "name": "y", "points": [[50, 5.0], [74, 7.4], [99, 9.9]]}]
    assert client.get(url, params={"stage": "c"}).json() == {"data": []}


@pytest.mark.parametrize(
    "query", ["max_points=0", "after_step=-1", "after_step=99999999999999999999", "names=x", "name=%00"]
)
def test_bad_questions_for_series_are_422(files_client: httpx.Client, query: str):
    job_id = submit(files_client)["id"]
    said(files_client.get(f"/jobs/{job_id}/metrics?{query}"), 422, "invalid_parameter")


@pytest.mark.parametrize("place", ["log.txt", "attempt-1", "pipe", "zero"])
def test_a_log_that_became_a_link_is_not_shown(files_api: Api, files_client: httpx.Client, tmp_path: Path, place: str):
    job_id = submit(files_client)["id"]
    files_api.claim(job_id)
    (tmp_path / "log.txt").write_text("precious")
    folder = files_api.settings.jobs / job_id / "attempt-1"
    if place == "attempt-1":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir(parents=True)
        if place == "pipe":
            os.mkfifo(folder / "log.txt")  # whoever opens it waits
        else:
            (folder / "log.txt").symlink_to("/dev/zero" if place == "zero" else tmp_path / "log.txt")
    response = files_client.get(f"/jobs/{job_id}/logs")
    assert (response.status_code, response.text) == (200, "")


def test_a_job_whose_folder_became_a_link_is_deleted_without_what_it_leads_to(
    files_api: Api, files_client: httpx.Client, tmp_path: Path
):
    job_id = submit(files_client)["id"]
    files_client.post(f"/jobs/{job_id}/cancel")
    (tmp_path / "precious").write_text("precious")
    files_api.settings.jobs.mkdir(exist_ok=True)
    (files_api.settings.jobs / job_id).symlink_to(tmp_path)
    assert files_client.delete(f"/jobs/{job_id}").status_code == 204
    assert files_client.get(f"/jobs/{job_id}").status_code == 404  # by now what ran after the answer has run
    assert (tmp_path / "precious").read_text() == "precious"
