"""Uploads by the client and the command line: what was cut goes on from there."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from distillery import ApiError, Client, ConnectionFailed, UploadFailed, sending, uploads
from distillery.cli import main
from distillery.uploads import RESENT
from storage import attempts
from storage.uploads import Upload
from tests.distillery.conftest import KEY, Api

PART = 65_536


class Cutting(httpx.BaseTransport):
    """A way to the service that is gone after so many parts."""

    def __init__(self, most: int) -> None:
        self.left, self.sent = most, list[str]()
        self._way = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            if self.left == 0:
                raise httpx.ReadError("cut")
            self.left -= 1
            self.sent.append(request.url.path.rpartition("/")[2])
        return self._way.handle_request(request)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "flowers.tar.gz"
    with path.open("wb") as file:
        file.seek(2 * PART)
        file.write(b"the end")
    return path


def test_an_upload_that_was_cut_sends_what_is_missing(api: Api, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TRIES", 1)
    first, second = Cutting(2), Cutting(9)
    with Client(api.url, KEY, first) as client, pytest.raises(ConnectionFailed):
        client.datasets.upload(large, options={"seed": 1}, wait=False)
    with Client(api.url, KEY, second) as client:
        other = client.datasets.upload(large, options={"seed": 2}, wait=False)
        found = client.datasets.upload(large, options={"seed": 1}, wait=False)
        assert (found["name"], found["version"], found["status"], found["file"]) == (
            "flowers", 1, "checking", "flowers.tar.gz",
        )  # fmt: skip
        assert other["version"] == 2
        assert [each["version"] for each in client.datasets.list(name="flowers", page_size=1)] == [2, 1]
    assert (first.sent, second.sent) == (["1", "2"], ["1", "2", "3", "3"])


class Flipping(httpx.BaseTransport):
    """A way to the service on which a bit of part 2 flips, so many times; its sender's digest stays."""

    def __init__(self, times: int) -> None:
        self.left, self.sent = times, list[str]()
        self._way = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.sent.append(request.url.path.rpartition("/")[2])
            if self.sent[-1] == "2" and self.left:
                self.left -= 1
                content = request.read()
                flipped = bytes([content[0] ^ 1]) + content[1:]
                request = httpx.Request(request.method, request.url, headers=request.headers, content=flipped)
        return self._way.handle_request(request)


def test_a_part_that_changed_on_its_way_is_sent_again(api: Api, large: Path) -> None:
    way = Flipping(2)
    with Client(api.url, KEY, way) as client:
        found = client.datasets.upload(large, wait=False)
        assert (found["version"], found["status"]) == (1, "checking")
    assert way.sent == ["1", "2", "2", "2", "3"]


def test_sending_a_part_again_ends(api: Api, large: Path) -> None:
    way = Flipping(10**6)
    with Client(api.url, KEY, way) as client:
        with pytest.raises(ApiError, match="send it again") as refused:
            client.datasets.upload(large, wait=False)
        assert (refused.value.status, refused.value.code) == (422, "digest_mismatch")
        assert way.sent == ["1"] + ["2"] * (1 + RESENT)
        way.left = 0
        assert client.datasets.upload(large, wait=False)["version"] == 1
    assert way.sent[-2:] == ["2", "3"]


def check_of(api: Api, upload_id: str) -> str:
    with api.database.read() as session:
        check_id = session.get_one(Upload, upload_id).check_id
    assert check_id is not None
    return check_id


def fail_check(api: Api, upload_id: str, code: str) -> None:
    fence = api.claim(check_of(api, upload_id))
    with api.database.write() as session:
        attempts.fail(session, fence, {"code": code, "kind": "user", "message": "in this test"})


def test_parts_that_made_another_file_are_sent_again_into_the_same_upload(api: Api, large: Path) -> None:
    way = Cutting(99)
    with Client(api.url, KEY, way) as client:
        first = client.datasets.upload(large, wait=False)
        fail_check(api, first["id"], "digest_mismatch")
        again = client.datasets.upload(large, wait=False)
        assert (again["id"], again["status"], way.sent) == (first["id"], "checking", ["1", "2", "3"] * 2)
        fail_check(api, first["id"], "disk")
        again = client.datasets.upload(large, wait=False)  # all is there: it is only checked again
        assert (again["id"], again["status"], len(way.sent)) == (first["id"], "checking", 6)
        fail_check(api, first["id"], "bad_data")
        assert client.datasets.upload(large, wait=False)["version"] == 2


def test_sending_all_parts_again_ends_and_is_not_tried_with_a_file_that_changed(
    api: Api, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Cutting(99)
    with Client(api.url, KEY, way) as client:
        look = client.datasets.wait

        def wait(upload_id: str, *arguments: Any, **options: Any) -> Any:
            fail_check(api, upload_id, "digest_mismatch")  # as a worker would by now
            return look(upload_id, *arguments, **options)

        monkeypatch.setattr(client.datasets, "wait", wait)
        with pytest.raises(UploadFailed, match="digest_mismatch") as failed:
            client.datasets.upload(large)
        assert (failed.value.upload["version"], way.sent) == (1, ["1", "2", "3"] * (1 + RESENT))
        digests = iter(f"sha256:{digit * 64}" for digit in "ab")
        monkeypatch.setattr(uploads, "file_digest", lambda file: (next(digests), large.stat().st_size))
        with pytest.raises(UploadFailed, match="digest_mismatch"):
            client.datasets.upload(large)
        assert len(way.sent) == 3 * (1 + RESENT) + 3


def test_it_resumes_what_was_sent_with_the_same_options_only(
    api: Api, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TRIES", 1)
    options = {"model": {"type": "mlp", "hidden": [4]}, "input_shape": [1, 8, 8]}  # the service fills in the rest
    cut, rest = Cutting(2), Cutting(9)
    with Client(api.url, KEY, cut) as client, pytest.raises(ConnectionFailed):
        client.models.upload(large, options=options, wait=False)
    with Client(api.url, KEY, rest) as client:
        without = client.models.upload(large, wait=False)
        assert client.models.upload(large, options=options, wait=False)["version"] == without["version"] - 1
    assert rest.sent == ["1", "2", "3", "3"]


def test_commands(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILLERY_URL", api.url)
    monkeypatch.setenv("DISTILLERY_API_KEY", KEY)
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"weights")

    def said(*arguments: str) -> str:
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines(keepends=True)
        return "".join(line for line in lines if "request_id=" not in line)  # the API's log, which runs in here, too

    options = ("--option", "input_shape=[1, 8, 8]", "--no-wait")
    upload_id, name, status = said("upload", "model", str(file), *options).split()
    assert (name, status) == ("teacher@1", "checking")
    assert json.loads(said("show", upload_id))["options"]["input_shape"] == [1, 8, 8]
    api.succeed(api.claim(check_of(api, upload_id)), {}, tmp_path)
    assert said("models", "--status", "ready").split()[0] == upload_id
    assert said("datasets") == ""
    assert said("delete", upload_id) == f"{upload_id}  deleted\n"
    assert said("models") == ""
