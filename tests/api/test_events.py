"""A job's history: pages of it, and Server-Sent Events that can be resumed."""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from api import streams
from storage.lifecycle import Fence, add_event
from storage.records import Point
from tests.api.conftest import Api, eventually, said, submit

STREAM = {"Accept": "text/event-stream"}


@dataclass
class Sent:
    id: int | None
    type: str
    data: dict[str, Any]


def parsed(lines: Iterator[str]) -> Iterator[Sent]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields:
                id = int(fields["id"]) if "id" in fields else None
                yield Sent(id, fields["event"], json.loads(fields["data"]))
            fields = {}


class Listener:
    """Reads a stream in a thread."""

    def __init__(self, client: httpx.Client, job_id: str, **headers: str) -> None:
        self.seen: list[Sent] = []
        self.comments = 0
        self._client, self._url, self._headers = client, f"/jobs/{job_id}/events", STREAM | headers
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with self._client.stream("GET", self._url, headers=self._headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-cache"
            for sent in parsed(self._counted(response.iter_lines())):
                self.seen.append(sent)

    def _counted(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self.comments += line.startswith(":")
            yield line

    def types(self) -> list[str]:
        return [sent.type for sent in self.seen if sent.type != "progress"]

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive(), "the stream did not close"


def note(api: Api, fence: Fence, numbers: Iterable[int]) -> None:
    with api.database.write() as session:
        for number in numbers:
            add_event(session, fence, "note", {"number": number})


def test_pages(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    note(api, fence, range(3))
    first = client.get(f"/jobs/{job_id}/events?limit=2").json()
    assert [event["type"] for event in first["data"]] == ["submitted", "claimed"]
    assert (first["has_more"], first["next"]) == (True, 2)
    rest = client.get(f"/jobs/{job_id}/events?after=2").json()
    assert [event["data"]["number"] for event in rest["data"]] == [0, 1, 2]
    assert [event["id"] for event in rest["data"]] == [3, 4, 5]
    assert (rest["has_more"], rest["next"]) == (False, None)
    assert rest["data"][0]["at"].endswith("Z")
    assert rest["data"][0]["attempt"] == 1


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=99999999999999999999", "limit=0", "limit=1001"])
def test_bad_pages_are_422(files_client: httpx.Client, query: str):
    job_id = submit(files_client)["id"]
    said(files_client.get(f"/jobs/{job_id}/events?{query}"), 422, "invalid_parameter")


def test_a_stream_tells_all_and_closes_after_the_end(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    listener = Listener(client, job_id)
    eventually(lambda: listener.types() == ["submitted"])
    fence = api.claim(job_id)
    eventually(lambda: listener.types() == ["submitted", "claimed"])
    api.report(fence, stage="teacher-1", progress={"fraction": 0.25, "epoch": 1})
    eventually(lambda: listener.seen[-1].type == "progress")
    assert listener.seen[-1].id is None
    assert listener.seen[-1].data["fraction"] == 0.25
    assert listener.seen[-1].data["stage"] == "teacher-1"
    api.succeed(fence)
    listener.join()
    assert listener.types() == ["submitted", "claimed", "succeeded"]
    assert [sent.id for sent in listener.seen if sent.id is not None] == [1, 2, 3]
    assert listener.seen[1].data["worker"] == "worker-1"
    assert listener.seen[1].data["attempt"] == 1
    assert listener.seen[1].data["at"].endswith("Z")
    eventually(lambda: len(api.service.watcher) == 0)


def test_a_stream_is_resumed_without_loss_or_repetition(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    with client.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as response:
        sent = next(parsed(response.iter_lines()))
        assert sent.id == 1
    note(api, fence, range(250))  # more than one read's worth
    listener = Listener(client, job_id, **{"Last-Event-ID": "2"})
    eventually(lambda: len(listener.seen) == 250)
    note(api, fence, [250])
    eventually(lambda: len(listener.seen) == 251)
    api.end(fence, "failed")
    listener.join()
    assert [sent.id for sent in listener.seen] == list(range(3, 255))
    assert listener.types()[-1] == "failed"


def test_after_stands_in_for_last_event_id(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    client.post(f"/jobs/{job_id}/cancel")
    assert "id: 1\n" not in client.get(f"/jobs/{job_id}/events?after=1", headers=STREAM).text
    both = client.get(f"/jobs/{job_id}/events?after=2", headers=STREAM | {"Last-Event-ID": "0"}).text
    assert "id: 1\n" in both


def test_reconnecting_past_the_end_is_204(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    client.post(f"/jobs/{job_id}/cancel")
    whole = client.get(f"/jobs/{job_id}/events", headers=STREAM)
    assert whole.text.startswith("retry: 1000\n\n")
    assert [sent.type for sent in parsed(iter(whole.text.split("\n")))] == ["submitted", "cancelled"]
    for last in ("2", "3", "2147483647"):
        response = client.get(f"/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": last})
        assert (response.status_code, response.content) == (204, b"")
    client.post(f"/jobs/{job_id}/retry")
    listener = Listener(client, job_id, **{"Last-Event-ID": "2"})
    eventually(lambda: listener.types() == ["retried"])
    client.post(f"/jobs/{job_id}/cancel")
    listener.join()
    assert [sent.id for sent in listener.seen] == [3, 4]


def test_an_old_end_does_not_close_the_stream_of_a_retried_job(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    client.post(f"/jobs/{job_id}/cancel")
    client.post(f"/jobs/{job_id}/retry")
    listener = Listener(client, job_id)
    eventually(lambda: listener.types() == ["submitted", "cancelled", "retried"])
    time.sleep(0.2)
    client.post(f"/jobs/{job_id}/pause")
    eventually(lambda: listener.types()[-1] == "paused")
    client.post(f"/jobs/{job_id}/cancel")
    listener.join()


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "99999999999", "\u0663".encode().decode("latin-1"), "1 2"])
def test_a_bad_last_event_id_is_400(files_client: httpx.Client, last: str):
    job_id = submit(files_client)["id"]
    headers = STREAM | {"Last-Event-ID": last.encode("latin-1")}
    said(files_client.get(f"/jobs/{job_id}/events", headers=headers), 400, "malformed")


@pytest.mark.parametrize(("accept", "is_stream"), [
    ("text/event-stream", True), ("text/event-stream;q=0.9, application/json;q=0.1", True), ("TEXT/Event-Stream", True),
    ("*/*", False), ("application/json", False),
])  # fmt: skip
def test_accept_decides(files_client: httpx.Client, accept: str, is_stream: bool):
    job_id = submit(files_client)["id"]
    files_client.post(f"/jobs/{job_id}/cancel")
    response = files_client.get(f"/jobs/{job_id}/events", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream") == is_stream
    assert response.headers["vary"] == "Accept"


def test_progress_comes_at_most_four_times_a_second(files_api: Api, files_client: httpx.Client):
    job_id = submit(files_client)["id"]
    fence = files_api.claim(job_id)
    listener = Listener(files_client, job_id)
    begun = time.monotonic()
    steps = 0
    while time.monotonic() - begun < 1.2:
        steps += 1
        files_api.report(fence, stage="teacher-1", progress={"step": steps})
        time.sleep(0.02)
    eventually(lambda: bool(listener.seen) and listener.seen[-1].data.get("step") == steps)
    shown = [sent for sent in listener.seen if sent.type == "progress"]
    assert 2 <= len(shown) <= 8 < steps
    files_api.end(fence, "failed")
    listener.join()


def test_a_silent_stream_shows_that_it_lives(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "PING_SECONDS", 0.01)  # sooner than the first look at the job
    job_id = submit(files_client)["id"]
    listener = Listener(files_client, job_id)
    eventually(lambda: listener.comments >= 2)
    files_client.post(f"/jobs/{job_id}/cancel")
    listener.join()
    assert listener.types() == ["submitted", "cancelled"]


def test_changes_that_are_no_news_do_not_silence_a_stream(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "PING_SECONDS", 0.1)
    job_id = submit(files_client)["id"]
    fence = files_api.claim(job_id)
    listener = Listener(files_client, job_id)
    for step in range(25):
        files_api.report(fence, points=[Point("teacher-1", "train/loss", step, 1.0)])
        time.sleep(0.02)
    assert listener.comments >= 2
    files_api.end(fence, "failed")
    listener.join()


def test_a_deleted_job_ends_its_stream(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    listener = Listener(client, job_id)
    eventually(lambda: listener.types() == ["submitted", "claimed"])
    api.end(fence, "cancel")
    client.delete(f"/jobs/{job_id}")
    listener.join()


def test_a_client_that_hangs_up_frees_its_stream(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]

    def open_streams() -> int:
        """Of this job: those of other tests may be about to close."""
        return sum(watch.job_id == job_id for watch in tuple(api.service.watcher._watches))

    with client.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as response:
        lines = response.iter_lines()  # kept: httpx hangs up when an iterator is thrown away
        next(lines)
        eventually(lambda: open_streams() == 1)
    eventually(lambda: open_streams() == 0)


def test_a_reader_that_stops_reading_holds_no_connection_and_little_memory(api: Api, client: httpx.Client, owner: str):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    with api.database.write() as session:
        for _ in range(150):
            add_event(session, fence, "note", {"text": "x" * 80_000})  # 12 MB: more than the sockets' buffers
    key = api.settings.api_keys[owner].get_secret_value()
    request = (
        f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    )
    reads = []
    read = streams._read
    streams._read = lambda *arguments: reads.append(arguments) or read(*arguments)
    try:
        with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
            connection.sendall(request.encode())
            assert b"200 OK" in connection.recv(4096)
            eventually(lambda: len(reads) > 0)
            time.sleep(1)
            settled = len(reads)  # of one event each, as large as these are
            time.sleep(0.5)
            assert len(reads) == settled < 100
            eventually(lambda: api.database.engine.pool.checkedout() == 0)  # housekeeping has one now and then
        eventually(lambda: len(api.service.watcher) == 0)
    finally:
        streams._read = read
